"""The same cases under pytest-benchmark: ``pytest benchmarks --benchmark-only``."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from benchmarks.measure import build, compare, input_pairs
from benchmarks.registry import EVERY, HEADLINE, LOSSES, PROVIDERS, SMALL, Case, served

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("provider", EVERY)
@pytest.mark.parametrize("shape", [SMALL, HEADLINE[DEVICE.type]], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_training(loss: str, shape: tuple[int, ...], provider: str, benchmark: Any) -> None:
    """Forward and backward of a provider whose result agrees with that of torch-l1-snr."""
    case = Case(loss, shape, EVERY)
    if provider not in served(case, DEVICE):
        pytest.skip(f"{provider} does not compute {loss} here")
    pairs = itertools.cycle(input_pairs(case, DEVICE))
    steps = {name: build(case, name, DEVICE) for name in {EVERY[0]: 0, provider: 0}}
    compare(case, steps, next(pairs))

    def run() -> None:
        steps[provider](*next(pairs))
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = case.title()
    with PROVIDERS[provider].context():
        benchmark(run)
