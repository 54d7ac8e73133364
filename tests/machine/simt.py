"""PTX to the machine's instructions, runs, findings and counters. The machine itself is C."""

from __future__ import annotations

import ctypes as c
import functools
import hashlib
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import ptx
from .ptx import Instruction, Kernel, Operand, PTXError

HERE = Path(__file__).parent
FLAGS = [
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fwrapv",
    "-w",
    "-shared",
    "-fPIC",
]


def build(name: str, *more: str) -> Path:
    """The shared library made of a C file, compiled when that file has changed."""
    source = HERE / name
    key = hashlib.sha256(source.read_bytes() + " ".join(more).encode()).hexdigest()[:16]
    out = Path(tempfile.gettempdir()) / f"ptx-machine-{key}" / (Path(name).stem + ".so")
    if not out.exists():
        out.parent.mkdir(exist_ok=True)
        new = out.with_suffix(".new")
        subprocess.run(["gcc", *FLAGS, str(source), "-o", str(new), "-lm", *more], check=True)
        new.rename(out)
    return out


class CIns(c.Structure):
    _fields_ = [
        (n, c.c_int32) for n in ("op", "pred", "neg", "leader", "n", "size", "width", "sub")
    ]
    _fields_ += [("sync", c.c_int32), ("pad", c.c_int32)]
    _fields_ += [("o", c.c_int32 * 12), ("imm", c.c_int64), ("imm2", c.c_int64)]


class CCount(c.Structure):
    _fields_ = [
        (n, c.c_uint64) for n in ("count", "threads", "requests", "sectors", "ideal", "bytes")
    ]


class CFinding(c.Structure):
    _fields_ = [(n, c.c_int32) for n in ("kind", "pc", "pc2", "arg", "hazard", "same")]
    _fields_ += [("count", c.c_int64), ("address", c.c_uint64)]
    _fields_ += [(n, c.c_int32) for n in ("cta", "thread", "cta2", "thread2", "landed")]


class CAlloc(c.Structure):
    _fields_ = [("lo", c.c_uint64), ("hi", c.c_uint64), ("init", c.c_void_p)]
    _fields_ += [("shadow", c.c_void_p), ("granule", c.c_int64)]


class CArg(c.Structure):
    _fields_ = [("view_lo", c.c_uint64), ("view_hi", c.c_uint64)]
    _fields_ += [("alloc", c.c_int32), ("pad", c.c_int32)]


class CProgram(c.Structure):
    _fields_ = [("ins", c.POINTER(CIns))]
    _fields_ += [(n, c.c_int64) for n in ("n_ins", "regs_bytes", "n_consts")]
    _fields_ += [("const_offset", c.c_void_p), ("const_value", c.c_void_p)]
    _fields_ += [("const_width", c.c_void_p)]
    _fields_ += [(n, c.c_int32 * 3) for n in ("tid", "ctaid", "ntid", "nctaid")]
    _fields_ += [(n, c.c_int32) for n in ("laneid", "warpid", "shared_granule")]
    _fields_ += [("b64_from", c.c_int64), ("b64_count", c.c_int64)]


class CLaunch(c.Structure):
    _fields_ = [("grid", c.c_int32 * 3)]
    _fields_ += [
        (n, c.c_int32) for n in ("threads", "shared_bytes", "n_args", "n_allocs", "n_params")
    ]
    _fields_ += [(n, c.c_void_p) for n in ("params", "param_arg", "args", "allocs")]
    _fields_ += [("races", c.c_int32), ("poison", c.c_int32)]
    _fields_ += [("seed", c.c_uint64), ("budget", c.c_int64)]
    _fields_ += [("counts", c.c_void_p), ("findings", c.c_void_p)]
    _fields_ += [("max_findings", c.c_int32), ("n_findings", c.c_int32), ("executed", c.c_int64)]
    _fields_ += [("cta_from", c.c_int32), ("cta_to", c.c_int32)]


@functools.cache
def library() -> tuple[c.CDLL, dict[str, int]]:
    lib = c.CDLL(str(build("machine.c")))
    lib.op_name.restype = c.c_char_p
    lib.free_shadow.argtypes = [c.c_void_p, c.c_int64]
    structures = (CIns, CProgram, CLaunch, CFinding, CCount, CAlloc, CArg)
    for i, structure in enumerate(structures):
        if lib.sizes(i) != c.sizeof(structure):
            raise RuntimeError(f"{structure.__name__}: {lib.sizes(i)} != {c.sizeof(structure)}")
    names: dict[str, int] = {}
    while (name := lib.op_name(len(names))) is not None:
        names[name.decode()] = len(names)
    return lib, names


SHARED_BASE = 1024
RUNNING = threading.Lock()  # one launch at a time, as on a stream
COMPARE = {
    name: i
    for i, name in enumerate(
        ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]
    )
}
COMPARE |= {"lo": COMPARE["lt"], "ls": COMPARE["le"], "hi": COMPARE["gt"], "hs": COMPARE["ge"]}
ROUNDING = {"rni": 0, "rzi": 1, "rmi": 2, "rpi": 3}
ATOMIC = {
    ("add", "u32"): 0, ("add", "s32"): 0, ("add", "u64"): 0, ("add", "f32"): 1, ("add", "f64"): 2,
    ("and", "b32"): 3, ("and", "b64"): 3, ("or", "b32"): 4, ("or", "b64"): 4, ("xor", "b32"): 5,
    ("xor", "b64"): 5, ("exch", "b32"): 6, ("exch", "b64"): 6, ("min", "s32"): 7, ("max", "s32"): 8,
    ("min", "s64"): 7, ("max", "s64"): 8, ("min", "u32"): 9, ("max", "u32"): 10,
    ("min", "u64"): 9, ("max", "u64"): 10, ("cas", "b32"): 11, ("cas", "b64"): 11,
}  # fmt: skip
SPECIAL = ("tid", "ctaid", "ntid", "nctaid")


class Program:
    """A kernel as the machine runs it."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.lib, self.ops = library()
        self.offsets: dict[str, int] = {}
        self.constants: dict[tuple[int, int], str] = {}
        self.special: dict[str, int] = {}
        self.code = [self.translate(i) for i in kernel.instructions]
        self.code.append({"op": self.ops["ret"], "leader": 1})  # for falling off the end
        self.lay_out()

    # Registers are named while translating and laid out at the end: 64-bit ones together.

    def lay_out(self) -> None:
        names: dict[str, int] = {}  # -> width
        for item in self.code:
            for name, width in item.get("o", []):
                if names.setdefault(name, width) != width:
                    raise PTXError(f"{name} is used with {names[name]} and {width} bytes")
            if "predicate" in item:
                names[item["predicate"]] = 1
            if "sync" in item:
                names[item["sync"]] = 4
        for name in self.special.values():
            names.setdefault(name, 4)
        wide = [name for name, width in names.items() if width == 8]
        at = 0
        for name in [n for n, w in names.items() if w == 1]:
            self.offsets[name], at = at, at + 4
        at = (at + 63) // 64 * 64
        for name in [n for n, w in names.items() if w in (2, 4)]:
            self.offsets[name], at = at, at + 32 * names[name]
        at = (at + 63) // 64 * 64
        self.b64_from = at
        for name in wide:
            self.offsets[name], at = at, at + 320
        self.regs_bytes = at

        array = (CIns * len(self.code))()
        targets = {item["imm"] for item in self.code if item["op"] == self.ops["bra"]}
        for index, item in enumerate(self.code):
            x = array[index]
            x.op = item["op"]
            x.pred = self.offsets[item["predicate"]] if "predicate" in item else -1
            x.neg = item.get("neg", 0)
            after = index > 0 and self.code[index - 1]["op"] in self.control
            x.leader = int(index in targets or after or item.get("leader", 0))
            for key in ("n", "size", "width", "sub", "imm"):
                setattr(x, key, item.get(key, 0))
            x.sync = self.offsets[item["sync"]] if "sync" in item else -1
            x.imm2 = -1
            for k, (name, _) in enumerate(item.get("o", [])):
                x.o[k] = self.offsets[name]
        self.array = array
        self.find_meetings()
        keys = list(self.constants)
        self.const_offset = np.array([self.offsets[self.constants[k]] for k in keys], np.int32)
        values = [k[0] & (1 << 64) - 1 for k in keys]
        self.const_value = np.array(values, np.uint64)
        self.const_width = np.array([k[1] for k in keys], np.int32)
        granule = 4
        for i in self.kernel.instructions:
            if re.match(r"(ld|st)\.shared.*\.(b|u|s)(8|16)$", i.opcode):
                granule = 1
        p = CProgram(ins=array, n_ins=len(self.code), regs_bytes=self.regs_bytes)
        p.n_consts = len(keys)
        p.const_offset = self.const_offset.ctypes.data
        p.const_value = self.const_value.ctypes.data
        p.const_width = self.const_width.ctypes.data

        def special(name: str) -> int:
            return self.offsets[self.special[name]] if name in self.special else -1

        for d, axis in enumerate("xyz"):
            for name in SPECIAL:
                getattr(p, name)[d] = special(f"%{name}.{axis}")
        p.laneid, p.warpid = special("%laneid"), special("%warpid")
        p.shared_granule = granule
        p.b64_from, p.b64_count = self.b64_from, len(wide)
        self.program = p
        self.static_shared = sum(size or 0 for size in self.kernel.shared.values())

    def find_meetings(self) -> None:
        """Each conditional branch's immediate postdominator, where its threads meet again."""
        array, count = self.array, len(self.code)
        bra, ret = self.ops["bra"], self.ops["ret"]
        starts = [i for i in range(count) if i == 0 or array[i].leader]
        block_of = {start: k for k, start in enumerate(starts)}
        last = [end - 1 for end in [*starts[1:], count]]
        leave = len(starts)  # a block after all returns
        after: list[list[int]] = []
        for end in last:
            x = array[end]
            ways = [block_of[x.imm]] if x.op == bra else [leave] if x.op == ret else []
            if (x.op not in (bra, ret) or x.pred >= 0) and end + 1 < count:
                ways.append(block_of[end + 1])
            after.append(ways)
        everything = (1 << leave + 1) - 1
        behind = [everything] * leave + [1 << leave]
        changed = True
        while changed:
            changed = False
            for k in reversed(range(leave)):
                new = everything
                for way in after[k]:
                    new &= behind[way]
                new |= 1 << k
                changed |= new != behind[k]
                behind[k] = new
        for k, end in enumerate(last):
            if array[end].op == bra and array[end].pred >= 0:
                rest = behind[k] & ~(1 << k)
                for p in range(leave):
                    if rest >> p & 1 and behind[p] == rest:
                        array[end].imm2 = starts[p]

    @functools.cached_property
    def control(self) -> set[int]:
        return {self.ops[x] for x in ("bra", "ret", "bar")}

    def constant(self, value: int, width: int) -> tuple[str, int]:
        name = self.constants.setdefault((value, width), f"#{len(self.constants)}")
        return name, width

    def width(self, name: str) -> int:
        kind = self.kernel.registers.get(name)
        if kind is None:
            raise PTXError(f"register {name} is not declared")
        return 1 if kind == "pred" else ptx.SIZES[kind]

    def read(self, x: Operand, width: int) -> tuple[str, int]:
        """A source operand of so many bytes (1: a predicate)."""
        if x.kind == "imm":
            value = ptx.immediate(x.text)
            if width == 1:
                return self.constant(0xFFFFFFFF if value else 0, 1)
            return self.constant(value & (1 << 8 * width) - 1, width)
        if x.kind == "symbol":
            return self.constant(self.shared_address(x.name), width)
        if x.kind != "reg" or x.negated:
            raise PTXError(f"operand {x.text!r}")
        if re.fullmatch(r"%(tid|ctaid|ntid|nctaid)\.[xyz]|%laneid|%warpid", x.name):
            self.special[x.name] = x.name
            return x.name, 4
        if self.width(x.name) != width:
            raise PTXError(f"{x.name} has {self.width(x.name)} bytes, not {width}")
        return x.name, width

    def write(self, x: Operand, width: int) -> tuple[str, int]:
        if x.name == "_":
            return f"sink{width}", width
        if x.kind != "reg" or self.width(x.name) != width:
            raise PTXError(f"destination {x.text!r} does not have {width} bytes")
        return x.name, width

    def shared_address(self, name: str) -> int:
        at = SHARED_BASE
        for other, size in sorted(self.kernel.shared.items(), key=lambda x: x[1] is None):
            if other == name:
                return at
            at += -(-(size or 0) // 16) * 16
        raise PTXError(f"symbol {name}")

    def translate(self, i: Instruction) -> dict[str, Any]:
        try:
            item = self.decode(i)
            item["op"] = self.ops[item["op"]]
        except (PTXError, KeyError, IndexError, ValueError) as error:
            raise PTXError(f"line {i.line}: {i.text!r} is not implemented ({error})") from error
        if i.predicate:
            item["predicate"] = i.predicate
            if self.width(i.predicate) != 1:
                raise PTXError(f"line {i.line}: predicate {i.predicate}")
            item["neg"] = item.get("neg", 0) | int(i.negated)
        return item

    def decode(self, i: Instruction) -> dict[str, Any]:
        parts, ops = i.parts, i.operands
        name, kind = parts[0], parts[-1]

        def simple(op: str, width: int, sources: int | None = None) -> dict[str, Any]:
            count = len(ops) - 1 if sources is None else sources
            if len(ops) != count + 1:
                raise PTXError(f"{len(ops)} operands")
            read = [self.read(x, width) for x in ops[1:]]
            return {"op": op, "o": [self.write(ops[0], width), *read]}

        def only(*allowed: str) -> None:
            extra = set(parts[1:-1]) - set(allowed)
            if extra:
                raise PTXError(f"modifiers {sorted(extra)}")

        bits = {"b": "b", "u": "u", "s": "s", "f": "f"}.get(kind[0], "")
        size = ptx.SIZES.get(kind, 0)

        if name == "bra":
            only("uni")
            return {"op": "bra", "imm": self.kernel.labels[ops[0].name]}
        if i.opcode == "ret" or i.opcode == "exit":
            return {"op": "ret"}
        if i.opcode == "trap":
            return {"op": "trap"}
        if i.opcode in ("bar.sync", "barrier.sync", "barrier.cta.sync", "barrier.sync.aligned"):
            if len(ops) != 1 or ops[0].text != "0":
                raise PTXError("a barrier other than bar.sync 0")
            return {"op": "bar"}
        if i.opcode == "bar.warp.sync":
            return self.synchronous({"op": "warpsync", "o": [self.read(ops[0], 4)]}, 0)
        if i.opcode in ("fence.proxy.async", "membar.cta", "membar.gl", "fence.acq_rel.cta"):
            return {"op": "nop"}

        if name == "mov":
            return self.decode_mov(i, size)
        if kind == "pred" and name in ("and", "or", "xor", "not"):
            return simple(f"{name}_pred", 1, 1 if name == "not" else 2)
        if name == "setp":
            return self.decode_setp(i)
        if name == "selp":
            width = size
            o = [self.write(ops[0], width), self.read(ops[1], width), self.read(ops[2], width)]
            return {"op": f"selp_b{8 * width}", "o": [*o, self.read(ops[3], 1)]}
        if name == "cvt":
            return self.decode_cvt(i)
        if name in ("ld", "st", "ldmatrix", "stmatrix", "atom"):
            return self.decode_memory(i)
        if name in ("shfl", "vote", "activemask", "redux", "match"):
            return self.decode_warp(i)

        if kind in ("f32", "f64"):
            return self.decode_float(i, simple, only)
        if kind in ("f16", "bf16", "f16x2", "bf16x2"):
            only()
            if name in ("neg", "abs"):
                return simple(f"{name}_b16x2" if "x2" in kind else f"{name}_b16", size)
            raise PTXError("half-precision arithmetic")

        # Integers.
        if name in ("and", "or", "xor", "not"):
            only()
            return simple(f"{name}_{kind}", size)
        if name in ("add", "sub"):
            only()
            return simple(f"{name}_b{8 * size}", size, 2)
        if name in ("mul", "mad"):
            mode = parts[1]
            if mode == "lo" and parts[2:] == [kind]:
                return simple(f"{name}_lo_b{8 * size}", size, 2 if name == "mul" else 3)
            if mode == "hi" and name == "mul" and parts[2:] == [kind]:
                return simple(f"mul_hi_{kind}", size, 2)
            if mode == "wide" and parts[2:] == [kind]:
                o = [self.write(ops[0], 2 * size), self.read(ops[1], size), self.read(ops[2], size)]
                if name == "mad":
                    o.append(self.read(ops[3], 2 * size))
                return {"op": f"{name}_wide_{kind}", "o": o}
            raise PTXError("mode of the product")
        if name in ("div", "rem", "abs", "neg", "min", "max"):
            only()
            return simple(f"{name}_{kind}", size)
        if name in ("shl", "shr"):
            only()
            kind = kind.replace("b", "u") if name == "shr" else f"b{8 * size}"
            o = [self.write(ops[0], size), self.read(ops[1], size), self.read(ops[2], 4)]
            return {"op": f"{name}_{kind}", "o": o}
        if name == "shf":
            return simple(f"shf_{parts[1]}_{parts[2]}", 4, 3)
        if name == "bfe":
            o = [self.write(ops[0], size), self.read(ops[1], size)]
            return {"op": f"bfe_{kind}", "o": [*o, self.read(ops[2], 4), self.read(ops[3], 4)]}
        if name == "bfi":
            o = [self.write(ops[0], size), self.read(ops[1], size), self.read(ops[2], size)]
            return {"op": f"bfi_{kind}", "o": [*o, self.read(ops[3], 4), self.read(ops[4], 4)]}
        if i.opcode == "prmt.b32":
            return simple("prmt_b32", 4, 3)
        if i.opcode == "lop3.b32":
            o = [self.write(ops[0], 4), *[self.read(x, 4) for x in ops[1:4]]]
            return {"op": "lop3_b32", "o": o, "imm": ptx.immediate(ops[4].text)}
        if name in ("popc", "clz"):
            return {"op": f"{name}_{kind}", "o": [self.write(ops[0], 4), self.read(ops[1], size)]}
        if name == "brev":
            return simple(f"brev_{kind}", size, 1)
        raise PTXError(f"opcode {i.opcode} ({bits})")

    def decode_mov(self, i: Instruction, size: int) -> dict[str, Any]:
        to, source = i.operands
        if i.parts[-1] == "pred":
            return {"op": "mov_pred", "o": [self.write(to, 1), self.read(source, 1)]}
        if len(i.parts) != 2:
            raise PTXError("modifiers")
        if source.kind == "vector":
            count, part = len(source.parts), size // len(source.parts)
            op = {(4, 2): "pack_b32", (8, 2): "pack_b64", (8, 4): "pack4_b64"}[size, count]
            return {
                "op": op,
                "o": [self.write(to, size), *[self.read(x, part) for x in source.parts]],
            }
        if to.kind == "vector":
            count, part = len(to.parts), size // len(to.parts)
            op = {(4, 2): "unpack_b32", (8, 2): "unpack_b64", (8, 4): "unpack4_b64"}[size, count]
            # Sinks of the same name must not be written twice in one loop; they are never read.
            return {
                "op": op,
                "o": [*[self.write(x, part) for x in to.parts], self.read(source, size)],
            }
        if source.kind == "imm" and i.parts[-1] == "f64" and source.text[:2] in ("0f", "0F"):
            raise PTXError("a literal of 32 bits")
        return {"op": f"mov_b{8 * size}", "o": [self.write(to, size), self.read(source, size)]}

    def decode_setp(self, i: Instruction) -> dict[str, Any]:
        parts, ops = i.parts, list(i.operands)
        kind, how, rest = parts[-1], parts[1], parts[2:-1]
        if kind in ("f16x2", "bf16x2"):
            if rest or ops[0].kind != "pair":
                raise PTXError("form")
            o = [self.write(x, 1) for x in ops[0].parts] + [self.read(x, 4) for x in ops[1:]]
            return {"op": f"setp_{kind}", "o": o, "sub": COMPARE[how]}
        rest = [x for x in rest if x != "ftz" or kind != "f32"]
        if "ftz" in parts:
            raise PTXError("ftz")
        boolean = {(): 0, ("and",): 1, ("or",): 2, ("xor",): 3}[tuple(rest)]
        targets = ops[0].parts if ops[0].kind == "pair" else [ops[0], Operand("reg", "_", name="_")]
        size = ptx.SIZES[kind]
        typed = kind.replace("b", "s") if kind[0] == "b" and kind != "bf16" else kind
        if how in ("lo", "ls", "hi", "hs"):
            typed = typed.replace("s", "u")
        o = [self.write(x, 1) for x in targets]
        o += [self.read(ops[1], size), self.read(ops[2], size)]
        item: dict[str, Any] = {"op": f"setp_{typed}", "sub": COMPARE[how], "width": boolean}
        if boolean:
            extra = ops[3]
            item["size"] = int(extra.negated)
            extra = Operand(extra.kind, extra.text.lstrip("!"), extra.name)
            o.append(self.read(extra, 1))
        elif len(ops) != 3:
            raise PTXError("operands")
        return item | {"o": o}

    def decode_cvt(self, i: Instruction) -> dict[str, Any]:
        parts, ops = i.parts, i.operands
        to, source, how = parts[-2], parts[-1], parts[1:-2]
        if to in ("bf16x2", "f16x2") and source == "f32" and how == ["rn"]:
            o = [self.write(ops[0], 4), self.read(ops[1], 4), self.read(ops[2], 4)]
            return {"op": f"cvt_{to}_f32", "o": o}
        wide = {f"{t}{b}": b for t in "us" for b in (8, 16, 32, 64)}
        if to in wide and source in wide:
            if set(how) - {"sat"}:
                raise PTXError("rounding of integers")
            target, origin = self.width(ops[0].name), self.width(ops[1].name)
            o = [self.write(ops[0], target), self.read(ops[1], origin)]
            if not how and (to, source) in (("s64", "s32"), ("u64", "u32"), ("u32", "u64")):  # noqa: SIM102
                if (target, origin) == (wide[to] // 8, wide[source] // 8):
                    return {"op": f"cvt_{to}_{source}", "o": o}
            sub = (source[0] == "s") | (to[0] == "s") << 1 | bool(how) << 2
            fields = {
                "n": wide[source],
                "size": wide[to],
                "width": target,
                "imm": origin,
                "sub": sub,
            }
            return {"op": "cvt_int", "o": o, **fields}
        if to in wide:  # from float
            (rounding,) = how
            target = self.width(ops[0].name)
            o = [self.write(ops[0], target), self.read(ops[1], ptx.SIZES[source])]
            fields = {"n": wide[to], "width": target, "imm": int(to[0] == "s")}
            if source not in ("f32", "f64"):
                raise PTXError("half precision to integer")
            return {"op": f"cvt_int_{source}", "o": o, "sub": ROUNDING[rounding], **fields}
        if source in wide:  # to float
            if how != ["rn"] or to not in ("f32", "f64"):
                raise PTXError("rounding")
            origin = self.width(ops[1].name)
            o = [self.write(ops[0], ptx.SIZES[to]), self.read(ops[1], origin)]
            fields = {"n": wide[source], "width": origin, "imm": int(source[0] == "s")}
            return {"op": f"cvt_{to}_int", "o": o, **fields}
        o = [self.write(ops[0], ptx.SIZES[to]), self.read(ops[1], ptx.SIZES[source])]
        if to == source:
            (rounding,) = how
            return {"op": f"cvt_round_{to}", "o": o, "sub": ROUNDING[rounding]}
        wanted = [] if ptx.SIZES[to] > ptx.SIZES[source] else ["rn"]
        if how != wanted:
            raise PTXError("rounding")
        return {"op": f"cvt_{to}_{source}", "o": o}

    def decode_memory(self, i: Instruction) -> dict[str, Any]:
        parts, ops = i.parts, i.operands
        name, kind = parts[0], parts[-1]
        if name in ("ldmatrix", "stmatrix"):
            trans = "trans" in parts
            if [x for x in parts if x != "trans"][1:4] != ["sync", "aligned", "m8n8"]:
                raise PTXError("form")
            count = int(next(x for x in parts if re.fullmatch("x[124]", x))[1:])
            address, vector = (ops[1], ops[0]) if name == "ldmatrix" else (ops[0], ops[1])
            if parts[-2:] != ["shared", "b16"] or len(vector.parts) != count:
                raise PTXError("form")
            access = self.write if name == "ldmatrix" else self.read
            o = [access(x, 4) for x in vector.parts] + [self.address(address, 4)]
            item = {"op": name, "o": o, "n": count, "sub": int(trans), "imm": address.offset}
            return item | {"sync": self.constant(0xFFFFFFFF, 4)[0]}
        if name == "atom":
            space = parts[1]
            rest = [x for x in parts[2:] if x not in ("gpu", "cta", "sys", "acq_rel", "relaxed")]
            sub, size = ATOMIC[rest[0], rest[1]], ptx.SIZES[rest[1]]
            o = [self.write(ops[0], size), self.address(ops[1], 8 if space == "global" else 4)]
            o += [self.read(x, size) for x in ops[2:]]
            return {"op": f"atom_{space}", "o": o, "size": size, "sub": sub, "imm": ops[1].offset}

        space = parts[1]
        hints = re.compile(r"L[12](::\w+)*|evict_\w+|nc|volatile")
        rest = [x for x in parts[2:-1] if not hints.fullmatch(x)]
        count = 1
        if rest and re.fullmatch("v[248]", rest[0]):
            count = int(rest.pop(0)[1:])
        if rest:
            raise PTXError(f"modifiers {rest}")
        size = ptx.SIZES[kind]
        value, address = (ops[0], ops[1]) if name == "ld" else (ops[1], ops[0])
        values = value.parts if value.kind == "vector" else [value]
        if len(values) != count or len(ops) != 2:
            raise PTXError("form")
        widths = {self.width(x.name) for x in values if x.kind == "reg" and x.name != "_"}
        width = max(widths, default=max(size, 2))
        fields = {"n": count, "size": size, "width": width, "sub": int(kind[0] == "s")}
        if space == "param":
            if name != "ld" or count != 1:
                raise PTXError("form")
            (where,) = [p for p in self.kernel.parameters if p.name == address.name]
            fields["imm"] = where.offset + address.offset
            return {"op": "ld_param", "o": [self.write(values[0], width)], **fields}
        if space not in ("global", "shared"):
            raise PTXError(f"space {space}")
        access = self.write if name == "ld" else self.read
        o = [access(x, width) for x in values]
        o.append(self.address(address, 8 if space == "global" else 4))
        return {"op": f"{name}_{space}", "o": o, **fields, "imm": address.offset}

    def address(self, x: Operand, width: int) -> tuple[str, int]:
        if x.kind != "address":
            raise PTXError(f"address {x.text!r}")
        if x.name in self.kernel.shared:
            return self.constant(self.shared_address(x.name), width)
        return self.read(Operand("reg", x.name, name=x.name), width)

    def synchronous(self, item: dict[str, Any], mask: int) -> dict[str, Any]:
        """An instruction whose operand ``mask`` names the lanes that execute it together."""
        return item | {"sync": item["o"][mask][0]}

    def decode_warp(self, i: Instruction) -> dict[str, Any]:
        parts, ops = i.parts, i.operands
        name = parts[0]
        if name == "shfl" and parts[1] == "sync" and parts[3] == "b32":
            targets = (
                ops[0].parts if ops[0].kind == "pair" else [ops[0], Operand("reg", "_", name="_")]
            )
            o = [self.write(targets[0], 4), self.write(targets[1], 1)]
            o += [self.read(x, 4) for x in ops[1:5]]
            return self.synchronous({"op": f"shfl_{parts[2]}", "o": o}, 5)
        if name == "redux" and parts[1] == "sync":
            op = f"redux_{parts[2]}" + (
                "" if parts[3] == "b32" or parts[2] == "add" else f"_{parts[3]}"
            )
            o = [self.write(ops[0], 4), self.read(ops[1], 4), self.read(ops[2], 4)]
            return self.synchronous({"op": op, "o": o}, 2)
        if name == "vote" and parts[1] == "sync":
            width = 4 if parts[2] == "ballot" else 1
            source = ops[1]
            plain = Operand(source.kind, source.text.lstrip("!"), source.name)
            o = [self.write(ops[0], width), self.read(plain, 1), self.read(ops[2], 4)]
            item = {"op": f"vote_{parts[2]}", "o": o, "neg": 2 * source.negated}
            return self.synchronous(item, 2)
        if i.opcode == "activemask.b32":
            return {"op": "activemask", "o": [self.write(ops[0], 4)]}
        if i.opcode == "match.any.sync.b32":
            o = [self.write(ops[0], 4), self.read(ops[1], 4), self.read(ops[2], 4)]
            return self.synchronous({"op": "match_any_b32", "o": o}, 2)
        raise PTXError("form")

    def decode_float(
        self, i: Instruction, simple: Callable[..., Any], only: Callable[..., None]
    ) -> dict[str, Any]:
        parts = i.parts
        name, kind = parts[0], parts[-1]
        size = ptx.SIZES[kind]
        flush = "_ftz" if "ftz" in parts else ""
        if name in ("add", "sub", "mul", "fma"):
            only("rn", "ftz")
            return simple(f"{name}{flush}_{kind}", size, 3 if name == "fma" else 2)
        if name in ("neg", "abs"):
            only("ftz")
            return simple(f"{name}{flush}_{kind}", size, 1)
        if name in ("min", "max"):
            only("NaN")
            return simple(f"{name}{'_nan' if 'NaN' in parts else ''}_{kind}", size, 2)
        if name == "copysign":
            only()
            return simple(f"copysign_{kind}", size, 2)
        if name == "div":
            only("full", "rn", "approx", "ftz") if kind == "f32" else only("rn")
            full = "_full" if {"full", "approx"} & set(parts) else ""
            return simple(f"div{full}{flush}_{kind}", size, 2)
        if i.opcode == "rcp.approx.ftz.f64":
            return simple("rcp_gross_f64", 8, 1)
        if i.opcode == "rsqrt.approx.f64":
            return simple("rsqrt_f64", 8, 1)
        if name in ("rcp", "sqrt"):
            only("rn", "approx", "ftz") if kind == "f32" else only("rn")
            return simple(f"{name}{flush}_{kind}", size, 1)
        if name in ("ex2", "lg2", "rsqrt") and kind == "f32":
            only("approx", "ftz")
            return simple(f"{name}{flush}_f32", 4, 1)
        if name in ("sin", "cos", "tanh") and kind == "f32":
            only("approx")
            return simple(f"{name}_f32", 4, 1)
        raise PTXError("opcode")


KINDS = {
    1: "global-out-of-bounds", 2: "global-outside-view", 3: "global-misaligned",
    4: "global-uninitialised", 5: "shared-out-of-bounds", 6: "shared-misaligned",
    7: "shared-uninitialised", 8: "shared-race", 9: "global-race", 10: "race-between-programs",
    11: "shared-race-ordered-by-shuffle-only", 12: "global-race-ordered-by-shuffle-only",
    13: "barrier-in-divergent-code", 14: "barrier-with-exited-threads", 15: "barriers-differ",
    16: "warp-mask-not-converged", 17: "deadlock", 18: "integer-division-by-zero",
    19: "pointer-of-unknown-origin", 20: "trap", 21: "instruction-budget-exceeded",
}  # fmt: skip
HAZARDS = ("read-after-write", "write-after-read", "write-after-write")


@dataclass
class Finding:
    """What a sanitizer found at an instruction (and at another one, for races)."""

    kernel: str
    kind: str
    instruction: Instruction
    other: Instruction | None
    argument: str
    landed: str
    hazard: str
    same_value: int  # of ``count``: times that the value written was there already
    count: int
    address: int
    where: str
    threads: tuple[tuple[int, int], tuple[int, int]]  # (program, thread) of both
    detail: int = 0

    @property
    def benign(self) -> bool:
        """A race of writes that left every time what was there: no order of them shows."""
        return bool(self.hazard) and self.hazard != HAZARDS[0] and self.same_value == self.count

    def __str__(self) -> str:
        i, o = self.instruction, self.other
        text = f"{self.kernel}: {self.kind} x{self.count}: line {i.line} `{i.text}` ({i.source})"
        text += f" by program {self.threads[0][0]} thread {self.threads[0][1]}"
        if self.hazard:
            text += f", {self.hazard}"
            if self.same_value:
                text += f" (same value {self.same_value}x)"
        if o is not None:
            text += f", against line {o.line} `{o.text}` ({o.source})"
            text += f" by program {self.threads[1][0]} thread {self.threads[1][1]}"
        if self.argument:
            text += f", pointer {self.argument}"
        if self.where:
            text += f", {self.where}"
        if self.landed:
            text += f", in the memory of {self.landed}"
        return text


class Pages:
    """The table of a memory's shadow; the machine makes its pages."""

    def __init__(self, count: int) -> None:
        self.table = np.zeros(count, np.uint64)

    def __del__(self) -> None:
        library()[0].free_shadow(self.table.ctypes.data, len(self.table))


@dataclass
class Memory:
    """Host memory that a launch may touch: bytes, which were written, and a shadow for races."""

    lo: int
    hi: int
    granule: int = 4
    init: np.ndarray | None = None
    shadow: Pages | None = None


@dataclass
class Argument:
    """A pointer parameter: the memory it points into and the part that its tensor covers."""

    name: str
    memory: Memory | None
    view_lo: int = 0
    view_hi: int = 0


@dataclass
class Result:
    findings: list[Finding]
    counts: np.ndarray  # per instruction: count, threads, requests, sectors, ideal, bytes
    executed: int
    program: Program = field(repr=False)


@functools.lru_cache(maxsize=512)
def program_of(text: str) -> Program:
    return Program(ptx.parse(text))


def run(
    program: Program,
    grid: tuple[int, int, int],
    threads: int,
    shared: int,
    params: bytes,
    arguments: list[Argument],
    races: bool = True,
    poison: int = 0xFF,
    seed: int = 0,
    budget: int = 1 << 33,
    programs: list[range] | None = None,
) -> Result:
    """Run a grid, or some ``programs`` of it; ``arguments`` go with the pointer parameters."""
    kernel, lib = program.kernel, program.lib
    memories: list[Memory] = []
    for a in arguments:
        if a.memory is not None and all(a.memory is not m for m in memories):
            memories.append(a.memory)
    page = lib.sizes(7)
    allocs = (CAlloc * max(1, len(memories)))()
    for x, m in zip(allocs, memories, strict=False):
        x.lo, x.hi, x.granule = m.lo, m.hi, m.granule
        x.init = m.init.ctypes.data if m.init is not None else None
        if races:
            if m.shadow is None:
                m.shadow = Pages(((m.hi - m.lo) // m.granule) // page + 2)
            x.shadow = m.shadow.table.ctypes.data
    args = (CArg * max(1, len(arguments)))()
    for y, a in zip(args, arguments, strict=False):
        y.alloc = -1
        if a.memory is not None:
            y.alloc = next(k for k, m in enumerate(memories) if m is a.memory)
            y.view_lo, y.view_hi = a.view_lo, a.view_hi
    pointers = [p for p in kernel.parameters if p.pointer]
    if len(pointers) != len(arguments):
        raise PTXError(f"{len(arguments)} pointers for {len(pointers)} parameters")
    block = kernel.parameters[-1].offset + kernel.parameters[-1].size if kernel.parameters else 0
    if len(params) != block:
        raise PTXError(f"{len(params)} bytes of parameters instead of {block}")
    param_arg = np.full(block // 8 + 2, -1, np.int32)
    for k, p in enumerate(pointers):
        param_arg[p.offset // 8] = k
    counts = np.zeros((len(program.code), 6), np.uint64)
    findings = (CFinding * 4096)()
    buffer = c.create_string_buffer(params, max(1, len(params)))
    launch = CLaunch(threads=threads, shared_bytes=shared + program.static_shared)
    launch.grid[:] = grid
    launch.n_args, launch.n_allocs, launch.n_params = len(arguments), len(memories), block
    launch.params, launch.param_arg = c.addressof(buffer), param_arg.ctypes.data
    launch.args, launch.allocs = c.addressof(args), c.addressof(allocs)
    launch.races, launch.poison, launch.seed, launch.budget = int(races), poison, seed, budget
    launch.counts, launch.findings = counts.ctypes.data, c.addressof(findings)
    launch.max_findings = len(findings)
    for span in programs if programs is not None else [range(grid[0] * grid[1] * grid[2])]:
        launch.cta_from, launch.cta_to = span.start, span.stop
        with RUNNING:
            lib.run(c.byref(program.program), c.byref(launch))

    def named(k: int) -> str:
        return arguments[k].name if 0 <= k < len(arguments) else ""

    reported = []
    for f in findings[: launch.n_findings]:
        kind = KINDS[f.kind]
        races_kind = "race" in kind
        where = ""
        if f.address and kind.startswith("shared"):
            where = f"shared byte {f.address - SHARED_BASE} of {shared}"
        elif f.address and kind != "warp-mask-not-converged" and "barrier" not in kind:
            a = arguments[f.arg] if 0 <= f.arg < len(arguments) else None
            if a is not None and a.memory is not None:
                where = f"byte {f.address - a.view_lo} of {a.view_hi - a.view_lo}"
            else:
                where = f"address {f.address:#x}"
        second = (f.cta2, f.thread2) if races_kind else (0, 0)
        other = (
            kernel.instructions[f.pc2] if races_kind and f.pc2 < len(kernel.instructions) else None
        )
        reported.append(
            Finding(
                kernel.name,
                kind,
                kernel.instructions[min(f.pc, len(kernel.instructions) - 1)],
                other,
                named(f.arg),
                named(f.landed),
                HAZARDS[f.hazard] if races_kind else "",
                f.same,
                f.count,
                f.address,
                where,
                ((f.cta, f.thread), second),
                f.pc2,
            )
        )
    return Result(reported, counts, launch.executed, program)
