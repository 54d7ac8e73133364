"""Small Triton kernels, run by the machine, against PyTorch: the same bits in all orders."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from . import emulated

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@triton.jit
def reduce_kernel(x, sums, maxima, where, M: tl.constexpr, N: tl.constexpr, AXIS: tl.constexpr):
    i = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    v = tl.load(x + i)
    out: tl.constexpr = N if AXIS == 0 else M
    at = tl.arange(0, out)
    tl.store(sums + at, tl.sum(v, AXIS))
    tl.store(maxima + at, tl.max(v, AXIS))
    tl.store(where + at, tl.argmax(v, AXIS))


def reductions(warps: int, axis: int) -> list[Tensor]:
    x = torch.randn(64, 32)
    size = 32 if axis == 0 else 64
    sums, maxima, where = torch.empty(size), torch.empty(size), torch.empty(size, dtype=torch.int32)
    reduce_kernel[(1,)](x, sums, maxima, where, 64, 32, axis, num_warps=warps)
    torch.testing.assert_close(sums, x.sum(axis))
    assert torch.equal(maxima, x.amax(axis))
    assert torch.equal(where.long(), x.argmax(axis))
    return [sums, maxima, where]


@triton.jit
def exchange_kernel(x, out, N: tl.constexpr):
    v = tl.load(x + tl.arange(0, 8 * N))
    v = tl.permute(tl.reshape(v, [4, N, 2]), [2, 0, 1])
    a, b = tl.split(tl.permute(v, [1, 2, 0]))
    v = tl.reshape(tl.join(b, a), [8, N])
    tl.store(out + tl.arange(0, 8 * N), tl.reshape(tl.trans(v), [8 * N]))


def exchanges(warps: int, dtype: torch.dtype) -> list[Tensor]:
    n = 128
    x = torch.randperm(8 * n).to(dtype)
    out = torch.empty_like(x)
    exchange_kernel[(1,)](x, out, n, num_warps=warps)
    v = x.reshape(4, n, 2)
    v = torch.stack([v[..., 1], v[..., 0]], -1).reshape(8, n)
    assert torch.equal(out, v.T.reshape(-1))
    return [out]


@triton.jit
def gather_kernel(x, index, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.gather(tl.load(x + at), tl.load(index + at), 0))


def gathers(warps: int, dtype: torch.dtype) -> list[Tensor]:
    n = 256
    x = torch.randn(n, dtype=torch.float64).to(dtype)
    index, out = torch.randint(0, n, (n,), dtype=torch.int32), torch.empty(n, dtype=dtype)
    gather_kernel[(1,)](x, index, out, n, num_warps=warps)
    assert torch.equal(out, x[index.long()])
    return [out]


@triton.jit
def integer_kernel(a, b, out, n, N: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    x, y = tl.load(a + i, mask=i < n, other=1), tl.load(b + i, mask=i < n, other=1)
    z = x * y + (x // y) - (x % y) + (x >> 3) + (x << 2) + tl.abs(y) + tl.minimum(x, y) * 3
    z = tl.where((x > y) & (x != 7), z, -z ^ (x | 5))
    tl.store(out + i, z, mask=i < n)


def integers(dtype: torch.dtype) -> list[Tensor]:
    size, top = 1000, 2**20 if dtype == torch.int32 else 2**40
    a, b = (torch.randint(-top, top, (size,), dtype=dtype) for _ in range(2))
    b = torch.where(b == 0, 1, b)
    out = torch.empty_like(a)
    integer_kernel[(8,)](a, b, out, size, 128)
    quotient = torch.div(a, b, rounding_mode="trunc")
    z = a * b + quotient - (a - quotient * b) + (a >> 3) + (a << 2)
    z = z + b.abs() + torch.minimum(a, b) * 3
    assert torch.equal(out, torch.where((a > b) & (a != 7), z, -z ^ (a | 5)))
    return [out]


@triton.jit
def convert_kernel(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    v = tl.load(x + at).to(tl.float32)
    tl.store(out + at, v.to(out.dtype.element_ty))


def conversions(source: torch.dtype, to: torch.dtype) -> list[Tensor]:
    edges = [0.0, -0.0, 1.0, math.inf, -math.inf, 65504.0, 65520.0, 1e-8, -1e-8, 3e-5, 1e-40]
    x = torch.cat([torch.tensor([*edges, 3.4e38], dtype=torch.float64), torch.randn(244)])
    x, out = x.to(source), torch.empty(256, dtype=to)
    convert_kernel[(1,)](x, out, 256)
    assert torch.equal(out, x.float().to(to))
    return [out]


@triton.jit
def function_kernel(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    v = tl.load(x + at)
    tl.store(out + at, tl.log(v))
    tl.store(out + N + at, tl.exp(-v))
    tl.store(out + 2 * N + at, tl.sqrt(v))
    tl.store(out + 3 * N + at, 1 / v)
    tl.store(out + 4 * N + at, tl.math.rsqrt(v))


def functions(dtype: torch.dtype) -> list[Tensor]:
    x = torch.rand(256, dtype=dtype) * 50 + 1e-3
    out = torch.empty(5, 256, dtype=dtype)
    function_kernel[(1,)](x, out, 256)
    want = torch.stack([x.log(), (-x).exp(), x.sqrt(), 1 / x, x.rsqrt()])
    # Two approximations of 2 ulp, and exp's argument of up to 50 times log2(e), rounded once.
    rtol = 1e-14 if dtype == torch.float64 else 72 * 2**-24
    torch.testing.assert_close(out, want, rtol=rtol, atol=rtol)
    return [out]


@triton.jit
def newton_kernel(x, out, steps, limit, N: tl.constexpr):
    """A loop that each program leaves when all of its values are good, and a scalar branch."""
    program = tl.program_id(0)
    at = program * N + tl.arange(0, N)
    v = tl.load(x + at)
    y, step = v, 0
    error = tl.max(tl.abs(y * y - v))
    while (error > 1e-4) & (step < limit):
        y = 0.5 * (y + v / y)
        error = tl.max(tl.abs(y * y - v))
        step += 1
    if program % 2 == 1:
        y = -y
    tl.store(out + at, y)
    tl.store(steps + program, step)


def loops(warps: int) -> list[Tensor]:
    x = torch.rand(6, 256) * torch.logspace(-1, 2, 6)[:, None] + 0.5
    out, steps = torch.empty_like(x), torch.empty(6, dtype=torch.int32)
    newton_kernel[(6,)](x, out, steps, 100, 256, num_warps=warps)
    sign = torch.tensor([1, -1] * 3)[:, None]
    torch.testing.assert_close(out * sign, x.sqrt(), rtol=1e-4, atol=1e-4)
    assert len(set(steps.tolist())) > 2
    return [out, steps]


@triton.jit
def masked_kernel(pair, scale, nothing, out, n, COUNT: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    total = tl.zeros([N], tl.float32)
    for k in tl.static_range(COUNT):
        total += tl.load(pair[k] + at, mask=at < n, other=-1.0) * scale[k]
    if nothing is not None:
        total += tl.load(nothing + at)
    tl.store(out + at, total, mask=(at < n + 3) & (at % 3 != 1))


def masks_tuples_and_none(n: int) -> list[Tensor]:
    x, y, out = torch.randn(n), torch.randn(n), torch.full((128,), 9.0)
    masked_kernel[(1,)]((x, y), (2.0, 0.5), None, out, n, 2, 128)
    want = torch.full((128,), -2.5)
    want[:n] = 2 * x + 0.5 * y
    at = torch.arange(128)
    assert torch.equal(out, torch.where((at < n + 3) & (at % 3 != 1), want, 9.0))
    return [out]


@triton.jit
def added(a, b):
    return a + b


@triton.jit
def scan_kernel(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.associative_scan(tl.load(x + at), 0, added))


def scans(warps: int) -> list[Tensor]:
    x, out = torch.randint(-50, 50, (512,), dtype=torch.int32), torch.empty(512, dtype=torch.int32)
    scan_kernel[(1,)](x, out, 512, num_warps=warps)
    assert torch.equal(out, x.cumsum(0).int())
    return [out]


@triton.jit
def atomic_kernel(x, total, count, N: tl.constexpr):
    at = tl.program_id(0) * N + tl.arange(0, N)
    tl.atomic_add(total + at % 4, tl.load(x + at))
    tl.atomic_max(count, tl.program_id(0))


def atomics() -> list[Tensor]:
    x = torch.randint(-9, 9, (8, 128)).float()  # exact in any order
    total, count = torch.zeros(4), torch.zeros(1, dtype=torch.int32)
    atomic_kernel[(8,)](x, total, count, 128)
    assert torch.equal(total, x.reshape(-1, 4).sum(0))
    assert count.item() == 7
    return [total, count]


@triton.jit
def strided_kernel(x, out, rows, batch, row, N: tl.constexpr):
    program = tl.program_id(0)
    b, r = program // rows, program % rows
    at = tl.arange(0, N)
    tl.store(out + program * N + at, tl.load(x + b.to(tl.int64) * batch + r * row + at))


def strides(offset: int) -> list[Tensor]:
    base = torch.randn(3, 5, 200)
    x = base[:, 1:4, offset : offset + 128]
    out = torch.empty(3, 3, 128)
    strided_kernel[(9,)](x, out, 3, x.stride(0), x.stride(1), 128)
    assert torch.equal(out, x)
    return [out]


CASES: list[tuple[Callable[..., list[Tensor]], tuple[Any, ...]]] = [
    *((reductions, x) for x in itertools.product((1, 4), (0, 1))),
    *((exchanges, x) for x in [(1, torch.float32), (4, torch.bfloat16), (8, torch.int64)]),
    *((gathers, x) for x in [(1, torch.float32), (4, torch.float64)]),
    *((integers, (x,)) for x in (torch.int32, torch.int64)),
    *((conversions, x) for x in itertools.product(DTYPES, DTYPES) if x[0] != x[1]),
    *((functions, (x,)) for x in (torch.float32, torch.float64)),
    *((loops, (x,)) for x in (1, 4)),
    *((masks_tuples_and_none, (x,)) for x in (1, 100)),
    *((scans, (x,)) for x in (1, 4)),
    (atomics, ()),
    *((strides, (x,)) for x in (0, 1)),
]
ON_SM80 = [(reductions, (4, 0)), (exchanges, (4, torch.bfloat16)), (gathers, (4, torch.float64))]
ON_SM80 += [(conversions, (torch.float64, torch.bfloat16)), (loops, (4,)), (scans, (4,))]


def label(x: Any) -> str:
    return f"{x[0].__name__}{x[1]}".replace("torch.", "").replace(" ", "")


@pytest.mark.parametrize(
    ("arch", "case"),
    [*((90, x) for x in CASES), *((80, x) for x in ON_SM80)],
    ids=lambda x: str(x) if isinstance(x, int) else label(x),
)
def test_like_pytorch_in_all_orders(arch: int, case: Any) -> None:
    function, arguments = case
    results = []
    for order in ("forward", "backward", "ahead", "mixed"):
        torch.manual_seed(0)
        with emulated(arch=arch, order=order, seed=5) as driver:
            results.append(function(*arguments))
        bad = [f for f in driver.findings if not f.benign]
        assert not bad, bad[0]
        targets = {r.function.program.kernel.target for r in driver.records}
        assert targets <= {f"sm_{arch}", f"sm_{arch}a"}
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_benign_races_are_only_those_of_copies() -> None:
    """Where a tile has fewer elements than threads, threads that hold one element all write it."""
    with emulated(seed=1) as driver:
        reductions(4, 0)
    assert {(f.kind, f.hazard) for f in driver.findings} <= {("shared-race", "write-after-write")}


def test_nested_machines_keep_apart() -> None:
    with emulated(arch=90) as outer:
        loops(1)
        with emulated(arch=80) as inner:
            loops(1)
        scans(1)
    assert [r.kernel for r in outer.records] == ["newton_kernel", "scan_kernel"]
    assert [r.kernel for r in inner.records] == ["newton_kernel"]
    assert inner.records[0].function.program.kernel.target == "sm_80"
