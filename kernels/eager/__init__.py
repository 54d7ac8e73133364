"""Plain PyTorch, on any device: the twin of every fused kernel, and the route on a CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..plan import NONFINITE, Evaluation, Plan, Statistics
from .objective import objective
from .stft import stft_gradient, stft_statistics
from .waveform import waveform_gradient, waveform_statistics

__all__ = ["Evaluation", "gradient", "objective", "statistics"]


def sanitized(x: Tensor) -> Tensor:
    """NaN to silence, +-Inf to full scale."""
    return torch.nan_to_num(x, nan=0.0, posinf=1.0, neginf=-1.0)


def statistics(plan: Plan, estimates: Tensor, actuals: Tensor, save: bool) -> Statistics:
    """Sums of every term; ``save`` keeps what :func:`gradient` needs."""
    found = _statistics(plan, estimates, actuals, save, sanitize=False)
    # A sample that is not finite leaves no finite sum behind, so clean data is never scanned (but
    # where long hops leave samples out of every frame).
    length = estimates.shape[-1]
    seen = plan.waveform is not None or any(r.covers(length) for r in plan.resolutions)
    if (plan.sanitize_waveform or plan.sanitize_spectrum) and not (
        seen and all(math.isfinite(p.sum()) for p in found.partials)
    ):
        finite = estimates.isfinite()
        count = finite.logical_not().sum() + actuals.isfinite().logical_not().sum()
        if count:
            found = _statistics(plan, estimates, actuals, save, sanitize=True)
            found.partials[-1][0, 0, NONFINITE] = count
            found = Statistics(found.partials, (finite, *found.saved[1:]))
    return found


def _statistics(
    plan: Plan, estimates: Tensor, actuals: Tensor, save: bool, sanitize: bool
) -> Statistics:
    partials: list[Tensor] = []
    saved: list[Tensor | None] = [None]
    raw = (estimates, actuals)
    clean = (sanitized(estimates), sanitized(actuals)) if sanitize else raw
    if plan.waveform is not None:
        waves = clean if plan.sanitize_waveform else raw
        sums, kept = waveform_statistics(*waves, plan.waveform, save)
        partials.append(sums)
        saved.append(kept)
    if plan.spectrum is not None:
        spectra = clean if plan.sanitize_spectrum else raw
        for sums, *others in stft_statistics(*spectra, plan.resolutions, plan.spectrum, save):
            partials.append(sums)
            saved += others
    return Statistics(tuple(partials), tuple(saved))


def gradient(
    plan: Plan,
    saved: tuple[Tensor | None, ...],
    coefficients: Tensor,
    estimates: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient of the loss with respect to the estimates, in their dtype, computed in ``dtype``.

    The estimates' samples are read for level matching alone; without it they may have changed.
    """
    finite, *kept = saved
    mask = None if finite is None else finite.to(dtype)
    clean = estimates if finite is None or not plan.has_level else sanitized(estimates)

    if plan.waveform is not None:
        error = kept.pop(0)
        assert error is not None
        waves = clean if plan.sanitize_waveform else estimates
        a, _, r, *_ = coefficients.to(dtype).reshape(-1, len(estimates), 1, 1).unbind()
        a = a if plan.waveform.power == 1 else 2 * a
        level = r if plan.waveform.has_level else None
        total = waveform_gradient(error, waves, a, level, dtype)
        if mask is not None and plan.sanitize_waveform:
            total.mul_(mask)
    else:
        total = torch.zeros(estimates.shape, dtype=dtype, device=estimates.device)
    if plan.spectrum is not None:
        spectral = total if mask is None else torch.zeros_like(total)
        spectra = clean if plan.sanitize_spectrum else estimates
        pairs = list(zip(kept[::2], kept[1::2], strict=True))
        rows = coefficients[-len(pairs) :]
        stft_gradient(pairs, spectra, rows, plan.resolutions, spectral)
        if mask is not None:
            total.addcmul_(spectral, mask)
    return total.to(estimates.dtype)
