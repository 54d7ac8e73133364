"""The on-chip STFT route: sums, signs and gradient, over every boundary of frames and stretches.

Its gradient is checked against the float64 adjoint of its own signs, and these where the float64
spectrum has one that float32 can know: a bin that is zero but for rounding may have either sign,
and moves the gradient by more than all rounding errors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

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
    SPECTRUM_PURE,
    WAVEFORM,
    assert_alike,
    assert_close,
    incoming,
    launches,
    layouts,
    run_reference,
    signals,
)
from test_fft import bound as fft_bound
from torch import Tensor

import torch_l1snr_fast as package
from torch_l1snr_fast import reference
from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.eager import sanitized
from torch_l1snr_fast.kernels.plan import (
    NONFINITE,
    Q_EST,
    WINDOWS,
    Evaluation,
    Objective,
    Plan,
    Resolution,
)
from torch_l1snr_fast.kernels.triton import common, offchip, onchip, stft
from torch_l1snr_fast.kernels.triton.fft import SPLITS, twiddles
from torch_l1snr_fast.kernels.triton.onchip.stretches import backward_spans, forward_spans

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import tune

TERMS = {
    "d1": SPECTRUM,
    "level": SPECTRUM_LEVEL,
    "blend": SPECTRUM_BLEND,
    "pure": SPECTRUM_PURE,
}
NAN, INF = float("nan"), float("inf")

RES = Resolution(256, 64, 256)  # with little work: stretches of 4 frames forward, 8 hops backward

# Of sums, relative. A bin is off by at most 6.6 x 2^-24 rms (test_fft); were all errors of a frame
# to show in its sum, that were 6.6 x 1.25 (rms by mean magnitude) x 2^-24. Most do not, being of
# either sign, and neither does the rounding of the sums.
SUMS = 5e-7
# Of the gradient's norm: 6.6 x 2^-24 of the transform, and sqrt(2 + 16) x 2^-24 of coefficients,
# windows and adding up to 16 frames and a border; the squares add.
GRADIENT = 1e-6


@pytest.fixture(autouse=True)
def on_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "stft_route", lambda *_: onchip)


class Found(NamedTuple):
    evaluation: Evaluation
    gradient: Tensor
    partials: Tensor
    signs: Tensor  # [B, C, frames, bins, 2]


def spectral(term: Objective = SPECTRUM, res: Resolution = RES, **settings) -> Plan:
    return Plan(None, term, (res,), reduction="none", **settings)


def single(*shape: int, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    return signals(*shape, dtype=torch.float32, device=device, seed=seed)


def decoded(words: Tensor, res: Resolution, shape: tuple[int, ...]) -> Tensor:
    """Signs -1, 0 or 1 of Re and Im [B, C, frames, bins, 2], as the docstring of signs.py has them.

    Of a frame that completes the last pair, and does not exist, all are zero.
    """
    frames = res.frames(shape[-1])
    by_byte = words[..., None, :] >> torch.tensor([24, 16, 8, 0], device=words.device)[:, None]
    by_bin = by_byte.flatten(2)  # [signals, pairs, n / 2]
    codes = by_bin[..., None] >> torch.tensor([6, 4, 2, 0], device=words.device) & 3
    signs = (codes & 1) * (1 - (codes & 2))
    signs = signs.unflatten(-1, (2, 2)).transpose(2, 3).flatten(1, 2)  # [signals, frames, n / 2, 2]
    signs = torch.nn.functional.pad(signs, (0, 0, 0, 1))
    signs[:, :, -1, 0] = signs[:, :, 0, 1]
    signs[:, :, 0, 1] = 0
    assert not signs[:, frames:].any()
    return signs[:, :frames].unflatten(0, shape[:2])


def spectrum(x: Tensor, res: Resolution) -> Tensor:
    """Re and Im of the float64 STFT, [B, C, frames, bins, 2]."""
    return torch.view_as_real(reference.stft(x.double(), res))


def rounding(error: Tensor, res: Resolution) -> Tensor:
    """What a float32 bin of e - t may be off by, [B, C, frames, 1, 1]: six times its rms.

    A frame shares its transform with another, so it is their norm that rounding errors are
    relative to. The window and e - t are rounded as well.
    """
    padded = torch.nn.functional.pad(error.double(), (res.pad, res.pad), mode="reflect")
    framed = padded.unfold(-1, res.n_fft, res.hop_length) * res.window(torch.float64, error.device)
    energy = framed.square().sum(-1)
    pairs = torch.nn.functional.pad(energy, (0, energy.shape[-1] % 2)).unfold(-1, 2, 2).sum(-1)
    norm = pairs.repeat_interleave(2, dim=-1)[..., : energy.shape[-1]].sqrt()
    bin_error = fft_bound(res.n_fft, SPLITS[res.n_fft].radices) + 2**-24
    return 6 * bin_error * norm[..., None, None]


def assert_signs(signs: Tensor, error: Tensor, res: Resolution) -> None:
    """Right wherever rounding cannot decide; zero in silent frames, whatever their partner has."""
    want, doubt = spectrum(error, res), rounding(error, res)
    known = want.abs() > doubt
    assert torch.equal(signs[known].double(), want[known].sign())
    silent = (want == 0).all(-1).all(-1)
    assert not signs[silent].any()


def adjoint(res: Resolution, signs: Tensor, coefficients: Tensor, e: Tensor) -> Tensor:
    """Float64 gradient of a_re |Re D| + a_im |Im D| + r Q_est / 2 for given signs, by autograd."""
    x = e.double().requires_grad_()
    found = torch.view_as_real(reference.stft(x, res))
    a_re, a_im, r = coefficients.double()[..., None, None, None].unbind()
    value = torch.stack([a_re, a_im], dim=-1) * signs * found + r[..., None] / 2 * found.square()
    value.sum().backward()
    return x.grad


def verify(plan: Plan, e: Tensor, t: Tensor) -> Found:
    """One resolution, forward and backward; returned for what is special about the case."""
    (res,), term = plan.resolutions, plan.spectrum
    found = kernels.statistics(plan, e, t, save=True)
    value = kernels.objective(plan, found.partials, *e.shape[1:], torch.float32)
    coefficients = value.coefficients * incoming(plan, len(e), e.device)
    # Without levels the estimates may have changed: only their shape, dtype and device count.
    given = e if plan.has_level else torch.full_like(e, NAN)
    gradient = kernels.gradient(plan, found.saved, coefficients, given, torch.float32)
    assert gradient.dtype == e.dtype

    clean = [sanitized(x.float()) if plan.sanitize_spectrum else x.float() for x in (e, t)]
    want = run_reference(plan, e.float(), t.float()).evaluation
    assert int(value.nonfinite) == int(want.nonfinite)
    (partials,) = found.partials
    columns = 2 if term.pure_l1 else 6 if term.regularize else 4
    sums = reference.term_sums(*(x.double() for x in clean), term, res)
    # Of the larger part: Re or Im of a frame that mirrors itself in the border is but rounding.
    got_sums, want_sums = (
        x[:, :columns].unflatten(1, (-1, 2)) for x in (partials.double().sum(1), sums)
    )
    assert_close("sums", got_sums, want_sums, SUMS, dim=2)
    # A coefficient is a quotient of sums, times the distance of two logarithms with the level.
    assert_close("coefficients", value.coefficients, want.coefficients, 4 * SUMS)
    exact = want.loss.detach()
    assert ((value.loss - exact).abs() <= 2e-5 + 4 * SUMS * exact.abs()).all()

    signs = decoded(found.saved[2], res, tuple(e.shape))
    assert_signs(signs, clean[0] - clean[1], res)
    # Its own signs: see the top of this file.
    exact = adjoint(res, signs, coefficients[0], clean[0]).masked_fill(~e.isfinite(), 0.0)
    bound = GRADIENT + (0.0 if e.dtype == torch.float32 else torch.finfo(e.dtype).eps)
    error = (gradient.double() - exact).norm(dim=2)
    assert (error <= bound * exact.norm(dim=2)).all(), (error / exact.norm(dim=2)).max()
    return Found(value, gradient, partials, signs)


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


def want(monkeypatch: pytest.MonkeyPatch, warps: int) -> None:
    """Few programs, so long stretches, or as many as of a large batch."""
    sizes = common.config()._replace(forward_warps=warps, backward_warps=-(-warps // 4))
    monkeypatch.setattr(common, "CONFIG", sizes)


MANY = common.Config().forward_warps


@pytest.mark.parametrize("warps", [1, 8, MANY])
@pytest.mark.parametrize("length", [1279, 1409])
def test_stretches(length: int, warps: int, device, monkeypatch: pytest.MonkeyPatch):
    """Several per signal, of the least span, of a longer one, and one for all; the last unequal."""
    want(monkeypatch, warps)
    e, t = (layouts(x)["sliced"] for x in single(1, 1, length, device=device))
    verify(spectral(SPECTRUM_LEVEL), e, t)


ON_CHIP = [variant for variant in tune.VARIANTS if variant.case is tune.SPECTRAL]


@pytest.mark.parametrize("variant", ON_CHIP, ids=tune.Variant.title)
def test_variants(variant: tune.Variant, device: torch.device, monkeypatch: pytest.MonkeyPatch):
    """Of sizes that only a card can judge; several stretches, which do not end alike."""
    monkeypatch.setattr(common, "CONFIG", variant.config(common.config()))
    verify(spectral(SPECTRUM), *single(1, 1, 1409, device=device))


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
    [pytest.param(*size, marks=pytest.mark.slow if size[0] > 512 else ()) for size in SIZES],
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


@pytest.mark.parametrize("kind", ["energy", "sanitized"])
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
    want(monkeypatch, warps)
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
    sums, saved = offchip.stft_statistics(e, t, RES, SPECTRUM_LEVEL, save=True, sanitize=False)
    assert_close("sums", got.partials.double().sum(1), sums.double().sum(1), 2 * SUMS)
    gradient = torch.zeros_like(e)
    coefficients = got.evaluation.coefficients * incoming(plan, 2, device)
    offchip.stft_gradient(saved, coefficients[0], e, RES, SPECTRUM_LEVEL, None, gradient)
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
