"""Every kernel through Triton's front end, for all pairs of dtypes and all options; no GPU needed.

What a dtype can break is there: types that differ between branches, or from round to round of a
loop. What comes after it, test_offline.py compiles of fewer.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl
from triton.backends.nvidia.compiler import CUDABackend

from benchmarks.kernels import LEVEL, OTHER, TARGETS, Case, compiling, run
from torch_l1snr_fast.kernels.complex_plan import ComplexPlan
from torch_l1snr_fast.kernels.plan import Objective, Plan, Resolution
from torch_l1snr_fast.kernels.triton import frames, waveform

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WAVEFORM = [
    Objective(power=power, regularize=regularize, l1_weight=l1_weight)
    for power, regularize, l1_weight in itertools.product((1, 2), (False, True), (0.0, 1.0))
]
SPECTRUM = [term._replace(parts=2) for term in WAVEFORM if term.power == 1]
ROUTES = (Resolution(256, 64, 256), OTHER[0])


class PassedError(Exception):
    """Raised by the first pass after the front end, in whose place it is put."""


def plans() -> Iterator[Plan | ComplexPlan]:
    yield ComplexPlan(1.0, 1.0, (Resolution(256, 100, 200), Resolution(512, 100, 512)))
    for sanitize in (False, True):
        policy = {"sanitize_waveform": sanitize, "sanitize_spectrum": sanitize}
        for term in WAVEFORM:
            yield Plan(term, None, **policy)
        for term, base in itertools.product(SPECTRUM, (None, LEVEL)):
            yield Plan(base, term, ROUTES, **policy)


def through_the_front_end(estimates: torch.dtype) -> int:
    """How many kernels passed; raises Triton's error where one does not."""
    seen: set[str] = set()
    launch = triton.JITFunction.run

    def known(*, key: str, repr: str, **_: Any) -> bool:
        new = repr + key not in seen
        seen.add(repr + key)
        return not new

    def front_end(self: Any, *args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(PassedError):
            launch(self, *args, **kwargs | {"warmup": True})

    with (
        compiling(TARGETS["sm_90"]),
        mock.patch.object(triton.JITFunction, "run", front_end),
        mock.patch.object(CUDABackend, "make_ttgir", side_effect=PassedError),
        mock.patch.object(triton.knobs.runtime, "jit_cache_hook", known),
        # Rounds of an unrolled loop are alike, so few do.
        mock.patch.object(waveform, "PLANES", tl.constexpr(2)),
        mock.patch.object(frames, "UNROLL", tl.constexpr(1)),
    ):
        for plan, actuals in itertools.product(plans(), DTYPES):
            run(Case(plan, estimates, actuals), length=1000)
    return len(seen)


if __name__ == "__main__":
    print(through_the_front_end(getattr(torch, sys.argv[1])))
