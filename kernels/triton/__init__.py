"""Fused Triton kernels with hand-written backwards; their plain twins are in ``eager``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan import Evaluation, Plan, Statistics
from . import onchip
from .common import on_device, readable
from .launching import Waves, waves
from .objective import objective
from .onchip import ADDED, ZERO, Base
from .stft import stft_route
from .unknown import find_unknown, new_unknown
from .waveform import waveform_gradient, waveform_statistics

__all__ = ["Evaluation", "gradient", "objective", "statistics"]


def _writes_waveform(plan: Plan, dtype: torch.dtype, length: int) -> bool:
    """Whether the backward of the first resolution computes the waveform's gradient on the way.

    It has one read and one write of the gradient less.
    """
    if plan.spectrum is None or stft_route(plan.resolutions[0], dtype, length) is not onchip:
        return False
    return plan.waveform is None or (plan.waveform.power == 1 and not plan.sanitize_waveform)


def statistics(plan: Plan, estimates: Tensor, actuals: Tensor, save: bool) -> Statistics:
    """Sums of every term; ``save`` keeps what :func:`gradient` needs.

    That is of e - t (its signs), of the samples that are not finite, and of each resolution.
    """
    estimates, actuals = readable(estimates), readable(actuals)
    given = waves(estimates, actuals)
    partials: list[Tensor] = []
    error = unknown = None
    spectral: list[Tensor | None] = []
    with on_device(estimates):
        if plan.waveform is not None:
            sums, error = waveform_statistics(
                given,
                estimates,
                actuals,
                plan.waveform.kind,
                save,
                plan.sanitize_waveform,
                plan.sanitize_waveform or plan.sanitize_spectrum,
            )
            partials.append(sums)
        if plan.spectrum is not None:
            spectrum = plan.spectrum.kind
            routes = [stft_route(res, given.dtype, given.shape[-1]) for res in plan.resolutions]
            if save and plan.sanitize_spectrum:
                unknown = new_unknown(given, estimates)
                if any(route is not onchip for route in routes):  # which finds them on its way
                    find_unknown(given, estimates, unknown)
            for res, route in zip(plan.resolutions, routes, strict=True):
                sums, kept = route.stft_statistics(
                    given,
                    estimates,
                    actuals,
                    res,
                    spectrum,
                    save,
                    plan.sanitize_spectrum,
                    unknown,
                )
                partials.append(sums)
                spectral += kept
    return Statistics(tuple(partials), (error, unknown, *spectral))


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
    length = estimates.shape[-1]
    # Several terms add up in the dtype of the computation; one is rounded where it is computed.
    narrow = plan.spectrum is None and dtype == torch.float32
    total = estimates.new_empty(estimates.shape, dtype=estimates.dtype if narrow else dtype)
    per_term, (error, unknown, *spectral) = list(coefficients.contiguous()), saved
    if plan.has_level:
        estimates = readable(estimates)
    strides = estimates.stride()
    given = Waves(estimates.shape, strides, strides, dtype, estimates.device)
    with on_device(estimates):
        base = ADDED
        if _writes_waveform(plan, dtype, length):
            base = ZERO
            if plan.waveform is not None:
                kind = "level" if plan.waveform.has_level else "signs"
                base = Base(kind, error, per_term.pop(0))
        elif plan.waveform is not None:
            waveform_gradient(
                given,
                error,
                per_term.pop(0),
                estimates,
                plan.waveform.kind,
                plan.sanitize_waveform,
                total,
            )
        else:
            total.zero_()
        if plan.spectrum is not None:
            spectrum = plan.spectrum.kind
            for res, part in zip(plan.resolutions, per_term, strict=True):
                route = stft_route(res, dtype, length)
                kept, spectral = tuple(spectral[: route.SAVED]), spectral[route.SAVED :]
                more = () if base is ADDED else (base,)
                route.stft_gradient(
                    given, kept, part, estimates, res, spectrum, unknown, total, *more
                )
                base = ADDED
    return total.to(estimates.dtype)
