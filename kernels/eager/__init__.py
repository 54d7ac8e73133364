"""Plain PyTorch, on any device: the twin of every fused kernel, and the route on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..plan import Evaluation, Plan, Statistics, Table
from . import few, waveform
from . import objective as many
from .objective import objective
from .stft import stft_gradient, stft_statistics
from .waveform import compute_dtype, waveform_gradient, waveform_statistics

__all__ = ["Evaluation", "gradient", "objective", "statistics", "value_and_gradient"]


def sanitized(x: Tensor) -> Tensor:
    """NaN to silence, +-Inf to full scale."""
    return torch.nan_to_num(x, nan=0.0, posinf=1.0, neginf=-1.0)


def value_and_gradient(
    plan: Plan, estimates: Tensor, actuals: Tensor, save: bool
) -> tuple[Tensor, Table, int, Tensor | None]:
    """Loss, parts, the number of samples that are not finite and, if ``save``, the gradient.

    In groups of rows, which know nothing of each other: so the gradient of some is written while
    their samples are still in the cache.
    """
    batch, channels, length = estimates.shape
    dtype = compute_dtype(estimates, actuals)
    terms = plan.terms(channels, length)
    share, shares = many.factors(plan, terms, batch)
    total, rows, waves = None, batch, [estimates, actuals]
    if save:
        total = room_for(estimates, dtype)
        waves.append(total)
        if estimates.device.type == "cpu":
            at_most = max(1, waveform.BLOCK // (channels * length))
            rows = -(-batch // -(-batch // at_most))  # in groups of like size
    groups: Iterable[Sequence[Tensor]] = [waves]
    if rows < batch:
        groups = zip(*(torch.split(x, rows) for x in waves), strict=True)
    numbers: ModuleType = few if few.serves(terms, estimates.device, rows) else many
    tables, nonfinite = [], 0
    for e, t, *room in groups:
        found = statistics(plan, e, t, save, *room)
        *sums, count = found.partials
        tables.append(numbers.evaluated(terms, sums))
        nonfinite += count
        if save:
            slopes = numbers.coefficients(tables[-1], shares, dtype)
            write_gradient(plan, found.saved, slopes, e)
    loss, parts = numbers.finished(plan, tables, share, dtype)
    return loss, parts, nonfinite, total


def room_for(estimates: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(estimates, dtype=dtype, memory_format=torch.contiguous_format)


def statistics(
    plan: Plan, estimates: Tensor, actuals: Tensor, save: bool, room: Tensor | None = None
) -> Statistics:
    """Sums of every term, and the number of samples that are not finite.

    ``save`` keeps what :func:`gradient` needs, and ``room`` is where that will be written.
    """
    if save and room is None:
        room = room_for(estimates, compute_dtype(estimates, actuals))
    found = _statistics(plan, estimates, actuals, room, sanitize=False)
    # A sample that is not finite leaves no finite sum behind, so clean data is never scanned (but
    # where long hops leave samples out of every frame).
    if (plan.sanitize_waveform or plan.sanitize_spectrum) and not (
        (plan.waveform is not None or any(r.covers(estimates.shape[-1]) for r in plan.resolutions))
        and all(math.isfinite(p.sum()) for p in found.partials[:-1])
    ):
        finite = estimates.isfinite()
        count = int(finite.logical_not().sum() + actuals.isfinite().logical_not().sum())
        if count:
            found = _statistics(plan, estimates, actuals, room, sanitize=True)
            *sums, _ = found.partials
            found = Statistics((*sums, count), (room, finite, *found.saved[2:]))
    return found


def _statistics(
    plan: Plan, estimates: Tensor, actuals: Tensor, room: Tensor | None, sanitize: bool
) -> Statistics:
    partials: list[Tensor] = []
    spectral: list[Tensor | None] = []
    raw = (estimates, actuals)
    clean = (sanitized(estimates), sanitized(actuals)) if sanitize else raw
    if plan.waveform is not None:
        waves = clean if plan.sanitize_waveform else raw
        partials.append(waveform_statistics(*waves, plan.waveform, room))
    if plan.spectrum is not None:
        spectra = clean if plan.sanitize_spectrum else raw
        save = room is not None
        for sums, *others in stft_statistics(*spectra, plan.resolutions, plan.spectrum, save):
            partials.append(sums)
            spectral += others
    return Statistics((*partials, 0), (room, None, *spectral))


def gradient(
    plan: Plan,
    saved: tuple[Tensor | None, ...],
    coefficients: Tensor,
    estimates: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient of the loss with respect to the estimates, in their dtype, computed in ``dtype``.

    The estimates' samples are read for level matching alone. What was saved of the waveform is
    written over.
    """
    return write_gradient(plan, saved, coefficients.to(dtype), estimates).to(estimates.dtype)


def write_gradient(
    plan: Plan, saved: tuple[Tensor | None, ...], coefficients: Tensor, estimates: Tensor
) -> Tensor:
    """The same, in the dtype of the coefficients and in the room that was given for it."""
    total, finite, *kept = saved
    assert total is not None
    mask = None if finite is None else finite.to(total.dtype)
    clean = estimates if finite is None or not plan.has_level else sanitized(estimates)

    if plan.waveform is not None:
        waves = clean if plan.sanitize_waveform else estimates
        waveform_gradient(total, waves, coefficients, plan.waveform)
        if mask is not None and plan.sanitize_waveform:
            total.mul_(mask)
    else:
        total.zero_()
    if plan.spectrum is not None:
        spectral = total if mask is None else torch.zeros_like(total)
        spectra = clean if plan.sanitize_spectrum else estimates
        pairs = list(zip(kept[::2], kept[1::2], strict=True))
        rows = coefficients[-len(pairs) :]
        stft_gradient(pairs, spectra, rows, plan.resolutions, spectral)
        if mask is not None:
            total.addcmul_(spectral, mask)
    return total
