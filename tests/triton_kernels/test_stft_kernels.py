"""The torch.fft route: framing, spectra and overlap-add, over every boundary of their blocks."""

from __future__ import annotations

import pytest
import torch
from checks import (
    MULTI,
    SPECTRUM,
    SPECTRUM_BLEND,
    SPECTRUM_LEVEL,
    SPECTRUM_PURE,
    check,
    run,
    signals,
)

from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.plan import Plan, Resolution
from torch_l1snr_fast.kernels.triton import common, offchip

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(autouse=True)
def off_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    """This route, also for transforms that another would take."""
    monkeypatch.setattr(kernels, "stft_route", lambda *_: offchip)


def spectral(term, *resolutions: Resolution, **settings) -> Plan:
    return Plan(None, term, resolutions, **settings)


TERMS = {
    "d1": SPECTRUM,
    "level": SPECTRUM_LEVEL,
    "blend": SPECTRUM_BLEND,
    "pure": SPECTRUM_PURE,
}
STFTS = [
    Resolution(16, 4, 16),
    Resolution(16, 4, 10),  # a window shorter than the transform
    Resolution(16, 16, 16),  # frames that only touch
    Resolution(16, 23, 16),  # and that leave samples out
    Resolution(15, 4, 15),  # no bin at n / 2
    Resolution(13, 5, 12, "hamming"),  # a prime, and a hop that divides nothing
    Resolution(63, 16, 63, "blackman"),  # around UNROLL * lanes = 64
    Resolution(64, 64, 40, "kaiser"),
    Resolution(65, 19, 65, "bartlett"),
    Resolution(1, 1, 1),
    Resolution(2, 1, 2),
]


@pytest.mark.parametrize("res", STFTS, ids=str)
def test_transforms(res: Resolution, device: torch.device):
    check(spectral(SPECTRUM_LEVEL, res), *signals(2, 1, 61, device=device))


@pytest.mark.parametrize("length", [9, 10, 16, 17, 63, 64, 65, 193])
def test_lengths(length: int, device: torch.device):
    """From the shortest whose border can be reflected, over blocks of 64 samples."""
    check(spectral(SPECTRUM, Resolution(16, 4, 16)), *signals(2, 1, length, device=device))


@pytest.mark.parametrize("length", [10, 64, 65, 130])
def test_lengths_with_levels(length: int, device: torch.device):
    plan = spectral(SPECTRUM_BLEND, Resolution(19, 7, 16), sanitize_spectrum=True)
    check(plan, *signals(1, 2, length, device=device))


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_terms(term, device: torch.device):
    plan = spectral(term, Resolution(16, 5, 16), reduction="none", grad_scale=0.3)
    check(plan, *signals(3, 2, 40, device=device))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_both_domains(reduction: str, device: torch.device):
    check(MULTI._replace(reduction=reduction), *signals(2, 2, 45, device=device))


SPANS = (1, 1, 131), Resolution(3, 1, 3)  # of 128 and of 3 frames
GROUPS = (1, 5, 40), Resolution(16, 4, 16)  # of 2, 2 and 1 signals forward, of 3 and 2 backward


@pytest.mark.parametrize(("shape", "res"), [SPANS, GROUPS], ids=["spans", "groups"])
def test_slabs(shape, res: Resolution, small, device, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(common, "CONFIG", small._replace(transient=12_000))
    plan = spectral(SPECTRUM_LEVEL, res, sanitize_spectrum=True)
    check(plan, *signals(*shape, device=device))


def test_slabs_cover_every_frame_once(small: common.Config, monkeypatch: pytest.MonkeyPatch):
    for transient in (1, 100, 1000, 10_000, 100_000):
        monkeypatch.setattr(common, "CONFIG", small._replace(transient=transient))
        for signals_, frames in ((1, 1), (5, 3), (7, 128), (2, 129), (3, 700)):
            seen = torch.zeros(signals_, frames)
            for slab in offchip.slabs(signals_, frames, 8):
                seen[slab.span] += 1
                # What bounds the memory: a span of 128 frames is the least.
                assert slab.signals * slab.frames <= max(transient // 8, 128)
            assert (seen == 1).all()


def test_silence_and_equality(device: torch.device):
    """Exactly no gradient where e = t, also for the frame that shares its transform."""
    e, t = signals(4, 1, 60, device=device)
    t[0] = 0
    e[1] = 0
    e[2] = t[2] = 0
    e[3] = t[3]
    got = check(spectral(SPECTRUM, Resolution(16, 5, 16), reduction="none"), e, t)
    assert not got.gradient[2:].any()
    e[3, :, 30:] += 0.1
    got = check(spectral(SPECTRUM, Resolution(16, 5, 16), reduction="none"), e, t)
    assert not got.gradient[3, :, :10].any()


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_sanitized(term, device: torch.device):
    e, t = signals(3, 2, 50, device=device)
    e[0, 0, 0], e[0, 1, 49], e[1, 1, 20] = float("nan"), float("inf"), -float("inf")
    t[0, 0, 4], t[0, 1, 49], t[2, 0, 30] = float("inf"), float("nan"), -float("inf")
    plan = spectral(term, Resolution(16, 5, 16), reduction="none", sanitize_spectrum=True)
    got = check(plan, e, t)
    assert int(got.evaluation.nonfinite) == 6
    assert not got.gradient[~e.isfinite()].any()


@pytest.mark.parametrize("term", [SPECTRUM, SPECTRUM_PURE], ids=["d1", "pure"])
def test_unknown_samples_propagate(term, device: torch.device):
    e, t = signals(3, 1, 50, device=device)
    e[0, 0, 20] = float("nan")
    t[1, 0, 30] = float("inf")
    plan = spectral(term, Resolution(16, 5, 16), reduction="none")
    got = check(plan, e, t, by_reference=False)
    assert got.evaluation.loss[:2].isfinite().logical_not().all()
    assert got.gradient[2].isfinite().all()


@pytest.mark.parametrize("length", [50, 55])
def test_rows_do_not_meet(length: int, device: torch.device):
    """Whatever the coefficients of one are, the gradients of others have the bits they have alone.

    Of an odd number of frames and of an even one.
    """
    e, t = signals(2, 1, length, dtype=torch.float32, device=device)
    plan = spectral(SPECTRUM, Resolution(16, 5, 16), reduction="none")
    found = kernels.statistics(plan, e, t, save=True)
    alone = kernels.statistics(plan, e[1:], t[1:], save=True)
    for first in (1e9, float("nan")):
        rows = torch.tensor([first, 1.0], dtype=torch.float64, device=device).expand(1, 3, 2)
        got = kernels.gradient(plan, found.saved, rows, e, e.dtype)
        assert torch.equal(
            got[1:], kernels.gradient(plan, alone.saved, rows[..., 1:], e[1:], e.dtype)
        )


def test_one_domain_sanitized_and_the_other_not(device: torch.device):
    e, t = signals(2, 2, 45, device=device)
    e[0, 0, 9] = float("nan")
    t[0, 1, 40] = float("nan")
    got = check(MULTI._replace(reduction="none"), e, t, by_reference=False)
    assert got.evaluation.loss.isfinite().tolist() == [False, True]
    assert got.evaluation.parts[1:].isfinite().all()
    assert int(got.evaluation.nonfinite) == 2


def test_every_sample_is_counted_once(device: torch.device):
    """Whatever the overlap, and in the reflected borders."""
    e, t = signals(1, 1, 53, device=device)
    e[:] = float("nan")
    for res in (Resolution(16, 3, 16), Resolution(16, 16, 16), Resolution(9, 2, 9)):
        plan = spectral(SPECTRUM, res, sanitize_spectrum=True)
        assert int(run(kernels, plan, e, t).evaluation.nonfinite) == 53
