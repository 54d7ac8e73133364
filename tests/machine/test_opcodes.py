"""Every instruction against its definition, on edges and random bits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest

from . import definitions as d
from . import native
from .by_hand import launch
from .definitions import integer, number, pattern
from .program import Program
from .ptx import SIZES, PTXError, parse

FLOATS = ("f32", "f64")
ROUNDINGS = ("rzi", "rni", "rmi", "rpi")
ORDERED = ("eq", "ne", "lt", "le", "gt", "ge")
COMPARISONS = (*ORDERED, "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")


class Case(NamedTuple):
    """``want`` maps bit patterns of %a0, %a1 ... to that of %d; None: anything goes."""

    name: str
    inputs: str  # types
    to: str
    want: Callable[..., int | None]
    body: str = ""  # if it is not just the instruction

    @property
    def text(self) -> str:
        operands = ", ".join(f"%a{k}" for k in range(len(self.inputs.split())))
        return self.body or f"{self.name} %d, {operands};"


def compare(how: str, kind: str) -> Case:
    body = f"setp.{how}.{kind} %p0, %a0, %a1;\nselp.b32 %d, 1, 0, %p0;"
    return Case(f"setp.{how}.{kind}", f"{kind} {kind}", "b32", d.compared(how, kind), body)


BOTH = "selp.b32 %r4, 1, 0, %p0;\nselp.b32 %r5, 2, 0, %p1;\nor.b32 %d, %r4, %r5;"


def integers() -> Iterator[Case]:
    for n in (16, 32, 64):
        s, u, b = f"s{n}", f"u{n}", f"b{n}"
        for name, f in {"add": int.__add__, "sub": int.__sub__, "mul.lo": int.__mul__}.items():
            yield Case(f"{name}.{s}", f"{s} {s}", s, f)
        yield Case(f"mad.lo.{s}", f"{s} {s} {s}", s, lambda x, y, z: x * y + z)
        yield Case(f"mov.{b}", b, b, lambda x: x)
        yield Case(f"neg.{s}", s, s, lambda x: -x)
        yield Case(f"abs.{s}", s, s, lambda x, s=s: abs(integer(x, s)))
        yield Case(f"not.{b}", b, b, lambda x: ~x)
        for name, f in {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}.items():
            yield Case(f"{name}.{b}", f"{b} {b}", b, f)
        for name, f in {"min": min, "max": max}.items():
            for kind in (s, u):
                want = lambda x, y, f=f, k=kind: f(integer(x, k), integer(y, k))
                yield Case(f"{name}.{kind}", f"{kind} {kind}", kind, want)
        yield Case(f"shl.{b}", f"{b} u32", b, lambda x, y, n=n: x << min(y, n))
        for kind in (s, u):
            want = lambda x, y, k=kind, n=n: integer(x, k) >> min(y, n)
            yield Case(f"shr.{kind}", f"{kind} u32", kind, want)
        body = f"setp.ne.s32 %p0, %a2, 0;\nselp.{b} %d, %a0, %a1, %p0;"
        yield Case(f"selp.{b}", f"{b} {b} s32", b, lambda x, y, z: x if z else y, body)
        yield from (compare(how, kind) for how in ORDERED for kind in (s, u))
        yield from (compare(how, u) for how in ("lo", "ls", "hi", "hs"))
        yield from (compare(how, b) for how in ("eq", "ne"))
    for n in (32, 64):
        b = f"b{n}"
        for kind in (f"s{n}", f"u{n}"):
            value = lambda x, k=kind: integer(x, k)
            hi = lambda x, y, v=value, n=n: v(x) * v(y) >> n
            div = lambda x, y, v=value: d.quotient_of_integers(v(x), v(y)) if y else None
            rem = lambda x, y, v=value, q=div: v(x) - v(y) * q(x, y) if y else None
            for name, f in {"mul.hi": hi, "div": div, "rem": rem}.items():
                yield Case(f"{name}.{kind}", f"{kind} {kind}", kind, f)
            want = lambda x, p, c, n=n, k=kind: d.extracted(x, p, c, n, k[0] == "s")
            yield Case(f"bfe.{kind}", f"{kind} u32 u32", kind, want)
        want = lambda x, y, p, c, n=n: d.inserted(x, y, p, c, n)
        yield Case(f"bfi.{b}", f"{b} {b} u32 u32", b, want)
        yield Case(f"popc.{b}", b, "u32", int.bit_count)
        yield Case(f"clz.{b}", b, "u32", lambda x, n=n: n - x.bit_length())
        yield Case(f"brev.{b}", b, b, lambda x, n=n: int(f"{x:0{n}b}"[::-1], 2))
    for kind in ("s16", "u16", "s32", "u32"):
        wide = f"{kind[0]}{2 * d.bits(kind)}"
        value = lambda x, k=kind: integer(x, k)
        yield Case(f"mul.wide.{kind}", f"{kind} {kind}", wide, lambda x, y, v=value: v(x) * v(y))
        if "32" in kind:
            want = lambda x, y, z, v=value: v(x) * v(y) + z
            yield Case(f"mad.wide.{kind}", f"{kind} {kind} {wide}", wide, want)
    for side, mode in itertools.product("lr", ("wrap", "clamp")):

        def funnel(low: int, high: int, n: int, side: str = side, mode: str = mode) -> int:
            n = n & 31 if mode == "wrap" else min(n, 32)
            both = high << 32 | low
            return both << n >> 32 if side == "l" else both >> n

        yield Case(f"shf.{side}.{mode}.b32", "b32 b32 u32", "b32", funnel)
    yield Case("prmt.b32", "b32 b32 b32", "b32", d.permuted)
    for table in (0x80, 0xFE, 0x96, 0xE8, 0x1B):
        body = f"lop3.b32 %d, %a0, %a1, %a2, {table};"
        want = lambda x, y, z, t=table: d.by_table(x, y, z, t)
        yield Case(f"lop3.b32 {table:#x}", "b32 b32 b32", "b32", want, body)


def predicates() -> Iterator[Case]:
    functions = {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}
    less = d.compared("lt", "s32")
    for (name, f), bang in itertools.product(functions.items(), ("", "!")):
        body = f"setp.ne.s32 %p2, %a2, 0;\nsetp.lt.{name}.s32 %p0|%p1, %a0, %a1, {bang}%p2;\n{BOTH}"

        def both(x: int, y: int, z: int, f=f, bang: str = bang) -> int:
            c = int((z == 0) == bool(bang))
            return f(less(x, y), c) | f(1 - less(x, y), c) << 1

        yield Case(f"setp.lt.{name}.s32 {bang}", "s32 s32 s32", "b32", both, body)
    for name, f in functions.items():
        body = f"setp.ne.s32 %p2, %a0, 0;\nsetp.ne.s32 %p3, %a1, 0;\n{name}.pred %p0, %p2, %p3;\n"
        body += "not.pred %p4, %p0;\nmov.pred %p1, %p4;\n" + BOTH
        want = lambda x, y, f=f: 1 if f(int(x != 0), int(y != 0)) else 2
        yield Case(f"{name}.pred", "s32 s32", "b32", want, body)
    for kind in ("f16", "bf16"):
        for how in ("lt", "gt", "ne", "eq", "neu"):
            yield compare(how, kind)
            body = f"setp.{how}.{kind}x2 %p0|%p1, %a0, %a1;\n{BOTH}"
            f = d.compared(how, kind)
            want = lambda x, y, f=f: f(x & 0xFFFF, y & 0xFFFF) | f(x >> 16, y >> 16) << 1
            yield Case(f"setp.{how}.{kind}x2", "b32 b32", "b32", want, body)
    yield from (compare(how, kind) for how in COMPARISONS for kind in FLOATS)


def vectors() -> Iterator[Case]:
    """mov between a register and its parts."""
    swapped = lambda x, n: x >> n | (x & (1 << n) - 1) << n
    body = "mov.b32 {%h0, %h1}, %a0;\nmov.b32 %d, {%h1, %h0};"
    yield Case("mov.b32 of 2", "b32", "b32", lambda x: swapped(x, 16), body)
    body = "mov.b64 {%r4, %r5}, %a0;\nmov.b64 %d, {%r5, %r4};"
    yield Case("mov.b64 of 2", "b64", "b64", lambda x: swapped(x, 32), body)
    body = "mov.b64 {%h0, %h1, %h2, %h3}, %a0;\nmov.b64 %d, {%h3, %h2, %h1, %h0};"
    want = lambda x: swapped(swapped(x, 32) & 0xFFFFFFFF, 16) | swapped(x & 0xFFFFFFFF, 16) << 32
    yield Case("mov.b64 of 4", "b64", "b64", want, body)


def conversions() -> Iterator[Case]:
    kinds = ("u16", "s16", "u32", "s32", "u64", "s64")
    for to, source in itertools.product(kinds, repeat=2):
        yield Case(f"cvt.{to}.{source}", source, to, lambda x, s=source: integer(x, s))
    for to, source in itertools.product(("u8", "s8", "u16", "s16", "u32", "s32"), ("s32", "u64")):
        n = d.bits(to)
        low, high = (-(1 << n - 1), (1 << n - 1) - 1) if to[0] == "s" else (0, (1 << n) - 1)
        want = lambda x, s=source, a=low, b=high: max(a, min(b, integer(x, s)))
        register = "b16" if n < 16 else to
        yield Case(f"cvt.sat.{to}.{source}", source, register, want)
    for to in ("s8", "u8"):  # into a wider register
        yield Case(f"cvt.{to}.s32", "s32", "b32", lambda x, t=to: integer(x & 255, t))
    for kind in FLOATS:
        for to in ("s32", "u32", "s64", "u64"):
            for how in ROUNDINGS:
                want = lambda x, k=kind, t=to, h=how: d.to_integer(number(x, k), t, h, k)
                yield Case(f"cvt.{how}.{to}.{kind}", kind, to, want)
            want = lambda x, k=kind, t=to: pattern(Fraction(integer(x, t)), k)
            yield Case(f"cvt.rn.{kind}.{to}", to, kind, want)
        for how in ROUNDINGS:

            def whole(x: int, k: str = kind, h: str = how) -> int:
                v = number(x, k)
                if not d.is_finite(v):
                    return pattern(v, k)
                f = {"rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil, "rni": round}[h]
                return pattern(Fraction(f(d.exact(v))), k) or x & 1 << d.bits(k) - 1

            yield Case(f"cvt.{how}.{kind}.{kind}", kind, kind, whole)

    def convert(to: str, source: str) -> Callable[[int], int | None]:
        def want(x: int) -> int | None:
            v = number(x, source)
            if d.is_nan(v) and to == "f32" and source in ("bf16", "f16"):
                return None  # the payload is not specified
            return pattern(v, to)

        return want

    for to, source in [("f32", "f16"), ("f32", "bf16"), *itertools.product(["f64"], d.FORMATS)]:
        if to != source:
            yield Case(f"cvt.{to}.{source}", source, to, convert(to, source))
    for to, source in itertools.product(("f16", "bf16", "f32"), FLOATS):
        if to != source:
            yield Case(f"cvt.rn.{to}.{source}", source, to, convert(to, source))
    for kind in ("f16", "bf16"):
        f = convert(kind, "f32")
        want = lambda x, y, f=f: f(x) << 16 | f(y)
        yield Case(f"cvt.rn.{kind}x2.f32", "f32 f32", "b32", want)


def on_numbers(kind: str, f: Callable[..., d.Number], ftz: bool = False) -> Callable[..., int]:
    """Rounded once; with ``ftz`` subnormal sources and results are zeros."""
    flush = d.flushed if ftz else lambda x: x
    return lambda *x: flush(pattern(f(*(number(flush(v), kind) for v in x)), kind))


def floats() -> Iterator[Case]:
    functions: list[tuple[str, int, Callable[..., d.Number]]] = [
        ("add", 2, d.total),
        ("sub", 2, lambda x, y: d.total(x, d.product(y, Fraction(-1)))),
        ("mul", 2, d.product),
        ("fma.rn", 3, lambda x, y, z: d.total(d.product(x, y), z)),
        ("div.rn", 2, d.quotient),
        ("rcp.rn", 1, lambda x: d.quotient(Fraction(1), x)),
        ("sqrt.rn", 1, d.root),
    ]
    for name, count, f in functions:
        for kind, ftz in (("f32", ""), ("f32", ".ftz"), ("f64", "")):
            inputs = " ".join([kind] * count)
            yield Case(f"{name}{ftz}.{kind}", inputs, kind, on_numbers(kind, f, bool(ftz)))
    for kind in (*FLOATS, "f16", "bf16"):
        sign = 1 << d.bits(kind) - 1
        yield Case(f"neg.{kind}", kind, kind, lambda x, t=sign: x ^ t)
        yield Case(f"abs.{kind}", kind, kind, lambda x, t=sign: x & ~t)
    for name, f in {"neg": lambda x: x ^ 1 << 31, "abs": lambda x: x & ~(1 << 31)}.items():
        # Which not-a-number comes of one is not specified.
        want = lambda x, f=f: None if d.is_nan(number(x, "f32")) else f(d.flushed(x))
        yield Case(f"{name}.ftz.f32", "f32", "f32", want)
    for kind in ("f16x2", "bf16x2"):
        yield Case(f"neg.{kind}", "b32", "b32", lambda x: x ^ 0x80008000)
        yield Case(f"abs.{kind}", "b32", "b32", lambda x: x & 0x7FFF7FFF)
    for kind, how in itertools.product(FLOATS, ("min", "max")):
        yield Case(f"{how}.{kind}", f"{kind} {kind}", kind, d.extreme(how, kind, False))
    for kind in FLOATS:
        sign = 1 << d.bits(kind) - 1
        want = lambda x, y, t=sign: x & t | y & ~t
        yield Case(f"copysign.{kind}", f"{kind} {kind}", kind, want)
    for how in ("min", "max"):
        yield Case(f"{how}.NaN.f32", "f32 f32", "f32", d.extreme(how, "f32", True))

    def gross(x: int) -> int | None:
        v = number(x, "f64")
        if not d.is_finite(v) or not Fraction(2) ** -1022 <= abs(d.exact(v)) <= Fraction(2) ** 1000:
            return None
        return pattern(1 / d.exact(v), "f64") & ~0xFFFFFFFF

    yield Case("rcp.approx.ftz.f64", "f64", "f64", gross)


CASES = [*integers(), *predicates(), *vectors(), *conversions(), *floats()]


def kernel(text: str, inputs: list[str], to: str) -> str:
    """Loads a register of each input type, %a0 ..., runs ``text`` and stores %d: a thread each."""
    storage = [f"b{max(16, d.bits(k))}" for k in [*inputs, to]]
    names = [*(f"%a{k}" for k in range(len(inputs))), "%d"]
    out = "".join(f".reg .{kind} {name};\n" for kind, name in zip(storage, names, strict=True))
    out += "mov.u32 %r0, %tid.x;\nmov.u32 %r1, %ctaid.x;\nmad.lo.s32 %r2, %r1, 128, %r0;\n"
    for k, (kind, name) in enumerate(zip(storage, names, strict=True)):
        out += f"ld.param.b64 %q0, [p{k}];\nmad.wide.s32 %q1, %r2, {SIZES[kind]}, %q0;\n"
        out += f"ld.global.{kind} {name}, [%q1];\n" if name != "%d" else ""
    return f"{out}{text}\nst.global.{storage[-1]} [%q1], %d;"


def evaluated(
    text: str, inputs: list[str], to: str, rows: list[tuple[int, ...]], **options: object
) -> list[int]:
    words = {16: np.uint16, 32: np.uint32, 64: np.uint64}
    kinds = [words[max(16, d.bits(k))] for k in [*inputs, to]]
    columns = [np.array(x, t) for x, t in zip(zip(*rows, strict=True), kinds, strict=False)]
    out = np.zeros(len(rows), kinds[-1])
    programs = len(rows) // 128
    result = launch(kernel(text, inputs, to), [*columns, out], 128, programs, **options)
    bad = [f for f in result.findings if f.kind != "integer-division-by-zero"]
    assert not bad, bad[0]
    return out.tolist()


def rows_of(inputs: list[str]) -> list[tuple[int, ...]]:
    """All pairs of edges and some random values (triples of fewer), and more random rows."""
    random = np.random.default_rng(0)
    columns = [d.values(kind, 30 if len(inputs) < 3 else 11, random) for kind in inputs]
    if len(inputs) == 4:
        columns = [x[:5] for x in columns]
    rows = list(itertools.product(*columns))
    rows += zip(*(d.values(kind, 384, random) for kind in inputs), strict=True)
    return rows[: len(rows) // 128 * 128]


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_definition(case: Case) -> None:
    inputs = case.inputs.split()
    rows = rows_of(inputs)
    got = evaluated(case.text, inputs, case.to, rows)
    wanted = [case.want(*row) for row in rows]
    assert sum(x is not None for x in wanted) > len(rows) // 4
    mask = (1 << max(16, d.bits(case.to))) - 1
    for row, x, want in zip(rows, got, wanted, strict=True):
        if want == -1 and case.to == "f64":
            ok = d.is_nan(number(x, "f64"))
        else:
            ok = want is None or x == want & mask
        assert ok, f"{[hex(v) for v in row]}: got {x:#x}, want {want:#x}"


# ---- approximations

ONE_ULP = lambda y: math.ulp(y) * 2**29
TWO_ULP = lambda y: 2 * ONE_ULP(y)
APPROXIMATE: dict[str, tuple[Callable[..., float], Callable[[float], float]]] = {
    # With the errors that PTX documents.
    "rcp.approx.f32": (lambda x: 1 / x, ONE_ULP),
    "sqrt.approx.f32": (math.sqrt, ONE_ULP),
    "rsqrt.approx.f32": (lambda x: 1 / math.sqrt(x), lambda y: abs(y) * 2**-22.9),
    "ex2.approx.f32": (lambda x: 2.0**x, TWO_ULP),
    "lg2.approx.f32": (math.log2, lambda y: 2**-22 * max(1.0, abs(y))),
    "sin.approx.f32": (lambda x: math.sin(x) if abs(x) < math.pi else math.nan, lambda y: 2**-20.5),
    "cos.approx.f32": (lambda x: math.cos(x) if abs(x) < math.pi else math.nan, lambda y: 2**-20.5),
    "tanh.approx.f32": (math.tanh, lambda y: abs(y) * 2**-11),
    "div.full.f32": (lambda x, y: x / y if abs(y) <= 2.0**126 else math.nan, TWO_ULP),
}  # fmt: skip
FLUSHING = [n.replace("approx", "approx.ftz").replace("full", "full.ftz") for n in APPROXIMATE]
FLUSHING.remove("tanh.approx.ftz.f32")


def float32(x: int) -> float:
    return float(np.uint32(x).view(np.float32))


@pytest.mark.parametrize("name", [*APPROXIMATE, *FLUSHING])
def test_approximation_keeps_its_error(name: str) -> None:
    function, error = APPROXIMATE[name.replace(".ftz", "")]
    ftz = ".ftz" in name
    inputs = ["f32"] * (2 if name.startswith("div") else 1)
    rows = rows_of(inputs)
    text = Case(name, " ".join(inputs), "f32", function).text
    results = [evaluated(text, inputs, "f32", rows, approximate=key) for key in (0, 1, 2)]
    # A key stands for another GPU's approximation: other bits, but always the same ones.
    assert results[0] != results[1] != results[2]
    assert results[1] == evaluated(text, inputs, "f32", rows, approximate=1)
    compared = 0
    for row, *got in zip(rows, *results, strict=True):
        values = [float32(d.flushed(x) if ftz else x) for x in row]
        try:
            want = function(*values)
        except (ValueError, OverflowError, ZeroDivisionError):
            continue
        if not math.isfinite(want) or not 2.0**-126 <= abs(want) < 2.0**128:
            continue
        for x in got:
            assert abs(float32(x) - want) <= error(want), (values, float32(x), want)
        compared += 1
    assert compared > 100


def test_reciprocal_root_of_float64() -> None:
    values = np.random.default_rng(0).uniform(1e-3, 1e3, 128)
    rows = [(int(x),) for x in values.view(np.uint64)]
    got = evaluated("rsqrt.approx.f64 %d, %a0;", ["f64"], "f64", rows)
    assert np.allclose(np.array(got, np.uint64).view(np.float64) * np.sqrt(values), 1, 0, 2**-32)


# ---- collectives

VALUES = np.random.default_rng(1).integers(0, 2**32, 128, dtype=np.uint32)
SHUFFLES: dict[str, Callable[[int, int, int], int]] = {
    "idx": lambda lane, b, w: (lane & ~(w - 1)) | (b % w),
    "up": lambda lane, b, w: lane - b if lane % w >= b else lane,
    "down": lambda lane, b, w: lane + b if lane % w + b < w else lane,
    "bfly": lambda lane, b, w: lane ^ b if (lane ^ b) // w <= lane // w else lane,
}


def of_warps(text: str) -> np.ndarray:
    rows = [(int(x),) for x in VALUES]
    return np.array(evaluated(text, ["b32"], "b32", rows), np.uint32).reshape(4, 32)


@pytest.mark.parametrize("width", [32, 16, 8])
@pytest.mark.parametrize("mode", SHUFFLES)
def test_shuffle(mode: str, width: int) -> None:
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    text = "mov.b32 %d, 0;\n"  # a different sum of all the shuffles for each way to err
    want = np.zeros(128, np.uint32)
    for b in range(width):
        text += f"shfl.sync.{mode}.b32 %r4, %a0, {b}, {clamp}, -1;\nmad.lo.s32 %d, %d, 31, %r4;\n"
        sources = [t // 32 * 32 + SHUFFLES[mode](t % 32, b, width) for t in range(128)]
        want = want * np.uint32(31) + VALUES[sources]
    assert np.array_equal(of_warps(text).reshape(-1), want)


def wrapped_sum(x: np.ndarray) -> int:
    return int(x.sum(dtype=np.uint64)) & 0xFFFFFFFF


REDUCTIONS: dict[str, Callable[[np.ndarray], int]] = {
    "or.b32": np.bitwise_or.reduce,
    "and.b32": lambda x: np.bitwise_and.reduce(x),
    "xor.b32": np.bitwise_xor.reduce,
    "add.u32": wrapped_sum,
    "min.u32": np.min,
    "max.u32": np.max,
    "min.s32": lambda x: np.min(x.view(np.int32)),
    "max.s32": lambda x: np.max(x.view(np.int32)),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction(name: str) -> None:
    got = of_warps(f"redux.sync.{name} %d, %a0, -1;")
    want = [int(REDUCTIONS[name](warp)) & 0xFFFFFFFF for warp in VALUES.reshape(4, 32)]
    assert got.tolist() == [[x] * 32 for x in want]


def test_votes() -> None:
    """Of bits that are set in all lanes, in some and in none."""
    odd = VALUES.reshape(4, 32) & 1
    odd[1], odd[2] = 1, 0
    text = "and.b32 %r4, %a0, 1;\nsetp.ne.s32 %p0, %r4, 0;\n"
    # Warps 1 and 2 vote alike: their number decides.
    text += "shr.u32 %r5, %r0, 5;\nsetp.eq.s32 %p2, %r5, 1;\nor.pred %p0, %p0, %p2;\n"
    text += "setp.ne.s32 %p2, %r5, 2;\nand.pred %p0, %p0, %p2;\n"
    ballot = of_warps(text + "vote.sync.ballot.b32 %d, %p0, -1;")
    assert ballot[:, 0].tolist() == [sum(int(x) << k for k, x in enumerate(w)) for w in odd]
    assert (ballot == ballot[:, :1]).all()
    wanted = {"any": [1, 1, 0, 1], "all": [0, 1, 0, 0], "uni": [0, 1, 1, 0]}
    for how, want in wanted.items():
        got = of_warps(f"{text}vote.sync.{how}.pred %p1, %p0, -1;\nselp.b32 %d, 1, 0, %p1;")
        assert got.tolist() == [[x] * 32 for x in want], how
    got = of_warps(f"{text}vote.sync.any.pred %p1, !%p0, -1;\nselp.b32 %d, 1, 0, %p1;")
    assert got[:, 0].tolist() == [1, 0, 1, 1]


def test_lanes_that_match() -> None:
    got = of_warps("and.b32 %r4, %a0, 7;\nmatch.any.sync.b32 %d, %r4, -1;")
    for warp, masks in zip(VALUES.reshape(4, 32) & 7, got, strict=True):
        assert masks.tolist() == [
            sum(1 << k for k, x in enumerate(warp) if x == mine) for mine in warp
        ]
    assert (of_warps("activemask.b32 %d;") == 0xFFFFFFFF).all()


# ---- the table

ELSEWHERE = {  # test_memory.py, test_warps.py, test_taint.py
    "nop", "bra", "ret", "bar", "warpsync", "trap", "ld", "st", "atom", "ld_param", "ldmatrix",
    "stmatrix",
}  # fmt: skip
COLLECTIVES = {"activemask", "match_any_b32", *(f"shfl_{x}" for x in SHUFFLES)}
COLLECTIVES |= {f"vote_{x}" for x in ("any", "all", "uni", "ballot")}
COLLECTIVES |= {f"redux_{x}" for x in ("add", "and", "or", "xor")}
COLLECTIVES |= {f"redux_{f}_{t}" for f in ("min", "max") for t in ("s32", "u32")}


def test_every_operation_of_the_machine_is_tested() -> None:
    used: set[str] = set()
    approximations = [
        Case(n, "f32 f32" if n.startswith("div") else "f32", "f32", int) for n in
        [*APPROXIMATE, *FLUSHING]
    ]  # fmt: skip
    for case in [*CASES, *approximations]:
        inputs = case.inputs.split()
        parameters = ",\n".join(f".param .u64 .ptr p{k}" for k in range(len(inputs) + 1))
        head = f".target sm_90a\n.entry test(\n{parameters}\n)\n{{\n.reg .pred %p<9>;\n"
        head += ".reg .b16 %h<9>;\n.reg .b32 %r<9>;\n.reg .b64 %q<9>;\n"
        program = Program(parse(head + kernel(case.text, inputs, case.to) + "\nret;\n}\n"))
        used |= {x.name for x in program.code}
    untested = set(native.operations()) - used - ELSEWHERE - COLLECTIVES
    # No instruction of PTX has the first; the table makes it along with the others.
    assert untested == {"tanh_ftz_f32", "rsqrt_f64"}


UNKNOWN = [
    "fancy.f32 %r1, %r2, %r3;",
    "add.rz.f32 %r1, %r2, %r3;",
    "mul.rn.bf16 %h1, %h2, %h3;",
    "fma.rn.sat.f32 %r1, %r2, %r3, %r4;",
    "cp.async.cg.shared.global [%r1], [%q1], 16;",
    "ld.local.b32 %r1, [%q1];",
    "ld.global.b128 %q1, [%q2];",
    "ld.shared.b32 %r1, [nowhere];",
    "bra $NOWHERE;",
    "bar.sync 1;",
    "bar.sync 0, 64;",
    "setp.lt.ftz.f32 %p1, %r1, %r2;",
    "add.s32 %r1, %r2, %q3;",
    "add.s32 %r1, %r2;",
    "mov.b32 %r1, !%p1;",
]


@pytest.mark.parametrize("text", UNKNOWN)
def test_unknown_instruction_is_an_error_that_names_it(text: str) -> None:
    with pytest.raises(PTXError, match=r"line \d+: .*" + text.split()[0].replace(".", r"\.")):
        launch(text, [])
