"""More than 2^31 elements: the first and the last programs of each launch, in sparse memory.

What the last programs of a row leave must have the bits that those of its last samples alone leave:
partial sums, signs and gradient. An offset of 32 bits anywhere would be another address.
"""

from __future__ import annotations

import mmap
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.plan import Objective, Plan, Resolution, Statistics
from torch_l1snr_fast.kernels.triton import common

from . import emulated

ROWS, LENGTH = 2, 2**30 + 1024
TAIL = 1024 + 32768  # begins where a stretch does, whatever the transform
COMPARED = 4096
ENDS = 8  # programs at either end of a row that run
PLANS = {
    "waveform, three resolutions": Plan(
        Objective(regularize=True), Objective(parts=2),
        tuple(Resolution(n, n // 4, n) for n in (512, 1024, 2048)), sanitize_spectrum=True,
    ),
    "level matching, long hops": Plan(
        None, Objective(parts=2, regularize=True),
        (Resolution(256, 64, 256), Resolution(2048, 1024, 2048)),
    ),
}  # fmt: skip


def sparse(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros whose pages take memory when they are written."""
    size = torch.Size(shape).numel() * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=dtype).view(shape)


def ends(name: str, grid: int) -> list[range]:
    if name == "objective_kernel":
        return [range(grid)]
    each = grid // ROWS
    starts = [row * each for row in range(ROWS)]
    return [range(s + a, s + b) for s in starts for a, b in ((0, ENDS), (each - ENDS, each))]


def evaluated(plan: Plan, e: Tensor, t: Tensor, some: bool) -> tuple[Statistics, Tensor]:
    rows = len(e)
    coefficients = torch.tensor([1.0, 0.75, 0.5], dtype=torch.float64)[:, None].expand(-1, rows)
    with emulated() as driver:
        driver.programs = ends if some else None
        found = kernels.statistics(plan, e, t, save=True)
        terms = coefficients.expand(len(found.partials), 3, rows).contiguous()
        gradient = kernels.gradient(plan, found.saved, terms, e, torch.float32)
    bad = [f for f in driver.findings if not f.benign]
    assert not bad, bad[0]
    return found, gradient


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "dtype"),
    [
        ("waveform, three resolutions", torch.bfloat16),
        ("level matching, long hops", torch.float32),
    ],
)
def test_more_than_2_to_the_31_elements(
    plan: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    e, t = (sparse((ROWS, 1, LENGTH), dtype) for _ in range(2))
    for x in (e, t):
        for part in (x[..., :TAIL], x[..., -TAIL:]):
            part.copy_(0.1 * torch.randn(part.shape))
    large, gradient = evaluated(PLANS[plan], e, t, some=True)
    # Stretches as long as those of much data.
    sizes = common.CONFIGS[90]._replace(forward_warps=1, backward_warps=1)
    monkeypatch.setattr(common, "CONFIG", sizes)
    for row in range(ROWS):
        tails = [x[row : row + 1, :, -TAIL:].contiguous() for x in (e, t)]
        small, want = evaluated(PLANS[plan], *tails, some=False)
        assert torch.equal(gradient[row, 0, -COMPARED:], want[0, 0, -COMPARED:])
        waveform = PLANS[plan].waveform is not None  # whose sums are split otherwise
        for a, b in zip(large.partials[waveform:], small.partials[waveform:], strict=True):
            assert torch.equal(a[row, -2:, :6], b[0, -2:, :6])
        signs = [pair for pair in zip(large.saved, small.saved, strict=True) if is_signs(pair[0])]
        assert signs
        for a, b in signs:
            assert torch.equal(a[row, -4:], b[0, -4:])


def is_signs(x: Any) -> bool:
    return x is not None and x.ndim == 4
