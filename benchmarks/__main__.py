"""Measure every case that has not been measured yet, and draw the figures.

    python -m benchmarks                              # this CPU, some minutes
    python -m benchmarks --device cuda --out DIR      # a GPU: its tests, then all tables
    python -m benchmarks --quick                      # seconds, to see that it works
    python -m benchmarks --only headline              # a part of it, without pictures; or small
    python -m benchmarks --only headline --again      # once more, to be taken together

A run that was interrupted goes on where it was: what is in DIR for the same commit, versions and
device is not measured again.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import takewhile
from pathlib import Path

import torch

from . import records, report
from .measure import Figure, Job, measure
from .records import RESULTS, ROOT, Key, Row
from .registry import FEW, Case, cases, dtype_text, installed, shape_text

TESTS = "tests marked gpu"
TEST_SECONDS = 300  # so that a slow suite leaves time for figures


class Run:
    """Figures of one device, written to a file as they come."""

    def __init__(self, device: torch.device, out: Path) -> None:
        self.device = device
        self.path = out / f"{device.type}.csv"
        self.place = (records.commit(), records.versions(), records.device_text(device))
        self.known = {row.key for row in records.read(self.path)}

    def key(self, case: Case, provider: str, metric: str) -> Key:
        what = (case.loss, shape_text(case.shape), dtype_text(case.dtype))
        return Key(*self.place, *what, provider, case.mode, metric)

    def done(self, case: Case) -> bool:
        metrics = ("time", "peak memory") if case.memory else ("time",)
        return all(self.key(case, p, m) in self.known for p in case.providers for m in metrics)

    def write(self, case: Case, figures: list[Figure]) -> None:
        rows = [
            Row(self.key(case, f.provider, f.metric), f.unit, *f.spread, records.today())
            for f in figures
        ]
        records.append(self.path, rows)
        self.known.update(row.key for row in rows)


def gpu_tests(run: Run) -> bool:
    """Whether the tests that need a GPU pass; asked once for a commit."""
    case = Case("all losses", (), (TESTS,), "correctness")
    passed = run.key(case, TESTS, "time")
    if passed in run.known:
        return True
    start = time.perf_counter()
    # Most of the time is the compiler's, on one core for each process.
    several = ["-n", "6"] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", *several, "-m", "gpu", "tests"]
    try:
        subprocess.run(command, cwd=ROOT, check=True, timeout=TEST_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(error)
        return False
    run.write(case, [Figure(TESTS, "time", "s", [time.perf_counter() - start])])
    return True


def jobs(device: torch.device, quick: bool, rest: bool = True) -> Iterator[Job]:
    """Cases and what measures each of them: the headline, whole training steps, the rest."""
    chosen = cases(device, quick)
    headline = list(takewhile(lambda case: case.shape == chosen[0].shape, chosen))
    for case in headline:
        yield case, partial(measure, case, device)
    if not rest:
        return
    if not quick and installed("soundfile") and installed("torchaudio"):
        from . import training  # whose example reads audio

        yield from training.jobs(device)
    for case in chosen[len(headline) :]:
        yield case, partial(measure, case, device)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("tests", "headline", "small", "tables"))
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device is 'cuda', but torch sees no GPU")

    warnings.simplefilter("ignore")  # that noise is not music concerns nobody here
    run = Run(device, options.out)
    print(*run.place, sep="\n", flush=True)
    failed = []
    if device.type == "cuda" and options.only in (None, "tests") and not gpu_tests(run):
        failed.append(TESTS)  # but each case compares its results before it is timed
    todo = jobs(device, options.quick, rest=options.only != "headline")
    if options.only == "small":
        todo = (job for job in todo if job[0].shape in FEW)
    for case, figures_of in () if options.only == "tests" else todo:
        if not case.providers or (run.done(case) and not options.again):
            continue
        try:
            figures = list(figures_of())
        except Exception as error:  # of whatever kind: the other cases can still be measured
            failed.append(case.title())
            print(f"FAILED {case.title()}: {error}", flush=True)
            continue
        run.write(case, figures)
        print(case.title(), *(summary(figure) for figure in figures), sep="\n  ", flush=True)
    if options.only is None:
        report.write(options.out)
    print(*(f"FAILED {name}" for name in failed), f"results in {options.out}", sep="\n")
    return 1 if failed else 0


def summary(figure: Figure) -> str:
    median, p20, p80, _ = figure.spread
    if figure.unit == "bytes":
        return f"{figure.provider:24}{median / 2**20:10.1f} MiB"
    return f"{figure.provider:24}{median:10.3f} {figure.unit}   ({p20:.3f} to {p80:.3f})"


if __name__ == "__main__":
    sys.exit(main())
