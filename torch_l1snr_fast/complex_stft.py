"""The loss of complex spectra: reference, autograd.Function and operator.

It is a sum of moduli and needs no statistic of a row, so the kernels compute the gradient together
with the value, for an incoming gradient of one. That gradient is all that the backward reads.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import backends
from .autograd import (
    CHANGED,
    Again,
    decode_numbers,
    encode_numbers,
    keep_gradient,
    release,
    scale_kept,
    scaled,
)
from .kernels.complex_plan import ComplexPlan, hann, offset
from .kernels.eager.waveform import compute_dtype
from .kernels.modes import lifted
from .kernels.plan import Resolution


def kernels(name: str) -> ModuleType:
    """The module with ``complex_stft`` of a backend."""
    if name == "triton":
        from .kernels.triton import complex_stft as fused  # imported on first use, as it is slow

        return fused
    from .kernels.eager import complex_stft

    return complex_stft


def weighted(plan: ComplexPlan, means: Tensor) -> Tensor:
    """Loss [B] of each row, from the means [terms, B]."""
    first = means[0] * plan.waveform_weight
    return first + means[1:].sum(0) * plan.weight


def spectrum(x: Tensor, res: Resolution) -> Tensor:
    """STFT [B, C, frames, bins] of [B, C, L]."""
    left = offset(res)
    window = lifted(hann(res.win_length, x.dtype, x.device))
    window = torch.nn.functional.pad(window, (left, res.n_fft - res.win_length - left))
    padded = torch.nn.functional.pad(x, (res.pad, res.pad), mode="reflect")
    bins: Tensor = torch.fft.rfft(padded.unfold(-1, res.n_fft, res.hop_length) * window)
    return bins


def reference(plan: ComplexPlan, estimates: Tensor, actuals: Tensor) -> Tensor:
    """Means [terms, B] of [B, C, L] waveforms in plain differentiable PyTorch: the definition.

    The gradient of a modulus at exactly 0 is 0, as that of torch.abs is.
    """
    dtype = compute_dtype(estimates, actuals)
    error = estimates.to(dtype) - actuals.to(dtype)
    spectra = [spectrum(error, res) for res in plan.resolutions]
    return torch.stack([x.abs().flatten(1).mean(1) for x in (error, *spectra)])


class ComplexSTFTLoss(torch.autograd.Function):
    """Losses [B] and means [terms, B] of rows, by one backend's kernels."""

    @staticmethod
    def forward(
        ctx: Any, estimates: Tensor, actuals: Tensor, plan: ComplexPlan, backend: str, save: bool
    ) -> tuple[Tensor, Tensor]:
        means, gradient = kernels(backend).complex_stft(plan, estimates, actuals, save)
        if save:
            ctx.plan, ctx.again = plan, Again(estimates, actuals)
            # Means without their version, as they are given to the caller.
            ctx.save_for_backward(means.data, gradient)
        ctx.mark_non_differentiable(means)
        ctx.set_materialize_grads(False)
        return weighted(plan, means), means

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        means, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient itself must be differentiable
            estimates, actuals = ctx.again.unwritten()
            again = reference(ctx.plan, estimates, actuals)
            if not torch.allclose(again, means, rtol=1e-3, atol=0, equal_nan=True):
                raise RuntimeError(CHANGED)
            rows = weighted(ctx.plan, again)
            (result,) = torch.autograd.grad(rows, estimates, grad, create_graph=True)
        else:
            result = scaled(gradient, grad).to(ctx.again.estimates.dtype)
            release(ctx)
        return result, None, None, None, None


def loss(estimates: Tensor, actuals: Tensor, plan: ComplexPlan) -> tuple[Tensor, Tensor]:
    """Losses [B] and means [terms, B] of [B, C, L] waveforms.

    The losses are differentiable with respect to the estimates, the means to nothing.
    """
    name = backends.select_backend(estimates.device)
    save = torch.is_grad_enabled() and estimates.requires_grad
    if name == "reference" or backends.needs_reference(estimates, actuals):
        backends.refuse_distributed(estimates)
        means = reference(plan, estimates, actuals)
        return weighted(plan, means), means.detach()
    if backends.needs_operator():
        rows, means, _ = complex_stft(estimates, actuals, *encode(plan), name, save)
        return rows, means
    rows, means = ComplexSTFTLoss.apply(  # type: ignore[no-untyped-call]
        estimates, actuals, plan, name, save
    )
    return rows, means


# torch.compile and modes see one opaque operator, to which a plan travels as numbers.


def encode(plan: ComplexPlan) -> tuple[Tensor | None, list[float], list[int]]:
    sizes = [x for r in plan.resolutions for x in (r.n_fft, r.hop_length, r.win_length)]
    return *encode_numbers([plan.waveform_weight, plan.weight]), sizes


def decode(numbers: Tensor | None, weights: list[float], sizes: list[int]) -> ComplexPlan:
    waveform_weight, weight = decode_numbers(numbers, weights)
    triples = [sizes[i : i + 3] for i in range(0, len(sizes), 3)]
    resolutions = tuple(Resolution(n, hop, win) for n, hop, win in triples)
    return ComplexPlan(waveform_weight, weight, resolutions)


@torch.library.custom_op("torch_l1snr_fast::complex_stft", mutates_args=())
def complex_stft(
    estimates: Tensor,
    actuals: Tensor,
    numbers: Tensor | None,
    weights: list[float],
    sizes: list[int],
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, means and the gradient of the losses (empty unless ``save``)."""
    plan = decode(numbers, weights, sizes)
    means, gradient = kernels(backend).complex_stft(plan, estimates, actuals, save)
    if gradient is None:
        gradient = means.new_empty(0)
    return weighted(plan, means), means, gradient


@complex_stft.register_fake
def _(
    estimates: Tensor,
    actuals: Tensor,
    numbers: Tensor | None,
    weights: list[float],
    sizes: list[int],
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, dtype = estimates.shape[0], compute_dtype(estimates, actuals)
    return (
        estimates.new_empty(batch, dtype=dtype),
        estimates.new_empty((1 + len(sizes) // 3, batch), dtype=dtype),
        estimates.new_empty(estimates.shape if save else 0, dtype=dtype),
    )


complex_stft.register_autograd(scale_kept, setup_context=keep_gradient)
