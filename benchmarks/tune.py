"""Which of the sizes that only a card can judge are the fastest: one at a time, by turns.

    python -m benchmarks.tune --device cuda --out DIR    # within five minutes; DIR/tune.csv
    python -m benchmarks.tune                            # here: instructions stand in for time

A variant changes one row of the table in kernels/triton/common.py. The largest predicted gain comes
first; each must give the loss and the gradient of the table's own row before it is measured. What
gains more than the noise is printed as the row to put in. A variant that no card favours is to be
deleted, and what it varies with it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.triton import common
from torch_l1snr_fast.kernels.triton.common import Config

from . import records
from .clock import Clock
from .kernels import DEFAULT, LEVEL, MULTI, Case, Plan, compiling, evaluate
from .measure import timer
from .registry import HEADLINE, on_machine, shape_text

SECONDS = 270.0
ROUNDS = 15
CALLS = 10  # in a CUDA graph, so that the host's share is none
NOISE = 0.01  # two versions of one thing have been seen to differ by as much
TOLERANCE = 1e-3  # of loss and gradient in norm; some signs of a spectrum are rounding
SPECTRAL, WAVEFORM = Case(MULTI), Case(Plan(LEVEL, None))


class Variant(NamedTuple):
    """One change to the sizes, the loss that it is for, and what was predicted of it (modelled)."""

    case: Case
    change: dict[str, Any]
    prediction: str

    def config(self, usual: Config) -> Config:
        return usual._replace(**self.change)

    def title(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.change.items())


VARIANTS = [
    Variant(SPECTRAL, {"registers": 80}, "24 warps instead of 20: 5 to 10 %, if nothing spills"),
    Variant(SPECTRAL, {"registers": 128}, "16 warps, less computed twice: 0 to 5 %, or a loss"),
    Variant(SPECTRAL, {"registers": 96}, "20 warps; what the table has up to Hopper"),
    Variant(SPECTRAL, {"prefetch": False}, "signs loaded when needed: a loss of 2 %"),
    Variant(
        SPECTRAL,
        {"registers": 128, "prefetch_forward": True},
        "samples loaded before they are needed, 16 warps: 5 to 10 %, or a loss",
    ),
    Variant(SPECTRAL, {"backward_warps": 2048}, "half as many steps done twice: 1.5 %"),
    Variant(SPECTRAL, {"forward_warps": 32768}, "a shorter last round: 0 to 3 %"),
    Variant(SPECTRAL, {"forward_warps": 8192}, "fewer frames read ahead: 0 to 1 %"),
    Variant(WAVEFORM, {"lanes": 256}, "8 warps a program: to 90 % of the copy if below 85 %"),
    Variant(WAVEFORM, {"programs": 4096}, "the same"),
    Variant(WAVEFORM, {"programs": 1024}, "fewer sums for the objective: some microseconds"),
]


class Outcome(NamedTuple):
    """Of a variant: milliseconds or, by the stand-in, instructions."""

    variant: Variant
    usual: float
    changed: float
    sm_mhz: float | None

    @property
    def gain(self) -> float:
        return 1 - self.changed / self.usual


Step = Callable[[], tuple[Tensor, Tensor | None]]
Measure = Callable[[Config, Config, Step], tuple[float, float]]


@contextlib.contextmanager
def using(config: Config) -> Iterator[None]:
    """Sizes in place of the table's."""
    with mock.patch.object(common, "CONFIG", config):
        yield


def by_turns(usual: Config, changed: Config, step: Step) -> tuple[float, float]:
    """Median milliseconds of a step under either sizes."""
    clock = timer(torch.device("cuda"))
    graphs = []
    for config in (usual, changed):
        graphs.append(torch.cuda.CUDAGraph())
        with using(config), torch.cuda.graph(graphs[-1]):
            for _ in range(CALLS):
                step()
    samples: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for graph, found in zip(graphs, samples, strict=True):
            found.append(clock(graph.replay) / CALLS)
    before, after = map(statistics.median, samples)
    return before, after


def by_instructions(usual: Config, changed: Config, step: Step) -> tuple[float, float]:
    """The stand-in: warp instructions of PTX that the machine of the tests counts."""
    found = []
    for config in (usual, changed):
        with on_machine() as machine, using(config):
            step()
        found.append(float(sum(record.result.executed for record in machine.records)))
    return found[0], found[1]


def step_of(case: Case, shape: tuple[int, ...], device: torch.device) -> Step:
    """Loss and gradient of a case."""
    generator = torch.Generator(device).manual_seed(0)
    t, noise = torch.randn(2, *shape, generator=generator, device=device)
    e = 0.9 * t + 0.2 * noise
    return lambda: evaluate(kernels, case, e, t)


def check(variant: Variant, usual: Config, step: Step) -> None:
    """Raise unless loss and gradient are those of the usual sizes."""
    results = []
    for config in (usual, variant.config(usual)):
        with using(config):
            results.append(step())
    for a, b in zip(results[1], results[0], strict=True):
        assert a is not None
        assert b is not None
        distance = ((a.double() - b.double()).norm() / b.double().norm()).item()
        if not distance <= TOLERANCE:
            raise ArithmeticError(f"{variant.title()} is {distance:.1e} off")


def outcomes(
    variants: list[Variant],
    usual: Config,
    shape: tuple[int, ...],
    device: torch.device,
    measure: Measure,
    left: Callable[[], float],
) -> Iterator[Outcome]:
    """What was found of each variant that changes something, as far as the time goes."""
    with Clock(device) as clock:
        for variant in variants:
            changed = variant.config(usual)
            if changed == usual:
                continue
            if left() <= 0:
                print(f"{variant.title()}: no time left", flush=True)
                continue
            step = step_of(variant.case, shape, device)
            with contextlib.nullcontext() if device.type == "cuda" else on_machine():
                check(variant, usual, step)
            start = time.monotonic()
            found = measure(usual, changed, step)
            yield Outcome(variant, *found, clock.since(start))


def best(found: list[Outcome], usual: Config) -> Config:
    """The usual sizes with those changes that gained more than the noise, the best of each size."""
    gains = {}
    for outcome in sorted(found, key=lambda outcome: outcome.gain):
        if outcome.gain > NOISE:
            gains.update(outcome.variant.change)
    return usual._replace(**gains)


def compile_for(target: GPUTarget, case: Case, config: Config) -> int:
    """Put what a variant launches into Triton's cache; how many kernels."""
    with compiling(target) as compiled, using(config):
        step_of(case, (1, 1, 8192), torch.device("cpu"))()
    return len(compiled)


def compile_all(variants: list[Variant], usual: Config) -> None:
    """On all cores, because compiling takes longer than measuring."""
    target = driver.active.get_current_target()
    work = [(target, variant.case, variant.config(usual)) for variant in variants]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as pool:
        count = sum(pool.map(compile_for, *zip(*work, strict=True)))
    print(f"{count} kernels for {target}", flush=True)


def small(variant: Variant) -> Variant:
    """With one resolution, which compiles and runs within seconds on the machine."""
    if variant.case is WAVEFORM:
        return variant
    return variant._replace(case=Case(MULTI._replace(resolutions=DEFAULT[:1])))


def write(path: Path, found: list[Outcome], device: torch.device, shape: str, unit: str) -> None:
    place = (records.commit(), records.versions(), records.device_text(device), shape)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = ("change", "usual", "changed", "unit", "gain", "sm_mhz", "prediction")
        writer.writerow(("commit", "versions", "device", "shape", *columns))
        for o in found:
            numbers = (f"{o.usual:.6g}", f"{o.changed:.6g}", unit, f"{o.gain:.4f}", o.sm_mhz)
            writer.writerow((*place, o.variant.title(), *numbers, o.variant.prediction))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, metavar="DIR")
    options = parser.parse_args()
    end = time.monotonic() + SECONDS
    device = torch.device(options.device)
    if device.type == "cuda":
        usual, variants, unit = common.config(), VARIANTS, "ms"
        batch, stems, channels, length = HEADLINE["cuda"]
        shape, measure = (batch, stems * channels, length), by_turns
        compile_all(variants, usual)
    else:
        with on_machine():
            usual = common.config()
        variants, unit = [small(variant) for variant in VARIANTS], "instructions"
        shape, measure = (1, 2, 8192), by_instructions

    found = []
    for outcome in outcomes(
        variants, usual, shape, device, measure, lambda: end - time.monotonic()
    ):
        found.append(outcome)
        print(
            f"{outcome.variant.title():24}{outcome.usual:12.6g}{outcome.changed:12.6g} {unit}"
            f"{outcome.gain:+8.1%}   {outcome.variant.prediction}",
            flush=True,
        )
    if options.out:
        write(options.out / "tune.csv", found, device, shape_text(shape), unit)
    print(f"usual: {usual}\nbest:  {best(found, usual)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
