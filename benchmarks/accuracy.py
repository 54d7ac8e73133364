"""Rounding errors of every backend and of torch-l1-snr, against the definition in float64.

    python -m benchmarks.accuracy [--device cuda] [--out DIR]

MultiL1SNRDBLoss with level matching in both domains and MultiResolutionComplexSTFTLoss, float32,
with errors 0 to 120 dB below the target and with targets from full scale to silence. Without a GPU
the compiled Triton kernels run on the machine of the tests. The reference sees the same samples.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .records import RESULTS
from .registry import (
    BY_NAME,
    COMPLEX,
    IN_PYTORCH,
    PROVIDERS,
    TRAINING,
    UPSTREAM,
    Loss,
    on_machine,
)

SHAPE = (1, 1, 4096)
LOSS = BY_NAME["MultiL1SNRDBLoss, level"]
OURS = ("reference", "eager", "triton")
WAYS = {LOSS: (UPSTREAM, *OURS), BY_NAME[COMPLEX]: (IN_PYTORCH, *OURS)}  # providers of each
SILENCE = float("-inf")
SNRS = tuple(range(0, 121, 10))
LEVELS = (*range(0, -121, -10), SILENCE)
USUAL_SNR, USUAL_LEVEL = 20, -20  # dB; where the other is swept


class Error(NamedTuple):
    """Of one provider at one point of a sweep."""

    loss: str
    sweep: str  # "snr" or "level"
    decibels: float
    provider: str
    value: float  # absolute, in the loss's unit
    gradient: float  # norm of the difference by the norm of the gradient


def signals(snr: float, level: float) -> tuple[Tensor, Tensor]:
    """Noise of a level in dB full scale, and an estimate whose error is ``snr`` dB below."""
    generator = torch.Generator().manual_seed(0)
    actuals, error = (10 ** (level / 20) * torch.randn(SHAPE, generator=generator) for _ in "te")
    return actuals + 10 ** (-snr / 20) * error, actuals


def evaluate(
    loss: Loss,
    provider: str,
    signals: tuple[Tensor, Tensor],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Value and gradient."""
    step = PROVIDERS[provider].step(loss, TRAINING, device)
    estimates, actuals = (x.to(device, dtype) for x in signals)
    with PROVIDERS[provider].context():
        results = step(estimates.requires_grad_(), actuals)
    return [x.double().cpu() for x in results]


def relative(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference; zero for a zero that is met exactly, where silence wants one."""
    distance, size = (found - wanted).norm().item(), wanted.norm().item()
    return distance / size if size else distance


def errors(device: torch.device, loss: Loss) -> Iterator[Error]:
    points = [("snr", snr, signals(snr, USUAL_LEVEL)) for snr in SNRS]
    points += [("level", level, signals(USUAL_SNR, level)) for level in LEVELS]
    for sweep, decibels, pair in points:
        value, gradient = evaluate(loss, "reference", pair, device, torch.float64)
        for provider in WAYS[loss]:
            found_value, found_gradient = evaluate(loss, provider, pair, device)
            distance = (found_value - value).abs().item()
            error = relative(found_gradient, gradient)
            yield Error(loss.name, sweep, decibels, provider, distance, error)


def read(path: Path) -> list[Error]:
    with path.open(newline="") as file:
        return [
            Error(
                row["loss"],
                row["sweep"],
                float(row["decibels"]),
                row["provider"],
                *map(float, numbers),
            )
            for row in csv.DictReader(file)
            for numbers in [(row["value"], row["gradient"])]
        ]


def write(path: Path, rows: list[Error]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Error._fields)
        writer.writerows((*row[:4], f"{row.value:.3g}", f"{row.gradient:.3g}") for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with on_machine() if options.device == "cpu" else nullcontext():
        rows = [row for loss in WAYS for row in errors(torch.device(options.device), loss)]
    write(options.out / f"{options.device}-accuracy.csv", rows)
    for row in rows:
        place = f"{row.sweep:6}{row.decibels:8} dB  {row.provider:14}"
        print(f"{place}{row.value:10.1e}{row.gradient:10.1e}  {row.loss}")


if __name__ == "__main__":
    main()
