"""A kernel as the machine runs it: its instructions, where registers are, where threads meet."""

from __future__ import annotations

import copy
import functools
import re

import numpy as np

from . import native
from .decode import ARITHMETIC, BARRIER, BRANCH, Decoder, Operation, Register
from .ptx import Kernel, PTXError, parse

LANES = 32
SPECIAL = ("tid", "ctaid", "ntid", "nctaid")


class Program:
    """``native`` is what the machine is given."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        decode = Decoder(kernel)
        self.code = [decode(i) for i in kernel.instructions]
        self.code.append(Operation("ret", kind=BRANCH))  # for falling off the end
        self.static_shared = sum(size or 0 for size in kernel.shared.values())
        self.offsets, size = self.lay_out(decode)
        self.leaders = self.find_leaders()
        self.meetings = self.find_meetings()
        self.sides = self.find_sides()
        self.assigned: list[int] = []  # by all of their ways, one after another
        self.instructions = (native.Ins * len(self.code))()
        leaders = set(self.leaders)
        for index, x in enumerate(self.instructions):
            self.fill(x, index)
            x.leader = index in leaders
        self.native = self.describe(decode, size)

    def without(self, index: int) -> Program:
        """The same program, in which an instruction does nothing."""
        other = copy.copy(self)
        other.instructions = type(self.instructions).from_buffer_copy(self.instructions)
        x = other.instructions[index]
        x.op, x.kind, x.sync = native.operations()["nop"], ARITHMETIC, -1
        other.native = native.Program.from_buffer_copy(self.native)
        other.native.ins = other.instructions
        return other

    def lay_out(self, decode: Decoder) -> tuple[dict[str, int], int]:
        """Where registers are: a predicate is a word, others have a value for each lane."""
        widths: dict[str, int] = dict.fromkeys(decode.special, 4)
        used: list[Register] = [(name, width) for (_, width), name in decode.constants.items()]
        for x in self.code:
            used += [*x.to, *x.sources]
            used += [(x.guard, 1)] if x.guard else []
        for name, width in used:
            if widths.setdefault(name, width) != width:
                raise PTXError(f"{name} is used with {widths[name]} and with {width} bytes")
        offsets, at = {}, 0
        for name, width in sorted(widths.items(), key=lambda x: x[1]):  # predicates first
            if width > 1:
                at = -(-at // 64) * 64  # for vector instructions
            offsets[name] = at
            at += 4 if width == 1 else LANES * width
        return offsets, at

    def find_leaders(self) -> list[int]:
        """Instructions where control may arrive from elsewhere than the one before."""
        targets = {x.fields["imm"] for x in self.code if x.name == "bra"}
        ends = {k + 1 for k, x in enumerate(self.code) if x.kind in (BRANCH, BARRIER)}
        return sorted({0, len(self.code) - 1} | targets | ends & set(range(len(self.code))))

    def flow(self) -> tuple[list[int], list[list[int]]]:
        """Blocks' last instructions, and the blocks that may follow; one more is after all ends."""
        starts, count = self.leaders, len(self.code)
        block_of = {start: k for k, start in enumerate(starts)}
        last = [end - 1 for end in [*starts[1:], count]]
        after: list[list[int]] = []
        for end in last:
            x = self.code[end]
            ways = {"bra": [block_of.get(x.fields.get("imm", 0), 0)], "ret": [len(starts)]}
            next_ones = ways.get(x.name, [])
            if (not next_ones or x.guard) and end + 1 < count:
                next_ones = [*next_ones, block_of[end + 1]]
            after.append(next_ones)
        return last, after

    def find_meetings(self) -> dict[int, int]:
        """Of each conditional branch its immediate postdominator, where its threads meet again."""
        last, after = self.flow()
        leave = len(last)
        # Sets of blocks, as bits of integers: those that every way to the end goes through.
        everything = (1 << leave + 1) - 1
        behind = [everything] * leave + [1 << leave]
        changed = True
        while changed:
            changed = False
            for k in reversed(range(leave)):
                new = functools.reduce(int.__and__, (behind[w] for w in after[k]), everything)
                new |= 1 << k
                changed |= new != behind[k]
                behind[k] = new
        nearest = {behind[p]: self.leaders[p] for p in range(leave)}
        return {
            end: nearest[behind[k] & ~(1 << k)]
            for k, end in enumerate(last)
            if self.code[end].name == "bra" and self.code[end].guard
            if behind[k] & ~(1 << k) in nearest
        }

    def find_sides(self) -> dict[int, list[int]]:
        """Of branches whose ways only compute until they meet: the registers that these assign."""
        last, after = self.flow()
        sides = {}
        for branch, meeting in self.meetings.items():
            end, todo = self.leaders.index(meeting), list(after[last.index(branch)])
            blocks: set[int] = set()
            while todo:
                if (k := todo.pop()) != end and k not in blocks:
                    blocks.add(k)
                    todo += after[k]
            inside = [x for k in blocks for x in self.code[self.leaders[k] : last[k] + 1]]
            if all(x.kind == ARITHMETIC or x.name == "bra" for x in inside):
                sides[branch] = sorted({self.offsets[name] for x in inside for name, _ in x.to})
        return sides

    def fill(self, x: native.Ins, index: int) -> None:
        code, at = self.code[index], self.offsets
        x.op, x.kind = native.operations()[code.name], code.kind
        x.guard = at[code.guard] if code.guard else -1
        x.guard_negated = code.guard_negated
        x.sync = at[code.sync] if code.sync is not None else -1
        x.meet = self.meetings.get(index, -1)
        x.side, x.n_side = len(self.assigned), -1
        if index in self.sides:
            x.n_side = len(self.sides[index])
            self.assigned += self.sides[index]
        x.to, x.from_ = len(code.to), len(code.sources)
        x.wide = bool(code.to) and all(width == 8 for _, width in code.to)
        for k, (name, _) in enumerate([*code.to, *code.sources]):
            x.o[k] = at[name]
        for name, value in code.fields.items():
            setattr(x, name, value)

    def describe(self, decode: Decoder, size: int) -> native.Program:
        names = list(decode.constants.values())
        self.arrays = (
            np.array([self.offsets[n] for n in names], np.int32),
            np.array([value for value, _ in decode.constants], np.uint64),
            np.array([width for _, width in decode.constants], np.int32),
            np.array(self.assigned, np.int32),
        )
        p = native.Program(ins=self.instructions, n_ins=len(self.code), regs_bytes=size)
        p.n_consts = len(names)
        addresses = (x.ctypes.data for x in self.arrays)
        p.const_offset, p.const_value, p.const_width, p.assigned = addresses
        for name in SPECIAL:
            getattr(p, name)[:] = [self.offsets.get(f"%{name}.{axis}", -1) for axis in "xyz"]
        p.laneid, p.warpid = (self.offsets.get(name, -1) for name in ("%laneid", "%warpid"))
        narrow = re.compile(r"(ld|st)\.shared.*\.[bus](8|16)")
        p.shared_granule = (
            1 if any(narrow.fullmatch(i.opcode) for i in self.kernel.instructions) else 4
        )
        return p


@functools.lru_cache(maxsize=512)
def program_of(text: str) -> Program:
    return Program(parse(text))
