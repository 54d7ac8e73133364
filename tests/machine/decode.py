"""A PTX instruction to an operation of the machine: which one, and on which registers.

``RULES`` has a line for each form: the opcode, the operation of ops.h that it is, and the types of
its operands, destinations before the colon. What no line matches is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from .ptx import SIZES, Instruction, Kernel, Operand, PTXError, immediate

SHARED_BASE = 1024  # as in machine.h, like the numbers below
ARITHMETIC, BRANCH, BARRIER, COLLECTIVE, MEMORY = range(5)
KINDS = {"bra": BRANCH, "ret": BRANCH, "trap": BRANCH, "bar": BARRIER}
SPACES = {"global": 1, "shared": 2}
COMPARE = ["eq", "ne", "lt", "le", "gt", "ge"]
COMPARE += ["equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
BOOLEAN = [None, "and", "or", "xor"]
ROUNDING = ["rni", "rzi", "rmi", "rpi"]
ATOMIC = [
    "add.(?:[us]32|u64)", "add.f32", "add.f64", "and.b(?:32|64)", "or.b(?:32|64)",
    "xor.b(?:32|64)", "exch.b(?:32|64)", "min.s(?:32|64)", "max.s(?:32|64)", "min.u(?:32|64)",
    "max.u(?:32|64)", "cas.b(?:32|64)",
]  # fmt: skip

Match = re.Match[str]


def comparison(m: Match) -> dict[str, int]:
    how = UNSIGNED.get(m["how"], m["how"])
    combined = BOOLEAN.index(m["with"]) if "with" in m.re.groupindex else 0
    return {"how": COMPARE.index(how) | combined << 4}


def rounding(m: Match) -> dict[str, int]:
    return {"how": ROUNDING.index(m["how"])}


def integers(m: Match) -> dict[str, int]:
    """Of the integers that a conversion is to or from, and of its rounding."""
    parts = m.groupdict()
    out = rounding(m) if "how" in parts else {"saturate": int(bool(parts.get("sat")))}
    for end in ("to", "from"):
        if kind := parts.get(end):
            out |= {f"{end}_signed": int(kind[0] == "s"), f"{end}_bits": int(kind[1:])}
    return out


def nothing(m: Match) -> dict[str, int]:
    return {}


WITH = r"(?:\.(?P<with>and|or|xor))?"
BITS = "(16|32|64)"
TO, FROM = (f"(?P<{end}>[us](?:8|16|32|64))" for end in ("to", "from"))
HOW = f"(?P<how>{'|'.join(ROUNDING)})"


class Rule(NamedTuple):
    opcode: str
    operation: str
    operands: str
    fields: Callable[[Match], dict[str, int]] = nothing


# Operands: a type of PTX; reg: a register of any width; mask: the lanes that a collective
# instruction names; zero, imm: literals; label. ! may be negated, ? may be missing.
RULES = [
    Rule(*line)
    for line in [
        (r"ret|exit", "ret", ":"),
        (r"trap", "trap", ":"),
        (r"bra(\.uni)?", "bra", ": label"),
        (r"(?:bar|barrier|barrier\.cta)\.sync(?:\.aligned)?", "bar", ": zero"),
        (r"fence\.proxy\.async|fence\.acq_rel\.cta|membar\.(?:cta|gl)", "nop", ":"),
        # Of whole warps.
        (r"bar\.warp\.sync", "warpsync", ": mask"),
        (r"shfl\.sync\.(up|down|bfly|idx)\.b32", r"shfl_\1", "b32 pred: b32 b32 b32 mask"),
        (r"vote\.sync\.ballot\.b32", "vote_ballot", "b32: pred! mask"),
        (r"vote\.sync\.(any|all|uni)\.pred", r"vote_\1", "pred: pred! mask"),
        (r"match\.any\.sync\.b32", "match_any_b32", "b32: b32 mask"),
        (r"redux\.sync\.add\.[us]32", "redux_add", "b32: b32 mask"),
        (r"redux\.sync\.(and|or|xor)\.b32", r"redux_\1", "b32: b32 mask"),
        (r"redux\.sync\.(min|max)\.([us]32)", r"redux_\1_\2", "b32: b32 mask"),
        (r"activemask\.b32", "activemask", "b32:"),
        # Predicates.
        (r"(mov|not)\.pred", r"\1_pred", "pred: pred"),
        (r"(and|or|xor)\.pred", r"\1_pred", "pred: pred pred"),
        (rf"selp\.[busf]{BITS}", r"selp_b\1", r"b\1: b\1 b\1 pred"),
        (
            rf"setp\.(?P<how>eq|ne|lt|le|gt|ge){WITH}\.([us]{BITS})", r"setp_\3",
            r"pred pred: \3 \3 pred!?", comparison,
        ),
        (
            rf"setp\.(?P<how>lo|ls|hi|hs|eq|ne){WITH}\.[ub]{BITS}", r"setp_u\3",
            r"pred pred: b\3 b\3 pred!?", comparison,
        ),
        (
            rf"setp\.(?P<how>\w+){WITH}\.(f16|bf16|f32|f64)", r"setp_\3",
            r"pred pred: \3 \3 pred!?", comparison,
        ),
        (r"setp\.(?P<how>\w+)\.(f16x2|bf16x2)", r"setp_\2", "pred pred: b32 b32", comparison),
        # Integers.
        (rf"mov\.[busf]{BITS}", r"mov_b\1", r"b\1: b\1"),
        (rf"(add|sub)\.[us]{BITS}", r"\1_b\2", r"b\2: b\2 b\2"),
        (rf"mul\.lo\.[us]{BITS}", r"mul_lo_b\1", r"b\1: b\1 b\1"),
        (rf"mad\.lo\.[us]{BITS}", r"mad_lo_b\1", r"b\1: b\1 b\1 b\1"),
        (r"mul\.hi\.([us](?:32|64))", r"mul_hi_\1", r"\1: \1 \1"),
        (r"mul\.wide\.([us]16)", r"mul_wide_\1", "b32: b16 b16"),
        (r"mul\.wide\.([us]32)", r"mul_wide_\1", "b64: b32 b32"),
        (r"mad\.wide\.([us]32)", r"mad_wide_\1", "b64: b32 b32 b64"),
        (r"(div|rem)\.([us](?:32|64))", r"\1_\2", r"\2: \2 \2"),
        (r"(abs|neg)\.(s(?:16|32|64))", r"\1_\2", r"\2: \2"),
        (r"(min|max)\.([us](?:16|32|64))", r"\1_\2", r"\2: \2 \2"),
        (rf"(and|or|xor)\.b{BITS}", r"\1_b\2", r"b\2: b\2 b\2"),
        (rf"not\.b{BITS}", r"not_b\1", r"b\1: b\1"),
        (rf"shl\.b{BITS}", r"shl_b\1", r"b\1: b\1 b32"),
        (rf"shr\.[ub]{BITS}", r"shr_u\1", r"b\1: b\1 b32"),
        (rf"shr\.s{BITS}", r"shr_s\1", r"b\1: b\1 b32"),
        (r"shf\.([lr])\.(wrap|clamp)\.b32", r"shf_\1_\2", "b32: b32 b32 b32"),
        (r"bfe\.([us](?:32|64))", r"bfe_\1", r"\1: \1 b32 b32"),
        (r"bfi\.(b(?:32|64))", r"bfi_\1", r"\1: \1 \1 b32 b32"),
        (r"prmt\.b32", "prmt_b32", "b32: b32 b32 b32"),
        (r"lop3\.b32", "lop3_b32", "b32: b32 b32 b32 imm"),
        (r"(popc|clz)\.(b(?:32|64))", r"\1_\2", r"b32: \2"),
        (r"brev\.(b(?:32|64))", r"brev_\1", r"\1: \1"),
        # Floating point.
        (r"(add|sub|mul)(?:\.rn)?(\.ftz)?\.f32", r"\1\2_f32", "f32: f32 f32"),
        (r"(add|sub|mul)(?:\.rn)?\.f64", r"\1_f64", "f64: f64 f64"),
        (r"fma\.rn(\.ftz)?\.f32", r"fma\1_f32", "f32: f32 f32 f32"),
        (r"fma\.rn\.f64", "fma_f64", "f64: f64 f64 f64"),
        (r"(neg|abs)(\.ftz)?\.f32", r"\1\2_f32", "f32: f32"),
        (r"(neg|abs)\.f64", r"\1_f64", "f64: f64"),
        (r"(neg|abs)\.b?f16", r"\1_b16", "b16: b16"),
        (r"(neg|abs)\.b?f16x2", r"\1_b16x2", "b32: b32"),
        (r"(min|max|copysign)\.(f32|f64)", r"\1_\2", r"\2: \2 \2"),
        (r"(min|max)\.NaN\.f32", r"\1_nan_f32", "f32: f32 f32"),
        (r"div\.rn(\.ftz)?\.f32", r"div\1_f32", "f32: f32 f32"),
        (r"div\.(?:full|approx)(\.ftz)?\.f32", r"div_full\1_f32", "f32: f32 f32"),
        (r"div\.rn\.f64", "div_f64", "f64: f64 f64"),
        (r"(rcp|sqrt)\.rn(\.ftz)?\.f32", r"\1\2_f32", "f32: f32"),
        (r"(rcp|sqrt)\.rn\.f64", r"\1_f64", "f64: f64"),
        (r"(rcp|sqrt)\.approx(\.ftz)?\.f32", r"\1_approx\2_f32", "f32: f32"),
        (r"(ex2|lg2|rsqrt|sin|cos)\.approx(\.ftz)?\.f32", r"\1\2_f32", "f32: f32"),
        (r"tanh\.approx\.f32", "tanh_f32", "f32: f32"),
        (r"rsqrt\.approx\.f64", "rsqrt_f64", "f64: f64"),
        (r"rcp\.approx\.ftz\.f64", "rcp_gross_f64", "f64: f64"),
        # Conversions; those of integers as wide as their registers have loops that are faster.
        (r"cvt\.(s64)\.(s32)", r"cvt_\1_\2", r"\1: \2"),
        (r"cvt\.(u64)\.(u32)", r"cvt_\1_\2", r"\1: \2"),
        (r"cvt\.(u32)\.(u64)", r"cvt_\1_\2", r"\1: \2"),
        (rf"cvt(?P<sat>\.sat)?\.{TO}\.{FROM}", "cvt_int", "reg: reg", integers),
        (rf"cvt\.{HOW}\.{TO}\.(f32|f64)", r"cvt_int_\3", r"reg: \3", integers),
        (rf"cvt\.rn\.(f32|f64)\.{FROM}", r"cvt_\1_int", r"\1: reg", integers),
        (rf"cvt\.{HOW}\.(f32|f64)\.\2", r"cvt_round_\2", r"\2: \2", rounding),
        (r"cvt\.(f32|f64)\.(f16|bf16)", r"cvt_\1_\2", r"\1: \2"),
        (r"cvt\.rn\.(f16|bf16)\.(f32|f64)", r"cvt_\1_\2", r"\1: \2"),
        (r"cvt\.rn\.(f16x2|bf16x2)\.f32", r"cvt_\1_f32", "b32: f32 f32"),
        (r"cvt\.f64\.f32", "cvt_f64_f32", "f64: f32"),
        (r"cvt\.rn\.f32\.f64", "cvt_f32_f64", "f32: f64"),
    ]
]  # fmt: skip
# mov between a register and a vector that together are as wide.
VECTORS = {
    (32, 2): "pack2_b32 b32: b16 b16", (64, 2): "pack2_b64 b64: b32 b32",
    (64, 4): "pack4_b64 b64: b16 b16 b16 b16",
}  # fmt: skip


@cache
def operations_of(opcode: str) -> list[tuple[str, str, dict[str, int]]]:
    """What an opcode may be: operations, types of their operands, and fields of native.Ins."""
    return [
        (m.expand(rule.operation).replace(".", "_"), m.expand(rule.operands), rule.fields(m))
        for rule in RULES
        if (m := re.fullmatch(rule.opcode, opcode))
    ]


Register = tuple[str, int]  # name and width in bytes; a predicate has 1


@dataclass(slots=True)
class Operation:
    name: str
    to: list[Register] = field(default_factory=list)
    sources: list[Register] = field(default_factory=list)
    kind: int = ARITHMETIC
    fields: dict[str, int] = field(default_factory=dict)  # of native.Ins
    sync: str | None = None  # register with the lanes that it names
    guard: str | None = None
    guard_negated: bool = False


class Decoder:
    """Of one kernel; collects the constants and special registers that it uses."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.constants: dict[tuple[int, int], str] = {}
        self.special: set[str] = set()

    def __call__(self, i: Instruction) -> Operation:
        try:
            out = self.memory(i) if i.parts[0] in ACCESSES else self.by_rule(i)
            if i.predicate:
                self.source(Operand("reg", i.predicate, name=i.predicate), 1)
        except (PTXError, KeyError, ValueError) as error:
            raise PTXError(f"line {i.line}: {i.text!r}: {error}") from error
        out.guard, out.guard_negated = i.predicate, i.negated
        return out

    # ---- operands

    def width(self, name: str) -> int:
        kind = self.kernel.registers.get(name)
        if kind is None:
            raise PTXError(f"register {name} is not declared")
        return 1 if kind == "pred" else SIZES[kind]

    def constant(self, value: int, width: int) -> Register:
        known = self.constants.setdefault((value, width), f"#{len(self.constants)}")
        return known, width

    def symbol(self, name: str) -> int:
        """Where an array of shared memory is; the dynamic one comes last."""
        at = SHARED_BASE
        for other, size in sorted(self.kernel.shared.items(), key=lambda x: x[1] is None):
            if other == name:
                return at
            at += -(-(size or 0) // 16) * 16
        raise PTXError(f"there is no {name}")

    def source(self, x: Operand, width: int) -> Register:
        if x.kind == "imm":
            value = immediate(x.text)
            if width == 1:
                return self.constant(0xFFFFFFFF if value else 0, 1)
            if x.text[:2] in ("0f", "0F") and width == 8:
                raise PTXError("a literal of 32 bits for 64")
            return self.constant(value & (1 << 8 * width) - 1, width)
        if x.kind == "symbol":
            return self.constant(self.symbol(x.name), width)
        if x.kind != "reg":
            raise PTXError(f"operand {x.text!r} is no register")
        if re.fullmatch(r"%(tid|ctaid|ntid|nctaid)\.[xyz]|%laneid|%warpid", x.name):
            self.special.add(x.name)
            return x.name, 4
        if self.width(x.name) != width:
            raise PTXError(f"{x.name} has {self.width(x.name)} bytes, not {width}")
        return x.name, width

    def destination(self, x: Operand, width: int) -> Register:
        if x.name == "_":
            return f"sink{width}", width
        if x.kind != "reg" or self.width(x.name) != width:
            raise PTXError(f"{x.text!r} is no register of {width} bytes")
        return x.name, width

    def address(self, x: Operand, space: str) -> Register:
        width = 8 if space == "global" else 4
        if x.kind != "address":
            raise PTXError(f"{x.text!r} is no address")
        if x.name in self.kernel.shared:
            return self.constant(self.symbol(x.name), width)
        return self.source(Operand("reg", x.name, name=x.name), width)

    # ---- instructions

    def by_rule(self, i: Instruction) -> Operation:
        error = PTXError(f"{i.opcode} is not an instruction that the machine knows")
        for name, types, fields in operations_of(i.opcode):
            try:
                if name.startswith("mov_b"):
                    name, types = self.vector(i, name, types)
                return self.with_operands(i, name, types, dict(fields))
            except (PTXError, ValueError) as reason:
                error = PTXError(f"this form of {i.opcode} is not implemented: {reason}")
        raise error

    def vector(self, i: Instruction, name: str, types: str) -> tuple[str, str]:
        sizes = [len(x.parts) if x.kind == "vector" else 1 for x in i.operands]
        if sizes == [1, 1]:
            return name, types
        form = VECTORS.get((int(name.removeprefix("mov_b")), max(sizes)))
        if form is None or min(sizes) != 1:
            raise PTXError("no such vector")
        name, types = form.split(" ", 1)
        if sizes[0] == 1:
            return name, types
        whole, parts = types.split(": ")
        return f"un{name}", f"{parts}: {whole}"

    def with_operands(
        self, i: Instruction, name: str, types: str, fields: dict[str, int]
    ) -> Operation:
        out = Operation(name, fields=fields)
        to, sources = (side.split() for side in types.split(":"))
        given = [y for x in i.operands for y in (x.parts if x.kind in ("pair", "vector") else [x])]
        if len(given) == len(i.operands) and len(to) > 1:  # of a pair only the first is given
            given.insert(1, Operand("reg", "_", name="_"))
        if sources and sources[-1].endswith("?") and len(given) < len(to) + len(sources):
            del sources[-1]
        if len(given) != len(to) + len(sources):
            raise PTXError(f"{len(given)} operands")
        for x, kind in zip(given, to, strict=False):
            out.to.append(self.destination(x, self.bytes(kind, x)))
        for x, kind in zip(given[len(to) :], sources, strict=True):
            if kind == "label":
                fields["imm"] = self.kernel.labels[x.name]
            elif kind == "imm":
                fields["imm"] = immediate(x.text)
            elif kind == "zero":
                if x.text != "0":
                    raise PTXError("only barrier 0 is known")
            else:
                if x.negated:
                    if "!" not in kind:
                        raise PTXError(f"operand {x.text!r}")
                    fields["negated"] = 1
                out.sources.append(self.source(x, self.bytes(kind.rstrip("!?"), x)))
                if kind == "mask":
                    out.sync = out.sources[-1][0]
        fields["to_width"] = out.to[0][1] if out.to else 0
        fields["from_width"] = out.sources[0][1] if out.sources else 0
        out.kind = COLLECTIVE if out.sync is not None else KINDS.get(name, ARITHMETIC)
        return out

    def bytes(self, kind: str, x: Operand) -> int:
        if kind == "reg":
            return self.width(x.name)
        return {"pred": 1, "mask": 4}.get(kind) or SIZES[kind]

    # ---- memory

    def memory(self, i: Instruction) -> Operation:
        name = i.parts[0]
        found = re.fullmatch(ACCESSES[name], i.opcode)
        if not found:
            raise PTXError(f"{i.opcode} is not a form of {name} that the machine knows")
        return {"ld": self.access, "st": self.access, "atom": self.atomic}.get(name, self.matrix)(
            i, found
        )

    def access(self, i: Instruction, m: Match) -> Operation:
        name, space, size = i.parts[0], m["space"], SIZES[m["type"]]
        load = name == "ld"
        value, address = i.operands if load else reversed(i.operands)
        values = value.parts if value.kind == "vector" else [value]
        if len(values) != int(m["n"] or 1):
            raise PTXError(f"{len(values)} registers")
        known = {self.width(x.name) for x in values if x.kind == "reg" and x.name != "_"}
        width = max(known, default=max(size, 2))
        fields = {"n": len(values), "size": size, "width": width, "imm": address.offset}
        fields["to_signed"] = int(m["type"][0] == "s")
        registers = [(self.destination if load else self.source)(x, width) for x in values]
        if space == "param":
            where = [p.offset for p in self.kernel.parameters if p.name == address.name]
            if not load or not where or len(values) != 1:
                raise PTXError("parameters are only read, one by one")
            fields["imm"] += where[0]
            return Operation("ld_param", registers, fields=fields)
        fields["space"] = SPACES[space]
        at = self.address(address, space)
        if load:
            return Operation("ld", registers, [at], MEMORY, fields)
        return Operation("st", [], [*registers, at], MEMORY, fields)

    def atomic(self, i: Instruction, m: Match) -> Operation:
        space, size = m["space"], SIZES[m["how"].split(".")[1]]
        how = next(k for k, x in enumerate(ATOMIC) if re.fullmatch(x, m["how"]))
        to, address, *values = i.operands
        fields = {"how": how, "size": size, "width": size, "n": 1, "imm": address.offset}
        fields["space"] = SPACES[space]
        sources = [*(self.source(x, size) for x in values), self.address(address, space)]
        return Operation("atom", [self.destination(to, size)], sources, MEMORY, fields)

    def matrix(self, i: Instruction, m: Match) -> Operation:
        load = i.parts[0] == "ldmatrix"
        vector, address = i.operands if load else reversed(i.operands)
        if len(vector.parts) != int(m["n"]):
            raise PTXError(f"{len(vector.parts)} registers")
        fields = {"n": int(m["n"]), "how": int(m["trans"] is not None), "imm": address.offset}
        fields["space"] = SPACES[m["space"]]
        at = self.address(address, m["space"])
        everyone = self.constant(0xFFFFFFFF, 4)[0]
        registers = [(self.destination if load else self.source)(x, 4) for x in vector.parts]
        to, sources = (registers, [at]) if load else ([], [*registers, at])
        return Operation(i.parts[0], to, sources, MEMORY, fields, sync=everyone)


# Hints for caches and orders among the machine's sequential accesses change nothing.
HINTS = r"(?:\.(?:L[12](?:::\w+)*|evict_\w+|nc|volatile))*"
SPACE = r"\.(?P<space>global|shared|param)(?:::cta)?"
ACCESS = rf"(?:ld|st){SPACE}{HINTS}(?:\.v(?P<n>[248]))?\.(?P<type>\w+)"
MATRIX = rf"\.sync\.aligned\.m8n8\.x(?P<n>[124])(?P<trans>\.trans)?{SPACE}\.b16"
ACCESSES = {
    "ld": ACCESS,
    "st": ACCESS,
    "atom": rf"atom{SPACE}(?:\.(?:gpu|cta|sys|acq_rel|relaxed))*\.(?P<how>{'|'.join(ATOMIC)})",
    "ldmatrix": f"ldmatrix{MATRIX}",
    "stmatrix": f"stmatrix{MATRIX}",
}
