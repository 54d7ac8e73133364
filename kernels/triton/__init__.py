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


def _writes_waveform(plan: Plan, dtype: torch.dtype, length: int) -> bool:
    """Whether the backward of the first resolution computes the waveform's gradient on the way.

    It does so from the waveforms, with one read and one write of the gradient less.
    """
    if plan.spectrum is None or stft_route(plan.resolutions[0], dtype, length) is not onchip:
        return False
    return plan.waveform is None or (plan.waveform.power == 1 and not plan.sanitize_waveform)


def statistics(plan: Plan, estimates: Tensor, actuals: Tensor, save: bool) -> Statistics:
    """Sums of every term; ``save`` keeps what :func:`gradient` needs."""
    estimates, actuals = readable(estimates), readable(actuals)
    dtype, length = compute_dtype(estimates, actuals), estimates.shape[-1]
    partials: list[Tensor] = []
    saved: list[Tensor | None] = []
    with on_device(estimates):
        if plan.waveform is not None:
            sums, signs = waveform_statistics(
                estimates,
                actuals,
                plan.waveform,
                save and not _writes_waveform(plan, dtype, length),
                sanitize=plan.sanitize_waveform,
                count=plan.sanitize_waveform or plan.sanitize_spectrum,
            )
            partials.append(sums)
            saved.append(signs)
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
    actuals: Tensor,
) -> Tensor:
    """Gradient of the loss with respect to the estimates, in their dtype."""
    dtype, length = compute_dtype(estimates, actuals), estimates.shape[-1]
    # Several terms add up in the dtype of the computation; one is rounded where it is computed.
    narrow = plan.spectrum is None and dtype == torch.float32
    total = torch.empty(
        estimates.shape, dtype=estimates.dtype if narrow else dtype, device=estimates.device
    )
    per_term, kept = list(coefficients.contiguous()), list(saved)
    estimates, actuals = readable(estimates), readable(actuals)
    with on_device(estimates):
        base: tuple[Base, ...] = ()
        if _writes_waveform(plan, dtype, length):
            own = None
            if plan.waveform is not None:
                own, kept = per_term.pop(0), kept[1:]
            base = (Base(actuals, own),)
        elif plan.waveform is not None:
            waveform_gradient(
                kept.pop(0),
                per_term.pop(0),
                estimates,
                actuals,
                plan.waveform,
                plan.sanitize_waveform,
                total,
            )
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
