"""The on-chip STFT route: sums, signs and gradient, over every boundary of frames and stretches.

Its gradient is checked against the float64 adjoint of its own signs, and these where the float64
spectrum has one that float32 can know: a bin that is zero but for rounding may have either sign,
and moves the gradient by more than all rounding errors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from cases import float32_bound, relative, value_and_grad
from checks import (
    ENERGY,
    LEVEL,
    PURE,
    SPECTRUM,
    SPECTRUM_BLEND,
    SPECTRUM_LEVEL,
    WAVEFORM,
    assert_close,
    incoming,
    launches,
    layouts,
)
from torch import Tensor

import torch_l1snr_fast as package
from torch_l1snr_fast import reference
from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.plan import (
    Q_EST,
    WINDOWS,
    Objective,
    Plan,
    Resolution,
)
from torch_l1snr_fast.kernels.triton import common, offchip, onchip, stft
from torch_l1snr_fast.kernels.triton.fft import SPLITS, twiddles
from torch_l1snr_fast.kernels.triton.launching import waves
from torch_l1snr_fast.kernels.triton.onchip.stretches import backward_spans, forward_spans

sys.path.append(str(Path(__file__).parents[2]))
from onchip_checks import (
    GRADIENT,
    MANY,
    NAN,
    RES,
    SUMS,
    TERMS,
    rounding,
    single,
    spectral,
    spectrum,
    verify,
    wanting,
)

from benchmarks import tune

pytestmark = pytest.mark.usefixtures("on_chip")


# Lengths, hops, sizes, windows


@pytest.mark.parametrize("hop", [32, 64, 128])
@pytest.mark.parametrize("length", [129, 130, 255, 256, 257, 321])
def test_lengths(length: int, hop: int, device: torch.device):
    """From the shortest whose border can be reflected, over multiples of all hops.

    Signals lie between NaN, which shows what is read outside of them.
    """
    e, t = (layouts(x)["sliced"] for x in single(1, 1, length, device=device))
    verify(spectral(SPECTRUM, Resolution(256, hop, 256)), e, t)


@pytest.mark.parametrize("length", [191, 192, 193, 311, 319, 320, 383, 384, 385])
def test_lengths_with_levels(length: int, device: torch.device):
    """Around the first and the last sample of pairs of hops, forward and backward."""
    e, t = (layouts(x)["sliced"] for x in single(2, 1, length, device=device))
    verify(spectral(SPECTRUM_BLEND), e, t)


@pytest.mark.parametrize("warps", [1, 8, MANY])
@pytest.mark.parametrize("length", [1279, 1409])
def test_stretches(length: int, warps: int, device, monkeypatch: pytest.MonkeyPatch):
    """Several per signal, of the least span, of a longer one, and one for all; the last unequal."""
    wanting(monkeypatch, warps)
    e, t = (layouts(x)["sliced"] for x in single(1, 1, length, device=device))
    verify(spectral(SPECTRUM_LEVEL), e, t)


ON_CHIP = [variant for variant in tune.VARIANTS if variant.case is tune.SPECTRAL]


@pytest.mark.parametrize("variant", ON_CHIP, ids=tune.Variant.title)
def test_variants(variant: tune.Variant, device: torch.device, monkeypatch: pytest.MonkeyPatch):
    """Of sizes that only a card can judge; several stretches, which do not end alike.

    One of them has a sample that is not finite, and is read again.
    """
    monkeypatch.setattr(common, "CONFIG", variant.config(common.config()))
    e, t = single(1, 1, 1409, device=device)
    e[..., 700] = NAN
    verify(spectral(SPECTRUM, sanitize_spectrum=True), e, t)


@pytest.mark.parametrize("hop", [32, 128])
def test_stretches_of_other_hops(hop: int, device: torch.device):
    verify(spectral(SPECTRUM_LEVEL, Resolution(256, hop, 256)), *single(1, 1, 1201, device=device))


SIZES = [
    (512, 64, 701),
    (512, 128, 1537),
    (512, 256, 769),
    (1024, 64, 600),
    (1024, 128, 700),
    (1024, 256, 1793),
    (2048, 512, 2305),
    (4096, 1024, 3201),
]


@pytest.mark.parametrize(
    ("n", "hop", "length"),
    [pytest.param(*size, marks=pytest.mark.slow if size != SIZES[1] else ()) for size in SIZES],
)
def test_sizes(n: int, hop: int, length: int, device: torch.device):
    verify(spectral(SPECTRUM_LEVEL, Resolution(n, hop, n)), *single(1, 1, length, device=device))


@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name: str, device: torch.device):
    verify(
        spectral(SPECTRUM_LEVEL, Resolution(256, 64, 256, name)), *single(1, 1, 400, device=device)
    )


@pytest.mark.parametrize("win_length", [255, 101, 1])
def test_windows_shorter_than_the_transform(win_length: int, device: torch.device):
    res = Resolution(256, 64, win_length, "hamming")
    verify(spectral(SPECTRUM_LEVEL, res), *single(1, 1, 400, device=device))


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_terms(term: Objective, device: torch.device):
    """Rows and channels of unequal content: a wrong row's coefficients would show."""
    verify(spectral(term), *single(3, 2, 300, device=device))


# With the waveform's gradient


@pytest.mark.parametrize("waveform", [WAVEFORM, LEVEL, PURE], ids=["d1", "level", "pure"])
def test_several_terms(waveform: Objective, device: torch.device):
    """The first resolution writes the waveform's gradient with its own, the second adds to both."""
    e, t = (layouts(x)["sliced"] for x in single(2, 1, 200, device=device))
    e[0, :, 100:110] = t[0, :, 100:110]
    check_terms(Plan(waveform, SPECTRUM, (RES, Resolution(256, 128, 200))), e, t)


def check_terms(plan: Plan, e: Tensor, t: Tensor) -> None:
    """The gradient is the sum of what the terms have alone, but for the rounding of the sum."""
    found = kernels.statistics(plan, e, t, save=True)
    value = kernels.objective(plan, found.partials, *e.shape[1:], torch.float32)
    coefficients = value.coefficients * torch.linspace(-1.5, 1.1, len(e), device=e.device)
    got = kernels.gradient(plan, found.saved, coefficients, e, torch.float32)
    alone = [plan._replace(spectrum=None, resolutions=())]
    alone += [plan._replace(waveform=None, resolutions=(res,)) for res in plan.resolutions]
    want = torch.zeros_like(got, dtype=torch.float64)
    for one, own in zip(alone, coefficients, strict=True):
        saved = kernels.statistics(one, e, t, save=True).saved
        want += kernels.gradient(one, saved, own[None], e, torch.float32).double()
    assert relative(got, want) <= 3 * 2**-24


@pytest.mark.parametrize("kind", [pytest.param("energy", marks=pytest.mark.slow), "sanitized"])
def test_other_waveform_gradients(kind: str, device: torch.device):
    """Of squares, and of samples that the waveform term too must repair."""
    e, t = single(2, 1, 300, device=device)
    plan = Plan(LEVEL, SPECTRUM, (RES, Resolution(256, 128, 200)), sanitize_spectrum=True)
    if kind == "energy":
        plan = plan._replace(waveform=ENERGY)
    else:
        plan = plan._replace(sanitize_waveform=True)
        e[0, 0, 20] = NAN
    check_terms(plan, e, t)


# Which route, and what it launches


def test_route(device: torch.device, monkeypatch: pytest.MonkeyPatch):
    """Hops of a half, a quarter and an eighth; what is not supported has the same results."""
    for n in SPLITS:
        for share in (2, 4, 8):
            assert stft.stft_route(Resolution(n, n // share, n), torch.float32, 9000) is onchip
            assert (
                stft.stft_route(Resolution(n, n // share, n // 2), torch.float64, 9000) is offchip
            )
        for length, route in ((2**31 - 2 * n - 1, onchip), (2**31 - 2 * n, offchip)):
            assert stft.stft_route(Resolution(n, n // 4, n), torch.float32, length) is route
    monkeypatch.setattr(kernels, "stft_route", stft.stft_route)
    e, t = single(1, 1, 300, device=device)
    for n, hop in ((256, 16), (256, 96), (256, 256), (128, 32), (300, 75)):
        res = Resolution(n, hop, n)
        assert not onchip.supports(res, torch.float32, 300)
        found = kernels.statistics(spectral(SPECTRUM, res), e, t, save=False)
        want = reference.term_sums(e.double(), t.double(), SPECTRUM, res)
        assert_close("sums", found.partials[0].double().sum(1)[:, :4], want[:, :4], 2 * SUMS)


def test_launches(device: torch.device):
    """One kernel forward, one more for levels, and one backward."""
    e, t = single(2, 2, 4000, device=device)
    coefficients = torch.ones(1, 3, 2, dtype=torch.float64, device=device)
    RES.window(torch.float32, device)
    twiddles(RES.n_fft, device)
    for term, forward in (
        (SPECTRUM, ["stft_statistics_kernel"]),
        (SPECTRUM_LEVEL, ["stft_statistics_kernel", "stft_level_kernel"]),
    ):
        with launches() as names:
            found = kernels.statistics(spectral(term), e, t, save=True)
            kernels.gradient(spectral(term), found.saved, coefficients, e, torch.float32)
        assert names == [*forward, "stft_gradient_kernel"]


def test_stretches_cover_every_pair_and_every_hop_once():
    """Of lengths up to hours, and with borders that lie in the first and the last stretch."""
    for n in SPLITS:
        for hop in (n // 8, n // 4, n // 2):
            res = Resolution(n, hop, n)
            for length in (n // 2 + 1, n, 3 * n + 1, 44100, 485100, 2**29):
                for count in (1, 3, 64):
                    pairs, span, stretches = forward_spans(res, count, res.frames(length))
                    assert 2 * pairs in (res.frames(length), res.frames(length) + 1)
                    assert 0 < pairs - (stretches - 1) * span <= span <= 16  # bits of frames
                    steps, span, stretches = backward_spans(res, count, length)
                    assert 2 * hop * steps >= length + n
                    assert stretches == 1 or steps >= stretches * span
                    if stretches > 1:
                        assert 2 * hop * span - n // 2 > n // 2
                        assert 2 * hop * (stretches - 1) * span - n // 2 < length - 1 - n // 2


# Against other computations of the same


def test_against_torch_fft(device: torch.device):
    """The route through torch.fft, in float32 too: twice the errors, the same signs."""
    e, t = single(2, 2, 400, device=device)
    plan = spectral(SPECTRUM_LEVEL)
    got = verify(plan, e, t)
    assert_no_doubt(e, t, RES)
    given, term = waves(e, t), SPECTRUM_LEVEL
    sums, saved = offchip.stft_statistics(given, e, t, RES, term, save=True, sanitize=False)
    assert_close("sums", got.partials.double().sum(1), sums.double().sum(1), 2 * SUMS)
    gradient = torch.zeros_like(e)
    coefficients = got.evaluation.coefficients * incoming(plan, 2, device)
    offchip.stft_gradient(given, saved, coefficients[0], e, RES, term, None, gradient)
    assert relative(got.gradient, gradient) <= 2 * GRADIENT


def assert_no_doubt(e: Tensor, t: Tensor, res: Resolution) -> None:
    """These samples have no bin whose sign rounding could change: gradients are comparable."""
    error = e - t
    known = spectrum(error, res).abs() > rounding(error, res)
    known[..., 0, 1] = known[..., -1, 1] = True  # Im at 0 and n / 2 is zero
    # Frame 0 mirrors itself in the border, so all of its Im is zero. Whatever signs rounding gives
    # it make a frame that cancels when the border is folded.
    known[..., 0, :, 1] = True
    assert known.all()


def test_against_torchaudio(device: torch.device):
    """Its Spectrogram is what torch-l1-snr transforms with."""
    transforms = pytest.importorskip("torchaudio").transforms
    e, t = single(2, 1, 333, device=device)
    window = {"normalized": True, "power": None}
    stft_of = transforms.Spectrogram(256, 200, 64, **window).double().to(device)
    got = verify(spectral(SPECTRUM_LEVEL, Resolution(256, 64, 200)), e, t).partials.double().sum(1)
    error, target = stft_of(e.double() - t.double()), stft_of(t.double())
    wanted = [error.real.abs(), error.imag.abs(), target.real.abs(), target.imag.abs()]
    wanted += [stft_of(e.double()).abs().square(), target.abs().square()]
    want = torch.stack([x.flatten(1).sum(1) for x in wanted], dim=1)
    assert_close("sums", got[:, : Q_EST + 2], want, SUMS)


def test_finite_differences(device: torch.device):
    """The float64 loss along a direction, against the float32 gradient times that direction.

    A bin that changes its sign on the way has no derivative there: such bins are let off with
    twice what they add. The third derivative of a logarithm is of the order of (h / error)^2.
    """
    term = SPECTRUM_LEVEL._replace(delta_lambda=0.0)  # lambda is a constant for the gradient
    e, t = single(1, 1, 500, device=device)
    plan = Plan(None, term, (RES,), reduction="sum")
    found = kernels.statistics(plan, e, t, save=True)
    value = kernels.objective(plan, found.partials, 1, 500, torch.float32)
    gradient = kernels.gradient(plan, found.saved, value.coefficients, e, torch.float32).double()
    direction = torch.randn_like(gradient)
    direction = direction / direction.norm() + gradient / gradient.norm()
    h, e, t = 1e-5, e.double(), t.double()
    ahead, behind = (reference.loss(plan, e + s * direction, t).loss for s in (h, -h))
    before, after = (spectrum(e + s * direction - t, RES) for s in (-h, h))
    crossing = spectrum(direction, RES).abs()[before.sign() != after.sign()].sum()
    largest = value.coefficients[0, :2].max()
    error = ((ahead - behind) / (2 * h) - (gradient * direction).sum()).abs()
    assert error <= GRADIENT * gradient.norm() * direction.norm() + 2 * largest * crossing


@pytest.mark.parametrize("kind", ["STFTL1SNRDBLoss", "MultiL1SNRDBLoss"])
def test_losses(kind: str, device: torch.device):
    """The modules as they are used, against the reference in float64."""
    settings = {"n_ffts": [256, 512], "hop_lengths": [64, 256], "win_lengths": [256, 400]}
    e, t = single(2, 1, 700, device=device)
    for sizes in zip(*settings.values(), strict=True):
        assert_no_doubt(e, t, Resolution(*sizes))
    assert_loss(kind, settings, e, t)


def assert_loss(kind: str, settings: dict[str, Any], e: Tensor, t: Tensor) -> None:
    loss = getattr(package, kind)("loss", **settings)
    with package.use_backend("triton"):
        got, gradient = value_and_grad(loss, e, t)
    with package.use_backend("reference"):
        want, exact = value_and_grad(loss, e.double(), t.double())
    known = cases.without_grad_scale(settings)
    assert abs(float(got) - float(want)) <= float32_bound(kind, e.cpu(), t.cpu(), **known)
    # Coefficients come from float32 sums, and terms are added up in float32.
    assert relative(gradient, exact) <= 4 * SUMS + GRADIENT


EVERY_OPTION = [
    (kind, options)
    for kind in cases.SPECTRAL
    for options in cases.OPTIONS[kind]
    if "n_ffts" not in str(options)
]


@pytest.mark.parametrize(("kind", "options"), EVERY_OPTION, ids=str)
def test_every_option(kind: str, options: dict[str, Any], device: torch.device):
    """All that the loss's own tests ask for, at a size that this route takes."""
    sizes = {"n_ffts": [256], "hop_lengths": [64], "win_lengths": [200], "min_audio_length": 256}
    settings = sizes | options
    e, t = single(2, 2, 300, device=device)
    assert_no_doubt(e, t, Resolution(256, 64, 200, options.get("window_fn", "hann")))
    assert_loss(kind, settings, e, t)
