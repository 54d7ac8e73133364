"""On-chip sums, signs and gradients against float64, with bounds derived from the transform's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from checks import (
    SPECTRUM,
    SPECTRUM_BLEND,
    SPECTRUM_LEVEL,
    SPECTRUM_PURE,
    assert_close,
    incoming,
    run_reference,
    signals,
)
from test_fft import bound as fft_bound
from torch import Tensor

from torch_l1snr_fast import reference
from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.eager import sanitized
from torch_l1snr_fast.kernels.plan import (
    Evaluation,
    Objective,
    Plan,
    Resolution,
)
from torch_l1snr_fast.kernels.triton import common
from torch_l1snr_fast.kernels.triton.fft import SPLITS

sys.path.append(str(Path(__file__).parents[2]))

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


def wanting(monkeypatch: pytest.MonkeyPatch, warps: int) -> None:
    """Few programs, so long stretches, or as many as of a large batch."""
    sizes = common.config()._replace(forward_warps=warps, backward_warps=-(-warps // 4))
    monkeypatch.setattr(common, "CONFIG", sizes)


MANY = common.Config().forward_warps
