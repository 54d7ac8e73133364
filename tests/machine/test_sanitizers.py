"""Faults planted in kernels, their PTX and launches: each is found, and nothing without it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from . import Finding, LaunchError, Tracker, emulated, native
from .ptx import PTXError

N = 128
Launch = Callable[[], Any]
Rewrite = Callable[[str, str], str]


@triton.jit
def copy_kernel(x, y, out, n, shift, N: tl.constexpr):
    """out[i] = x[i + shift]; y is there for its address."""
    at = tl.program_id(0) * N + tl.arange(0, N)
    v = tl.load(x + at + shift, mask=at < n)
    tl.store(out + at, v, mask=at < n)
    if n < 0:
        tl.store(y + at, v)


@triton.jit
def vector_kernel(x, out, N: tl.constexpr):
    """Vectors of 16 bytes, because x starts at a multiple of 16."""
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(x + at))


@triton.jit
def swap_kernel(x, out, N: tl.constexpr):
    """A transposition, through shared memory."""
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    v = tl.load(x + at)
    tl.store(out + at, tl.trans(v + tl.trans(v * 2)))


@triton.jit
def reduce_kernel(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    s = tl.sum(tl.load(x + at))
    tl.store(out + at, tl.load(x + at) - s)


@triton.jit
def neighbour_kernel(x, out, BARRIER: tl.constexpr, N: tl.constexpr):
    """Stores, and loads what another thread of the program has stored."""
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(x + at) * 2)
    if BARRIER:
        tl.debug_barrier()
    v = tl.load(out + (at + 1) % N)
    if BARRIER:
        tl.debug_barrier()
    tl.store(out + at, v)


@triton.jit
def overlap_kernel(x, out, step, SAME: tl.constexpr, READ: tl.constexpr, N: tl.constexpr):
    """Programs that are ``step`` elements apart."""
    program = tl.program_id(0)
    at = program * step + tl.arange(0, N)
    v = tl.load(x + at)  # the same in all programs that write there
    if not SAME:
        v += program
    if READ:
        v += tl.load(out + at + N)
    tl.store(out + at, v)


@triton.jit
def divide_kernel(x, out, n, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(x + at) // n)


@triton.jit
def forever_kernel(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    n = tl.max(tl.load(x + at))
    while n > 0:
        n = tl.maximum(n, 1.0)
    tl.store(out + at, n)


@triton.jit
def branch_kernel(x, out, settings, WHICH: tl.constexpr, N: tl.constexpr):
    """A branch on the sum of what is loaded, on a setting, or none."""
    at = tl.arange(0, N)
    v = tl.load(x + at)
    if WHICH == "data":  # noqa: SIM102 (the other is no constant)
        if tl.sum(v) > 0:
            v -= tl.max(v)
    if WHICH == "setting":  # noqa: SIM102
        if tl.load(settings) > 0:
            v -= tl.max(v)
    tl.store(out + at, v)


@triton.jit
def lookup_kernel(x, table, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(table + tl.load(x + at)))


# ---- ways to plant a fault in PTX


def drop(pattern: str) -> Rewrite:
    """The PTX without the lines that match."""

    def rewrite(name: str, text: str) -> str:
        lines = text.splitlines()
        kept = [x for x in lines if not re.search(pattern, x.split("//")[0])]
        assert len(kept) < len(lines), f"nothing matches {pattern}"
        return "\n".join(kept)

    return rewrite


def replace(pattern: str, new: str, count: int = 1) -> Rewrite:
    def rewrite(name: str, text: str) -> str:
        out, found = re.subn(pattern, new, text, count=count, flags=re.M)
        assert found, f"nothing matches {pattern}"
        return out

    return rewrite


def run(launch: Launch, rewrite: Rewrite | None = None) -> list[Finding]:
    with emulated(rewrite=rewrite, budget=1 << 20) as driver:
        launch()
    return [f for f in driver.findings if not f.benign]


# ---- launches

X, Y, OUT = torch.randn(4 * N), torch.randn(4 * N), torch.zeros(4 * N)
SQUARE, TURNED = torch.randn(32, 32), torch.zeros(32, 32)
LARGE, COPIED = torch.randn(2048), torch.zeros(1024)
VALUES, TOTAL = torch.randn(N), torch.zeros(N)
NUMBERS, QUOTIENTS = torch.arange(N, dtype=torch.int32), torch.zeros(N, dtype=torch.int32)
VIEW = torch.randn(8 * N)[N : 5 * N]
LONG, SHORT = torch.randn(4 * N + 64), torch.zeros(100)


def copy(shift: int, n: int = 4 * N, x: torch.Tensor = X, out: torch.Tensor = OUT) -> Launch:
    return lambda: copy_kernel[(4,)](x, Y, out, n, shift, N)


def neighbour(barrier: bool, size: int = N, warps: int = 4) -> Launch:
    return lambda: neighbour_kernel[(1,)](VALUES, TOTAL, barrier, size, num_warps=warps)


def overlap(step: int, same: bool = False, read: bool = False) -> Launch:
    return lambda: overlap_kernel[(3,)](X, OUT, step, same, read, N)


def divide(by: int) -> Launch:
    return lambda: divide_kernel[(1,)](NUMBERS, QUOTIENTS, by, N)


def swap() -> None:
    swap_kernel[(1,)](SQUARE, TURNED, 32)


def reduce() -> None:
    reduce_kernel[(1,)](VALUES, TOTAL, N)


def vector() -> None:
    vector_kernel[(1,)](LARGE, COPIED, 1024)


def forever() -> None:
    forever_kernel[(1,)](VALUES.abs(), TOTAL, N)


HALF = r"\1.reg .pred %half;\nsetp.lt.u32 %half, %laneid, 16;\n"
# What, a launch, the kind that must be found, a launch or a rewriting that has not / has the fault.
FAULTS: list[tuple[str, Launch, str, Launch | None, Rewrite | None]] = [
    ("load beyond the end", copy(1), "global-out-of-bounds", copy(1, 4 * N - 1), None),
    ("load before the start", copy(-1), "global-out-of-bounds", copy(0), None),
    (
        "store beyond the end",
        copy(0, x=LONG, out=SHORT), "global-out-of-bounds", copy(0, 100, LONG, SHORT), None,
    ),
    (
        "load outside a view, inside its storage",
        copy(3, x=VIEW), "global-outside-view", copy(0, x=VIEW), None,
    ),
    (
        "vector at an address not divisible by 16",
        vector, "global-misaligned", vector, replace(r"(ld\.global\.v4\.b32.*\+) ?0", r"\1 4"),
    ),
    ("transposition without barriers", swap, "shared-race", swap, drop("bar.sync")),
    (
        "transposition that never stores to shared memory",
        swap, "shared-uninitialised", swap, drop(r"st\.shared|stmatrix"),
    ),
    ("reduction without barriers", reduce, "shared-race", reduce, drop("bar.sync")),
    ("a neighbour without a barrier", neighbour(False), "global-race", neighbour(True), None),
    (
        "the same in one warp",
        neighbour(False, 32, 1), "global-race", neighbour(True, 32, 1), None,
    ),
    (
        "one warp without its barrier",
        neighbour(True, 32, 1), "global-race", neighbour(True, 32, 1), drop(r"bar\.(warp\.)?sync"),
    ),
    (
        "programs that write the same place",
        overlap(N // 2), "race-between-programs", overlap(N), None,
    ),
    (
        "a program that reads what another writes",
        overlap(N, read=True), "race-between-programs", overlap(N), None,
    ),
    (
        "bar.sync for half of a warp",
        reduce, "barrier-in-divergent-code", reduce,
        replace(r"^(\s*)bar\.sync\s+0;", HALF + "@%half bar.sync 0;\n@!%half bar.sync 0;"),
    ),
    (
        "a shuffle that half of the warp does",
        reduce, "warp-mask-not-converged", reduce,
        replace(r"^(\s*)(shfl\.sync\.bfly\.b32)", HALF + r"@%half \2"),
    ),
    ("division by zero", divide(0), "integer-division-by-zero", divide(3), None),
    ("an endless loop", forever, "instruction-budget-exceeded", None, None),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=[f[0] for f in FAULTS])
def test_fault(fault: tuple[str, Launch, str, Launch | None, Rewrite | None]) -> None:
    _, launch, kind, clean, rewrite = fault
    if clean is not None:
        assert not run(clean)
    found = {f.kind for f in run(launch, rewrite)}
    # A race may show as an early read too, and what a shuffle misses as a race.
    assert {kind} <= found <= {kind, "shared-uninitialised", "shared-race"}


def test_stray_address_names_whose_memory_it_is_in() -> None:
    found = run(copy((Y.data_ptr() - X.data_ptr()) // 4))
    assert {f.kind for f in found} == {"global-out-of-bounds"}
    assert (found[0].argument, found[0].landed) == ("x", "y")
    assert f"{__name__.split('.')[-1]}.py" in str(found[0])


def test_the_same_values_written_by_several_programs_are_benign() -> None:
    with emulated() as driver:
        overlap(N // 2, same=True)()
    assert driver.findings
    assert all(f.benign for f in driver.findings)


@pytest.mark.parametrize("write", [False, True])
def test_memory_that_nobody_has_written(write: bool) -> None:
    """Found where a kernel reads it and where PyTorch does."""
    with Tracker() as tracker, emulated() as driver:
        driver.memory_of = tracker.memory_of
        fresh = torch.empty(4 * N)
        if write:
            copy(0, out=fresh)()
        else:
            fresh[:7] = 1.0
        copy(0, x=fresh)()
        fresh.sum()
    assert {f.kind for f in driver.findings} == (set() if write else {"global-uninitialised"})
    assert [f.elements for f in tracker.findings] == ([] if write else [4 * N - 7])


# ---- data


def branch(which: str) -> Launch:
    return lambda: branch_kernel[(1,)](VALUES, TOTAL, X, which, N)


def lookup() -> None:
    lookup_kernel[(1,)](NUMBERS, Y, TOTAL, N)


@pytest.mark.parametrize(
    ("launch", "taint", "kinds"),
    [
        (branch("data"), True, {"data-dependent-branch"}),
        (branch("data"), {"x"}, {"data-dependent-branch"}),
        (branch("data"), {"settings"}, set()),
        (branch("data"), False, set()),
        (branch("setting"), {"x"}, set()),
        (branch("setting"), True, {"data-dependent-branch"}),
        (branch("none"), True, set()),
        (lookup, True, {"data-dependent-global-address"}),
        (lookup, {"table"}, set()),
        (swap, True, set()),
        (reduce, True, set()),
    ],
)
def test_data_that_decides_is_found(launch: Launch, taint: Any, kinds: set[str]) -> None:
    with emulated(taint=taint, budget=1 << 16) as driver:
        launch()
    assert {f.kind for f in driver.tainted} == kinds
    assert not any(f.kind.startswith("data") for f in driver.findings)


# ---- launches that a GPU refuses, or that arrive with other arguments


def test_more_registers_than_there_are() -> None:
    with emulated(rewrite=lambda name, text: text) as driver:
        reduce()
        list(driver.cuda.functions.values())[-1].registers = 1000
        with pytest.raises(LaunchError, match=r"reduce_kernel .* 128000 registers of 65536"):
            reduce()


def test_a_kernel_for_another_target() -> None:
    with pytest.raises(RuntimeError, match="no kernel image"):
        run(reduce, replace("sm_90a?", "sm_80", 0))


def test_a_parameter_that_the_kernel_does_not_have() -> None:
    with pytest.raises(LaunchError, match=r"takes .* and is given"):
        run(reduce, replace(r",\s*\.param [^,]*reduce_kernel_param_3\b", ""))


def test_an_instruction_that_the_machine_does_not_know() -> None:
    with pytest.raises(PTXError, match=r"line \d+: .*fancy\.f32"):
        run(reduce, replace(r"add\.f32", "fancy.f32"))


def test_triton_that_interprets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"), emulated():
        pass


def test_a_gpu_that_the_machine_is_not() -> None:
    with (
        pytest.raises(ValueError, match="arch is 70; the machine is one of 80, 90"),
        emulated(arch=70),
    ):
        pass


def test_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="needs gcc"):
        native.build("machine.so", native.SOURCES)
