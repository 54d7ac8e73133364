"""The on-chip STFT of difficult data: zeros, samples that are not finite, dtypes, layouts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from checks import (
    SPECTRUM,
    SPECTRUM_BLEND,
    SPECTRUM_LEVEL,
    SPECTRUM_PURE,
    assert_alike,
    incoming,
    layouts,
    signals,
)
from torch import Tensor

from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.plan import (
    NONFINITE,
    Objective,
    Plan,
    Resolution,
)

sys.path.append(str(Path(__file__).parents[2]))
from onchip_checks import GRADIENT, INF, MANY, NAN, SUMS, single, spectral, verify, wanting

pytestmark = pytest.mark.usefixtures("on_chip")


# Zeros


def test_silence_and_equality(device: torch.device):
    """Exactly no sums and no gradient where e = t."""
    e, t = single(4, 1, 200, device=device)
    t[0] = 0
    e[1] = 0
    e[2] = t[2] = 0
    e[3] = t[3]
    for term in (SPECTRUM, SPECTRUM_PURE):
        got = verify(spectral(term), e, t)
        assert not got.partials[2:, :, :2].any()
        assert not got.gradient[2:].any()


ONE_SAMPLE = [
    (64, 1050, 0, 1),
    (64, 1050, 290, 1),  # frames 3 to 6: their pairs begin and end with a silent one
    (64, 1050, 290, MANY),
    (64, 1050, 1040, MANY),  # frames 15 and 16, the last, which has no partner
    (128, 4000, 3840, 1),  # frame 30 alone of 32 in one stretch
    (128, 4000, 3968, 1),  # and frame 31
]


@pytest.mark.parametrize(("hop", "length", "at", "warps"), ONE_SAMPLE)
def test_one_sample_differs(hop, length, at, warps, device, monkeypatch: pytest.MonkeyPatch):
    """Signs only in the frames that have it, with all pairs in one stretch or two in each."""
    wanting(monkeypatch, warps)
    res = Resolution(256, hop, 256)
    e, t = single(1, 1, length, device=device)
    e.copy_(t)
    e[..., at] += 1
    got = verify(spectral(SPECTRUM, res), e, t)
    shown = torch.tensor([at, -at, 2 * (length - 1) - at], device=device)
    centre = hop * torch.arange(res.frames(length), device=device)
    has = ((centre[:, None] - shown).abs() < 128).any(1)  # a Hann window begins with 0
    assert torch.equal(got.signs[0, 0].flatten(1).any(1), has)
    # Pairs without such a frame leave nothing at all.
    pairs = has.nonzero() // 2
    begin, end = 2 * hop * int(pairs.min()) - 128, 2 * hop * int(pairs.max()) + hop + 128
    assert not got.gradient[..., : max(0, begin)].any()
    assert not got.gradient[..., end:].any()


def test_tiny_differences(device: torch.device):
    """120 dB below the target: e - t is taken before the transform, not after."""
    e, t = single(2, 1, 500, device=device)
    verify(spectral(SPECTRUM_LEVEL), t * (1 + 1e-6 * torch.randn_like(t)), t)
    verify(spectral(SPECTRUM), t + 1e-6 * e, t)


# Samples that are not finite


@pytest.mark.parametrize("term", [SPECTRUM_BLEND, SPECTRUM_PURE], ids=["blend", "pure"])
def test_sanitized(term: Objective, device: torch.device):
    """Each counted once; another row has the same bits as without these."""
    e, t = single(3, 1, 450, device=device)
    e[1, 0, 0], e[1, 0, 449], e[2, 0, 256] = NAN, INF, -INF
    t[1, 0, 4], t[2, 0, 449], t[2, 0, 30] = INF, NAN, -INF
    plan = spectral(term, sanitize_spectrum=True)
    got = verify(plan, e, t)
    assert int(got.evaluation.nonfinite) == 6
    assert not got.gradient[~e.isfinite()].any()
    alone = kernels.statistics(plan, e[:1], t[:1], save=True)
    assert torch.equal(got.partials[:1], alone.partials[0])
    coefficients = got.evaluation.coefficients[..., :1] * incoming(plan, 3, device)[:1]
    gradient = kernels.gradient(plan, alone.saved, coefficients, e[:1], torch.float32)
    assert torch.equal(got.gradient[:1], gradient)


@pytest.mark.parametrize("at", [383, 384, 699])
def test_one_sanitized_sample(at: int, device: torch.device):
    """The last sample of a backward stretch and the first of the next, and the last of all.

    A forward stretch that began 127 samples before has counted the first two.
    """
    e, t = single(1, 1, 700, device=device)
    e[..., at] = INF
    assert verify(spectral(SPECTRUM, sanitize_spectrum=True), e, t).gradient[..., at] == 0


@pytest.mark.parametrize("hop", [32, 64, 128])
def test_every_sample_is_counted_once(hop: int, device: torch.device):
    """Whatever the overlap and the stretches, and in the reflected borders."""
    e, t = single(1, 2, 321, device=device)
    e[:], t[:, 1] = NAN, INF
    found = kernels.statistics(
        spectral(SPECTRUM, Resolution(256, hop, 256), sanitize_spectrum=True), e, t, save=True
    )
    assert found.partials[0][..., NONFINITE].sum() == 3 * 321


@pytest.mark.parametrize("sanitize", [False, True], ids=["as is", "sanitized"])
@pytest.mark.parametrize("term", [SPECTRUM, SPECTRUM_PURE], ids=["d1", "pure"])
def test_unknown_samples_and_overflow_propagate(term: Objective, sanitize: bool, device):
    """To the loss and the gradient of their row. What overflows is a number: nothing to count."""
    e, t = single(4, 1, 270, device=device)
    e[0, :, 200:210], e[1, :, 0], t[2, :, 269] = 3e38, NAN, INF
    plan = spectral(term, sanitize_spectrum=sanitize)
    found = kernels.statistics(plan, e, t, save=True)
    value = kernels.objective(plan, found.partials, 1, 270, torch.float32)
    gradient = kernels.gradient(plan, found.saved, value.coefficients, e, torch.float32)
    finite = [False, sanitize, sanitize, True]
    assert value.loss.isfinite().tolist() == finite
    assert gradient.isfinite().all(-1).flatten().tolist() == finite
    assert int(value.nonfinite) == (2 if sanitize else 0)
    alone = kernels.statistics(plan, e[3:], t[3:], save=True)
    assert torch.equal(found.partials[0][3:], alone.partials[0])


# Dtypes, layouts, repeatability


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float16, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
    ids=str,
)
def test_half_precision(dtypes: tuple[torch.dtype, torch.dtype], device: torch.device):
    """Read as it is, computed in float32, rounded once, by PyTorch."""
    e, t = (x.to(dtype) for x, dtype in zip(single(1, 2, 300, device=device), dtypes, strict=True))
    got = verify(spectral(SPECTRUM_LEVEL), e, t)
    want = verify(spectral(SPECTRUM_LEVEL), e.float(), t.float())
    assert_alike(got.partials, want.partials, SUMS)
    half = max(torch.finfo(e.dtype).eps / 2, GRADIENT)
    assert_alike(got.gradient, want.gradient.to(e.dtype), half)


LAYOUTS = list(layouts(torch.ones(2, 2, 3)))


@pytest.mark.parametrize(
    ("of_e", "of_t"), list(zip(LAYOUTS, LAYOUTS[1:] + LAYOUTS[:1], strict=True))
)
def test_layouts(of_e: str, of_t: str, device: torch.device):
    """The same bits from wherever the samples lie."""
    e, t = single(2, 2, 129, device=device)
    e, t = layouts(e)[of_e], layouts(t)[of_t]
    plan = spectral(SPECTRUM_LEVEL, Resolution(256, 128, 256))
    assert_same_bits(plan, (e, t), (e.contiguous(), t.contiguous()))


def assert_same_bits(plan: Plan, *inputs: tuple[Tensor, Tensor]) -> None:
    results = []
    for e, t in inputs:
        found = kernels.statistics(plan, e, t, save=True)
        value = kernels.objective(plan, found.partials, *e.shape[1:], torch.float32)
        gradient = kernels.gradient(plan, found.saved, value.coefficients, e, torch.float32)
        results.append((*found.partials, gradient))
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


def test_same_bits_again_and_saved_tensors_untouched(device: torch.device):
    """Also without saving, which must not change the sums."""
    e, t = single(2, 1, 400, device=device)
    plan = spectral(SPECTRUM_LEVEL, sanitize_spectrum=True)
    found = kernels.statistics(plan, e, t, save=True)
    _, unknown, *saved = found.saved
    assert unknown is not None  # and not written: all samples are finite
    copies = [x.clone() for x in saved]
    coefficients = kernels.objective(plan, found.partials, 1, 400, torch.float32).coefficients
    first, second = (
        kernels.gradient(plan, found.saved, coefficients, e, torch.float32) for _ in range(2)
    )
    assert torch.equal(first, second)
    for save in (True, False):
        again = kernels.statistics(plan, e, t, save=save)
        assert_alike(again.partials[0], found.partials[0], SUMS)
        assert save == any(x is not None for x in again.saved)
        for kept, copy in zip(again.saved[2:] if save else saved, copies, strict=True):
            assert torch.equal(kept, copy)


def test_rows_further_apart_than_32_bits(apart, device: torch.device):
    e, t = signals(3, 1, 150, dtype=torch.float16, device=device)
    assert_same_bits(spectral(SPECTRUM_LEVEL, sanitize_spectrum=True), apart(e, t), (e, t))
