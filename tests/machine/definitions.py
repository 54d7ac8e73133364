"""What instructions compute, in Python's integers and exact fractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import numpy as np

from .ptx import SIZES

Number = Fraction | float  # exact, or one of inf, -inf, nan and -0.0
# Bits of precision and the exponents of normal numbers.
FORMATS = {
    "f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127), "f64": (53, -1022, 1023),
}  # fmt: skip
EDGES = {
    "f32": [0, 1 << 31, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001,
            1, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x4B000000, 0x4F000000,
            0xCF000000, 0x4EFFFFFF, 0x5F000000, 0x3F000000, 0x3FC00000, 0x40200000, 0xC0200000,
            0x3F808000, 0x3F818000, 0x3F801000, 0x3F803000, 0x477FF000, 0x33000000],  # ties
    "f64": [0, 1 << 63, 0x3FF0000000000000, 0xBFF0000000000000, 0x7FF0000000000000, 1,
            0xFFF0000000000000, 0x7FF8000000000000, 0x000FFFFFFFFFFFFF, 0x7FEFFFFFFFFFFFFF,
            0x41DFFFFFFFC00000, 0x43E0000000000000, 0xC3E0000000000000, 0x36A0000000000000,
            0x47EFFFFFE0000000, 0x47EFFFFFF0000000, 0x3810000000000000, 0x380FFFFFFFFFFFFF],
    "f16": [0, 0x8000, 0x3C00, 0x7C00, 0xFC00, 0x7E00, 1, 0x8001, 0x03FF, 0x0400, 0x7BFF],
    "bf16": [0, 0x8000, 0x3F80, 0x7F80, 0xFF80, 0x7FC0, 0x7F7F, 1, 0x8001],
}  # fmt: skip


def bits(kind: str) -> int:
    return 8 * SIZES[kind]


def values(kind: str, count: int, random: np.random.Generator) -> list[int]:
    """Bit patterns: edges, then random ones, half of them of numbers of a usual size."""
    n = bits(kind)
    if kind in EDGES:
        out = EDGES[kind]
    else:
        top = 1 << n - 1
        out = [0, 1, 2, 3, 2 * top - 1, top, top - 1, top + 1, 15, 16, 31, 32, 33, 63, 64, 65, 255]
        out = [*out, 0x80, 0xF0F0F0F0, *random.integers(0, 40, count // 4).tolist()]
    if kind in ("f32", "f64"):
        usual = random.normal(size=count // 2) * 2.0 ** random.integers(-20, 20, count // 2)
        dtype, word = (np.float32, np.uint32) if n == 32 else (np.float64, np.uint64)
        out = [*out, *usual.astype(dtype).view(word).tolist()]
    more = random.integers(0, 1 << 64, count, np.uint64).tolist()
    return [x & (1 << n) - 1 for x in [*out, *more][:count]]


def signed(x: int, n: int) -> int:
    x &= (1 << n) - 1
    return x - (1 << n) if x >> n - 1 else x


def integer(x: int, kind: str) -> int:
    return signed(x, bits(kind)) if kind[0] == "s" else x


# ---- numbers and their bit patterns


@lru_cache(maxsize=4096)
def number(x: int, kind: str) -> Number:
    precision, low, _ = FORMATS[kind]
    n = bits(kind)
    sign, body = x >> n - 1 & 1, x & (1 << n - 1) - 1
    exponent, fraction = body >> precision - 1, body & (1 << precision - 1) - 1
    if exponent == (1 << n - precision) - 1:
        return math.nan if fraction else (-math.inf if sign else math.inf)
    if exponent == 0 and fraction == 0:
        return -0.0 if sign else Fraction(0)
    scale = low - precision + 1 + max(exponent - 1, 0)
    value = Fraction(fraction + ((1 << precision - 1) if exponent else 0)) * Fraction(2) ** scale
    return -value if sign else value


def pattern(value: Number, kind: str) -> int:
    """Of the nearest number, ties to even. Not a number: NVIDIA's of float32, -1 for any."""
    precision, low, high = FORMATS[kind]
    n = bits(kind)
    top = 1 << n - 1
    infinity = ((1 << n - precision) - 1) << precision - 1
    if isinstance(value, float):
        if math.isnan(value):
            return top - 1 if kind != "f64" else -1
        negative = math.copysign(1, value) < 0
        return (infinity if math.isinf(value) else 0) | (top if negative else 0)
    if value == 0:
        return 0
    sign, value = (top if value < 0 else 0), abs(value)
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    exponent = max(exponent - (Fraction(2) ** exponent > value), low)
    whole = round(value / Fraction(2) ** (exponent - precision + 1))  # to even
    if whole >= 1 << precision:
        whole, exponent = whole >> 1, exponent + 1
    if exponent > high:
        return sign | infinity
    if whole < 1 << precision - 1:
        return sign | whole
    return sign | (exponent - low + 1) << precision - 1 | whole & (1 << precision - 1) - 1


def flushed(x: int, kind: str = "f32") -> int:
    """A subnormal number is zero, of its sign."""
    exponent = ((1 << bits(kind) - FORMATS[kind][0]) - 1) << FORMATS[kind][0] - 1
    return x if x & exponent else x & 1 << bits(kind) - 1


def is_nan(x: Number) -> bool:
    return isinstance(x, float) and math.isnan(x)


def is_finite(x: Number) -> bool:
    return isinstance(x, Fraction) or x == 0


def exact(x: Number) -> Fraction:
    return Fraction(0) if isinstance(x, float) else x


def negative(x: Number) -> bool:
    return x < 0 or (isinstance(x, float) and math.copysign(1, x) < 0)


def product(x: Number, y: Number) -> Number:
    sign = -1.0 if negative(x) != negative(y) else 1.0
    if is_nan(x) or is_nan(y):
        return math.nan
    if is_finite(x) and is_finite(y):
        return exact(x) * exact(y) or (Fraction(0) if sign > 0 else -0.0)
    zero = (is_finite(x) and not exact(x)) or (is_finite(y) and not exact(y))
    return math.nan if zero else sign * math.inf


def total(x: Number, y: Number) -> Number:
    if is_finite(x) and is_finite(y):
        both = isinstance(x, float) and isinstance(y, float)
        return exact(x) + exact(y) or (-0.0 if both else Fraction(0))
    return sum(0.0 if is_finite(v) else float(v) for v in (x, y))


def quotient(x: Number, y: Number) -> Number:
    sign = -1.0 if negative(x) != negative(y) else 1.0
    if is_nan(x) or is_nan(y) or (not is_finite(x) and not is_finite(y)):
        return math.nan
    if not is_finite(x):
        return sign * math.inf
    if is_finite(y) and exact(y) == 0:
        return sign * math.inf if exact(x) else math.nan
    out = exact(x) / exact(y) if is_finite(y) else Fraction(0)
    return out or (Fraction(0) if sign > 0 else -0.0)


def root(x: Number) -> Number:
    """Its square is near enough for all roundings of float64."""
    if is_nan(x) or (x < 0):
        return math.nan
    if isinstance(x, float) or x == 0:
        return x
    scale = 4 ** (200 + max(0, x.denominator.bit_length() - x.numerator.bit_length()))
    return Fraction(math.isqrt(x.numerator * scale // x.denominator), math.isqrt(scale))


# ---- integers


def quotient_of_integers(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def extracted(x: int, at: int, count: int, n: int, sign: bool) -> int:
    at, count = at & 255, count & 255
    top = x >> min(at + count - 1, n - 1) & 1 if count and sign else 0
    inside = [k < count and at + k < n for k in range(n)]
    return sum((x >> at + k & 1 if inside[k] else top) << k for k in range(n))


def inserted(x: int, y: int, at: int, count: int, n: int) -> int:
    for k in range(count & 255):
        if (place := (at & 255) + k) < n:
            y = y & ~(1 << place) | (x >> k & 1) << place
    return y


def permuted(a: int, b: int, selector: int) -> int:
    source = (b << 32 | a).to_bytes(8, "little")
    out = bytearray()
    for k in range(4):
        s = selector >> 4 * k & 15
        byte = source[s & 7]
        out.append((0xFF if byte & 0x80 else 0) if s & 8 else byte)
    return int.from_bytes(out, "little")


def by_table(a: int, b: int, c: int, table: int) -> int:
    return sum(
        (table >> ((a >> k & 1) << 2 | (b >> k & 1) << 1 | c >> k & 1) & 1) << k for k in range(32)
    )


def to_integer(x: Number, kind: str, how: str, source: str) -> int:
    n = bits(kind)
    low, high = (-(1 << n - 1), (1 << n - 1) - 1) if kind[0] == "s" else (0, (1 << n) - 1)
    if is_nan(x):
        return 1 << n - 1 if source == "f64" or n == 64 else 0
    if not is_finite(x):
        return high if x > 0 else low
    rounding = {"rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil, "rni": round}[how]
    return max(low, min(high, rounding(exact(x))))


# ---- comparisons


def compared(how: str, kind: str) -> Callable[[int, int], int]:
    def want(a: int, b: int) -> int:
        of = number if kind in FORMATS else integer
        x, y = of(a, kind), of(b, kind)
        unordered = is_nan(x) or is_nan(y)
        if how in ("num", "nan"):
            return int((how == "nan") == unordered)
        is_so = {
            "eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y,
            "lo": x < y, "ls": x <= y, "hi": x > y, "hs": x >= y,
        }[how[:2]]  # fmt: skip
        return int(how.endswith("u") if unordered else is_so)

    return want


def extreme(how: str, kind: str, nan: bool) -> Callable[[int, int], int]:
    def want(a: int, b: int) -> int:
        x, y = number(a, kind), number(b, kind)
        if (is_nan(x) and is_nan(y)) or (nan and (is_nan(x) or is_nan(y))):
            return pattern(math.nan, kind)
        if is_nan(x) or is_nan(y):
            return b if is_nan(x) else a
        if x == y:
            return a if negative(x) == (how == "min") else b
        return a if (x < y) == (how == "min") else b

    return want
