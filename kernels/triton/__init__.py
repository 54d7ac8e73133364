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
from .waveform import waveform_gradient, waveform_statistics

__all__ = ["Evaluation", "gradient", "objective", "statistics"]


def statistics(plan: Plan, estimates: Tensor, actuals: Tensor, save: bool) -> Statistics:
    """Sums of every term; ``save`` keeps what :func:`gradient` needs."""
    estimates, actuals = readable(estimates), readable(actuals)
    dtype, length = compute_dtype(estimates, actuals), estimates.shape[-1]
    partials: list[Tensor] = []
    saved: list[Tensor | None] = []
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
            saved.append(error)
        if plan.spectrum is not None:
            for res in plan.resolutions:
                sums, kept = stft_route(res, dtype, length).stft_statistics(
                    estimates, actuals, res, plan.spectrum, save, plan.sanitize_spectrum
                )
                partials.append(sums)
                saved += kept
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
    length = estimates.shape[-1]
    # Several terms add up in the dtype of the computation; one is rounded where it is computed.
    narrow = plan.spectrum is None and dtype == torch.float32
    total = torch.empty(
        estimates.shape, dtype=estimates.dtype if narrow else dtype, device=estimates.device
    )
    per_term, kept = list(coefficients.contiguous()), list(saved)
    estimates = readable(estimates)
    with on_device(estimates):
        base: tuple[Base, ...] = ()
        if plan.waveform is not None:
            waveform_gradient(
                kept.pop(0),
                per_term.pop(0),
                estimates,
                plan.waveform,
                plan.sanitize_waveform,
                dtype,
                total,
            )
        elif stft_route(plan.resolutions[0], dtype, length) is onchip:
            base = (Base(estimates, None),)  # which writes, and does not add to what is there
        else:
            total.zero_()
        if plan.spectrum is not None:
            for res, part in zip(plan.resolutions, per_term, strict=True):
                route = stft_route(res, dtype, length)
                signs, kept = tuple(kept[: route.SAVED]), kept[route.SAVED :]
                route.stft_gradient(
                    signs, part, estimates, res, plan.spectrum, plan.sanitize_spectrum, total, *base
                )
                base = ()
    return total.to(estimates.dtype)
