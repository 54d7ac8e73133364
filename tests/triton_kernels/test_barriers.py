"""Each barrier of the compiled kernels is taken out once: the machine notices, or it is needless.

The kernels are those of benchmarks.kernels, and their data leads every way through them. While a
launch runs, the machine notes which barriers are all that orders two accesses, and in which program
of the grid: where that barrier is missing, that program must have a race. Those that it does not
note are taken out all the same. And each barrier that is written is taken out of the source.
"""

from __future__ import annotations

import ctypes
import importlib
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
import triton
from machine import Memory, emulated, ptx, simt
from on_machine import is_benign, line_of
from torch import Tensor

from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.plan import Plan, Resolution
from torch_l1snr_fast.kernels.triton import common

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import every_kernel
from benchmarks.kernels import CASES, DEFAULT, LEVEL, SPECTRUM, Case, evaluate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the machine is for where no GPU is"),
    pytest.mark.skipif(
        not triton.__version__.startswith("3.6."), reason="other Tritons place other barriers"
    ),
]

BARRIERS = ("bar.sync", "bar.warp.sync")
ATTEMPTS = 4  # launches in which a barrier is taken out before it counts as needless
# Objectives of more rows than a tile has, and of a spectral term with no reduction.
ROWS = Case(Plan(None, SPECTRUM, DEFAULT[:1], reduction="none"), batch=17)
# Complex spectra whose frames move up by less than the four sums of warps, which are kept where the
# first samples of a frame were: only then is it that what moves is read from there.
SHORT_HOPS = CASES[-2]._replace(
    plan=CASES[-2].plan._replace(resolutions=(Resolution(4096, 3, 4096), Resolution(2048, 2, 1024)))
)
SILENCE = "tl.debug_barrier()  # after the stores of the other threads"
WALK = "tl.debug_barrier()  # the walk gives these places to other threads"
FOLD = "tl.debug_barrier()  # after what other threads of this program have stored"
# (kernel, line): how many barriers of all the compiled kernels are needless there, and why.
NEEDLESS: dict[tuple[str, str], tuple[int, str]] = {
    ("stft_statistics_kernel", SILENCE): (
        10,
        "The thread that clears a word is the one that stored it, as Triton lays out both; where"
        " there are several warps, the barriers of the stretch's sums are in between as well.",
    ),
    ("stft_gradient_kernel", FOLD): (
        11,
        "Of the left border. The last sample that it shows, n/2, is finished a step before the"
        " stretch ends at the latest, and that step's transform has barriers. Not so in the"
        " shortest signal with hops of n/2, whose kernel is therefore not counted here.",
    ),
    ("complex_stft_kernel", WALK): (
        2,
        "The walk begins with a transform, which has barriers, before it touches the gradient.",
    ),
    ("objective_kernel", "return tl.sum(tl.reshape(sums, [WIDTH, ROWS, 8]), axis=0)"): (
        3,
        "With one term and no more rows than a tile has, this sum is the first that uses shared"
        " memory, and is not done again; its first barrier is for the rounds of a loop.",
    ),
}


def signals(case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Of lengths and content that lead every way through the kernels."""
    longest = max((res.n_fft for res in case.plan.resolutions), default=256)
    shortest = longest // 2 + 1
    for length in (5001, shortest, longest - 1, 3 * longest, 4 * longest + 3):
        if length >= shortest:
            yield cases.signals(case.batch, 2 if length == 5001 else 1, length)
    for start in (2000, 4600):  # and so silent frames, at the end
        e, t = cases.signals(case.batch, 1, max(5001, longest))
        e[..., start:] = t[..., start:]
        yield e, t
    _, t = cases.signals(case.batch, 1, 9001)
    e = t.clone()
    e[..., 700::1500] += 0.1
    yield e, t
    for length in (5001, 20001):
        e, t = cases.signals(case.batch, 1, length)
        e[0, 0, 100:3000:7] = torch.nan
        yield e, t


def runs() -> Iterator[tuple[Case, Tensor, Tensor]]:
    for case in CASES:
        for e, t in signals(case):
            yield case, e.to(case.estimates), t.to(case.actuals)
    yield SHORT_HOPS, *cases.signals(1, 1, 2049, dtype=torch.float32)
    yield ROWS, *cases.signals(ROWS.batch, 1, 2500, dtype=torch.float32)


class Hunt:
    """Runs launches, and again without each of the barriers that nothing has noticed yet."""

    def __init__(self) -> None:
        self.kernels: dict[str, ptx.Kernel] = {}  # by PTX
        self.barriers = 0
        self.unnoticed: dict[str, set[int]] = {}  # of each kernel, by place
        self.tried: Counter[tuple[str, int]] = Counter()

    def __call__(
        self,
        program: simt.Program,
        grid: tuple[int, int, int],
        threads: int,
        shared: int,
        block: bytes,
        arguments: list[simt.Argument],
        options: simt.Options,
        programs: list[range] | None,
    ) -> simt.Result:
        kernel = program.kernel
        if kernel.text not in self.kernels:
            places = {k for k, i in enumerate(kernel.instructions) if i.opcode in BARRIERS}
            self.kernels[kernel.text] = kernel
            self.unnoticed[kernel.text] = places
            self.barriers += len(places)
        unnoticed = self.unnoticed[kernel.text]
        hopeful = [k for k in sorted(unnoticed) if self.tried[kernel.text, k] < ATTEMPTS]
        if not hopeful:
            return simt.run(program, grid, threads, shared, block, arguments, options, programs)
        before = Contents(a.memory for a in arguments if a.memory is not None)

        def run(p: simt.Program, which: list[range] | None, **changes: Any) -> simt.Result:
            new = replace(options, **changes)
            return simt.run(p, grid, threads, shared, block, arguments, new, which)

        result = run(program, programs, barriers=True)
        assert all(map(is_benign, result.findings))
        after = Contents(before.memories)
        for k in hopeful:
            if needed := int(result.needed[k]):
                where: list[range] | None = [range(needed - 1, needed)]
            elif result.counts[k, 0] and not self.tried[kernel.text, k]:
                where = programs
            else:
                continue
            self.tried[kernel.text, k] += 1
            # A write of what was there is benign after a read in one order, a fault in the other.
            for order in ("forward", "backward"):
                before.restore()
                changed = run(program.without(k), where, order=order)
                if any(not f.benign for f in changed.findings):
                    unnoticed.discard(k)
                    break
        after.restore()
        return result


class Contents:
    """What is in some memory, to be put back."""

    def __init__(self, memories: Iterable[Memory]) -> None:
        self.memories = list({id(m): m for m in memories}.values())
        self.contents = [ctypes.string_at(m.lo, m.hi - m.lo) for m in self.memories]

    def restore(self) -> None:
        for m, content in zip(self.memories, self.contents, strict=True):
            ctypes.memmove(m.lo, content, len(content))


def test_each_barrier_is_noticed_or_known_to_be_needless(monkeypatch: pytest.MonkeyPatch):
    hunt = Hunt()
    few = common.CONFIGS[90]._replace(programs=6, forward_warps=1, backward_warps=1)
    for sizes in (None, few):  # many programs, or a few that do more
        monkeypatch.setattr(common, "CONFIG", sizes)
        for case, e, t in runs():
            for route in every_kernel.routes(case):
                with route, emulated() as driver:
                    driver.run = hunt
                    evaluate(kernels, case, e, t)
    needless = Counter(
        (kernel.name, line_of(kernel.instructions[k]))
        for text, kernel in hunt.kernels.items()
        for k in hunt.unnoticed[text]
    )
    print(f"{hunt.barriers} barriers in {len(hunt.kernels)} kernels, {needless.total()} needless")
    assert needless == {place: count for place, (count, _) in NEEDLESS.items()}


# ---- in the source

PACKAGE = Path(kernels.__file__).parents[1]
WRITTEN = [
    (file, number)
    for file in sorted(Path(kernels.__file__).parent.rglob("*.py"))
    for number, line in enumerate(file.read_text().splitlines())
    if "tl.debug_barrier()" in line
]


# Of one transform, whose programs are a single warp: barriers of reductions order nothing there.
ON_CHIP = Case(Plan(LEVEL, SPECTRUM, DEFAULT[:1], sanitize_spectrum=True))
COMPLEX = CASES[-1]


def without(file: Path, number: int, folder: Path) -> Any:
    """The Triton backend of a copy of the kernels, in which a line does nothing."""
    name = f"without_{file.stem}_{number}"
    shutil.copytree(PACKAGE, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    copy = folder / name / file.relative_to(PACKAGE)
    lines = copy.read_text().splitlines()
    lines[number] = lines[number].replace("tl.debug_barrier()", "pass")
    copy.write_text("\n".join(lines))
    return importlib.import_module(f"{name}.triton")


@pytest.mark.parametrize(
    ("file", "number"), WRITTEN, ids=[f"{file.stem}-{number}" for file, number in WRITTEN]
)
def test_each_barrier_that_is_written_is_noticed_or_known_to_be_needless(
    file: Path, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(tmp_path)
    backend = without(file, number, tmp_path)
    case = COMPLEX if file.parent.name == "complex_stft" else ON_CHIP
    with emulated() as driver:
        for e, t in signals(case):
            evaluate(backend, case, e.to(case.estimates), t.to(case.actuals))
    noticed = any(not f.benign for f in driver.findings)
    line = file.read_text().splitlines()[number].strip()
    assert noticed == (line not in (SILENCE, WALK))
