"""Fused Triton kernels with hand-written backwards; their plain twins are in ``eager``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..eager.waveform import compute_dtype
from ..plan import Evaluation, Plan, Statistics
from . import onchip
from .common import on_device, readable
from .objective import objective
from .onchip import Base
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
    dtype, length = compute_dtype(estimates, actuals), estimates.shape[-1]
    partials: list[Tensor] = []
    error = unknown = None
    spectral: list[Tensor | None] = []
    with on_device(estimates):
        if plan.waveform is not None:
            sums, error = waveform_statistics(
                estimates,
                actuals,
                plan.waveform,
                save,
                sanitize=plan.sanitize_waveform,
                count=plan.sanitize_waveform or plan.sanitize_spectrum,
            )
            partials.append(sums)
        if plan.spectrum is not None:
            routes = [stft_route(res, dtype, length) for res in plan.resolutions]
            if save and plan.sanitize_spectrum:
                unknown = new_unknown(estimates)
                if any(route is not onchip for route in routes):  # which finds them on its way
                    find_unknown(estimates, unknown)
            for res, route in zip(plan.resolutions, routes, strict=True):
                sums, kept = route.stft_statistics(
                    estimates, actuals, res, plan.spectrum, save, plan.sanitize_spectrum, unknown
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
    total = torch.empty(
        estimates.shape, dtype=estimates.dtype if narrow else dtype, device=estimates.device
    )
    per_term, (error, unknown, *spectral) = list(coefficients.contiguous()), saved
    if plan.has_level:
        estimates = readable(estimates)
    with on_device(estimates):
        base: Base | None = None
        if _writes_waveform(plan, dtype, length):
            base = Base()
            if plan.waveform is not None:
                base = Base(error, per_term.pop(0), plan.waveform.has_level)
        elif plan.waveform is not None:
            waveform_gradient(
                error,
                per_term.pop(0),
                estimates,
                plan.waveform,
                plan.sanitize_waveform,
                dtype,
                total,
            )
        else:
            total.zero_()
        if plan.spectrum is not None:
            for res, part in zip(plan.resolutions, per_term, strict=True):
                route = stft_route(res, dtype, length)
                kept, spectral = tuple(spectral[: route.SAVED]), spectral[route.SAVED :]
                more = () if base is None else (base,)
                route.stft_gradient(
                    kept, part, estimates, res, plan.spectrum, unknown, total, *more
                )
                base = None
    return total.to(estimates.dtype)
