"""The losses as plain differentiable PyTorch: their definition, term by term.

Every other backend is checked against this one, which in turn is checked against torch-l1-snr and
against formulas in NumPy. It also serves what a hand-written backward cannot: double backward,
gradients to the actuals, forward mode and torch.func.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .kernels.eager import sanitized
from .kernels.eager.objective import combine, of_tensors
from .kernels.eager.waveform import compute_dtype, sum_dtype
from .kernels.modes import lifted, variable
from .kernels.plan import Evaluation, Objective, Plan, Resolution, changed


class ScaleGradient(torch.autograd.Function):
    """The value unchanged to the bit, its gradient multiplied by a constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: float) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


class ScaleGradientBothWays(ScaleGradient):
    """The same with forward mode, which torch.compile does not take."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        scale: float = ctx.scale
        return tangent * scale


def scale_gradient(loss: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return loss
    compiling = torch.compiler.is_compiling()
    if not compiling and torch._C._is_tracing():  # which can save operators alone
        fixed = loss.detach()
        return fixed + (loss - fixed) * scale  # nan where the loss is infinite
    function = ScaleGradient if compiling else ScaleGradientBothWays
    scaled: Tensor = function.apply(loss, scale)  # type: ignore[no-untyped-call]
    return scaled


def stft(x: Tensor, res: Resolution) -> Tensor:
    """Spectrum [B, C, frames, bins] of [B, C, L]."""
    padded = torch.nn.functional.pad(x, (res.pad, res.pad), mode="reflect")
    frames = padded.unfold(-1, res.n_fft, res.hop_length)
    spectrum: Tensor = torch.fft.rfft(frames * lifted(res.window(x.dtype, x.device)))
    return spectrum


def row_sums(parts: list[tuple[Tensor, Tensor]], e: Tensor, t: Tensor, power: int) -> Tensor:
    """The columns of the statistics [B, COLUMNS] from (error, reference) pairs, one per part."""
    error, reference = (
        [part[i].abs().pow(power).flatten(1).sum(1) for part in parts] for i in (0, 1)
    )
    levels = [x.abs().square().flatten(1).sum(1) for x in (e, t)]
    unused = torch.zeros_like(levels[0])
    pad = [unused] * (2 - len(parts))
    columns: Tensor = torch.stack([*error, *pad, *reference, *pad, *levels, unused], dim=1)
    return columns


def term_sums(e: Tensor, t: Tensor, term: Objective, res: Resolution | None) -> Tensor:
    if res is None:
        return row_sums([(e - t, t)], e, t, term.power)
    spectrum_e, spectrum_t, error = stft(e, res), stft(t, res), stft(e - t, res)
    parts = [(error.real, spectrum_t.real), (error.imag, spectrum_t.imag)]
    return row_sums(parts, spectrum_e, spectrum_t, term.power)


def followed(term: Objective) -> Objective:
    """The term with what may be scheduled as torch.compile can follow it."""
    numbers = {name: variable(getattr(term, name)) for name in ("weight", "reg_coef", "l1_scale")}
    return changed(term, **numbers)


def loss(plan: Plan, estimates: Tensor, actuals: Tensor) -> Evaluation:
    """Loss and parts of [B, C, L] waveforms; the coefficients are those of the closed form."""
    dtype = compute_dtype(estimates, actuals)
    raw = estimates.to(dtype), actuals.to(dtype)
    clean = sanitized(raw[0]), sanitized(raw[1])
    waves = clean if plan.sanitize_waveform else raw
    spectra = clean if plan.sanitize_spectrum else raw
    sums = [] if plan.waveform is None else [term_sums(*waves, plan.waveform, None)]
    if plan.spectrum is not None:
        sums += [term_sums(*spectra, plan.spectrum, res) for res in plan.resolutions]

    wide = [x.to(sum_dtype(estimates.device)) for x in sums]
    _, channels, length = estimates.shape
    terms = [(followed(term), elements) for term, elements in plan.terms(channels, length)]
    total, parts, coefficients = combine(plan, terms, of_tensors(wide, terms), dtype)
    bad = torch.zeros((), device=estimates.device)
    if plan.sanitize_waveform or plan.sanitize_spectrum:
        bad = (~raw[0].isfinite()).sum() + (~raw[1].isfinite()).sum()
    scaled = scale_gradient(total, plan.grad_scale)
    return Evaluation(scaled, coefficients.detach(), parts.detach(), bad)
