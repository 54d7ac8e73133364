"""Waveform kernels and the objective, over every boundary of their blocks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from checks import BLEND, ENERGY, LEVEL, PURE, WAVEFORM, check, signals

from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.plan import Plan
from torch_l1snr_fast.kernels.triton import common

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import tune

pytestmark = pytest.mark.usefixtures("small")

TERMS = {"d1": WAVEFORM, "level": LEVEL, "blend": BLEND, "energy": ENERGY, "pure": PURE}
BLOCK = 256  # PLANES * lanes of the small configuration
# One sample; around one block and around four, which is one chunk; a prime with ragged chunks.
LENGTHS = [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK - 1, 4 * BLOCK, 4 * BLOCK + 1, 2603]


@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(length: int, device: torch.device):
    check(Plan(LEVEL, None), *signals(2, 1, length, device=device))


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_terms_and_reductions(term, reduction: str, device: torch.device):
    plan = Plan(term, None, reduction=reduction, grad_scale=0.3)
    check(plan, *signals(3, 1, 201, device=device))


@pytest.mark.parametrize("shape", [(1, 1, 60), (5, 1, 60), (1, 5, 60), (17, 1, 19), (4, 3, 1)])
def test_rows_and_channels(shape: tuple[int, int, int], device: torch.device):
    """17 rows: more than the objective evaluates side by side."""
    check(Plan(BLEND, None, reduction="none"), *signals(*shape, device=device))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_rows_that_are_not_there_have_no_loss(reduction: str, device: torch.device):
    """Three rows of four that are evaluated side by side; without eps the fourth's is 0 / 0."""
    plan = Plan(WAVEFORM._replace(eps=0.0), None, reduction=reduction)
    check(plan, *signals(3, 1, 60, device=device))


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_silence_and_equality(term, device: torch.device):
    """The gradient of |x| at 0 is 0, and no logarithm meets a zero."""
    e, t = signals(4, 2, 150, device=device)
    t[0] = 0
    e[1] = 0
    e[2] = t[2] = 0
    e[3] = t[3]
    e[0, :, ::3] = 0
    got = check(Plan(term, None, reduction="none"), e, t)
    if not term.regularize:
        assert not got.gradient[2:].any()


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_unknown_samples_propagate(term, device: torch.device):
    e, t = signals(5, 2, 140, device=device)
    e[0, 0, 3] = float("nan")
    e[1, 1, 5] = float("inf")
    t[2, 0, 139] = float("nan")
    t[3, 1, 0] = -float("inf")
    got = check(Plan(term, None, reduction="none"), e, t, by_reference=False)
    assert got.evaluation.loss[4].isfinite()
    assert not got.evaluation.loss[0].isfinite()


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_sanitized(term, device: torch.device):
    e, t = signals(3, 2, 140, device=device)
    e[0, 0, 3], e[0, 1, 139], e[1, 1, 0] = float("nan"), float("inf"), -float("inf")
    t[0, 0, 4], t[0, 1, 139], t[2, 0, 77] = float("inf"), float("nan"), -float("inf")
    got = check(Plan(term, None, reduction="none", sanitize_waveform=True), e, t)
    assert int(got.evaluation.nonfinite) == 6
    assert not got.gradient[~e.isfinite()].any()


def test_rounding_of_long_sums(device: torch.device):
    """float32 sums of many samples stay as accurate as their split promises."""
    e, t = signals(2, 1, 9001, dtype=torch.float32, device=device)
    got = kernels.statistics(Plan(LEVEL, None), e, t, save=False).partials[0].double().sum(1)
    e, t = e.double(), t.double()
    want = torch.stack([(e - t).abs(), t.abs(), e.square(), t.square()]).sum((2, 3)).mT
    # At most 64 additions in a lane and 3 across lanes, each of relative error 2^-24 in float32.
    torch.testing.assert_close(got[:, [0, 2, 4, 5]], want, rtol=67 * 2.0**-24, atol=0)


@pytest.mark.parametrize(
    "variant", [v for v in tune.VARIANTS if v.case is tune.WAVEFORM], ids=tune.Variant.title
)
def test_variants(variant: tune.Variant, device: torch.device, monkeypatch: pytest.MonkeyPatch):
    """Of sizes that only a card can judge, where a block is whole and where it is not."""
    monkeypatch.setattr(common, "CONFIG", variant.config(common.Config()))
    check(Plan(LEVEL, None, reduction="none"), *signals(2, 1, 8195, device=device))
