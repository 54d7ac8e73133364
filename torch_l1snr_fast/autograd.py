"""From a plan to a differentiable loss: an autograd.Function, and an operator to compile."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import backends, reference
from .kernels.eager.waveform import compute_dtype
from .kernels.plan import PARTS, WINDOWS, Objective, Plan, Resolution
from .notices import Notices, notices_of


class FusedLoss(torch.autograd.Function):
    """statistics -> objective -> coefficients -> gradient, by one backend's kernels.

    Estimates and actuals are kept for a second derivative alone (and the estimates for level
    matching), so their memory may be written once the loss is known: see :func:`forgiving`.
    """

    @staticmethod
    def forward(
        ctx: Any, estimates: Tensor, actuals: Tensor, plan: Plan, kernels: ModuleType, save: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = compute_dtype(estimates, actuals)
        found = kernels.statistics(plan, estimates, actuals, save)
        result = kernels.objective(plan, found.partials, *estimates.shape[1:], dtype)
        if save:
            ctx.plan, ctx.kernels, ctx.dtype = plan, kernels, dtype
            # Targets made in inference mode cannot be saved; they cannot be trained on either, so
            # holding them is enough.
            ctx.held = actuals if actuals.is_inference() else None
            kept = actuals if ctx.held is None else None
            # The parts without their version: to write into the components is the caller's right.
            parts = result.parts.data
            ctx.save_for_backward(estimates, kept, parts, result.coefficients, *found.saved)
        ctx.mark_non_differentiable(result.parts, result.nonfinite)
        ctx.set_materialize_grads(False)
        return result.loss, result.parts, result.nonfinite

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        estimates, actuals, parts, coefficients, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient itself must be differentiable
            again = reference.loss(ctx.plan, estimates, actuals if ctx.held is None else ctx.held)
            if not torch.allclose(again.parts, parts, *SAME_PARTS, equal_nan=True):
                raise RuntimeError(CHANGED)
            (gradient,) = torch.autograd.grad(again.loss, estimates, grad, create_graph=True)
        else:
            # vmap (is_grads_batched=True) sees no further than PyTorch's operators.
            batched = backends.is_batched(grad)
            rows = coefficients if batched else coefficients * grad
            gradient = ctx.kernels.gradient(ctx.plan, tuple(saved), rows, estimates, ctx.dtype)
            if batched:
                gradient = scaled(gradient, grad)
        return gradient, None, None, None, None


# How far parts in dB, of the same samples, may lie apart in float32 with ample margin.
SAME_PARTS = (1e-3, 1e-3)
CHANGED = (
    "a second derivative (create_graph=True) reads estimates and actuals again, but their memory"
    " was written in place after the loss was computed. Give the loss copies (.clone()) of what"
    " will be overwritten, or write after the backward pass."
)


def forgiving(saved: Sequence[Any]) -> None:
    """Let tensors saved by a node be written in place, for only a second derivative reads them.

    PyTorch compares the version of whatever is saved with that at the time of saving, unless hooks
    are in charge of it: these compare for a second derivative alone.
    """
    for one in saved:
        try:
            one.register_hooks(_with_version, _of_that_version)
        except RuntimeError:  # the caller's own are, as with checkpointing and offloading
            return


def _with_version(x: Tensor) -> tuple[Tensor, int]:
    return x, x._version


def _of_that_version(kept: tuple[Tensor, int]) -> Tensor:
    x, version = kept
    if torch.is_grad_enabled() and x._version != version:
        raise RuntimeError(CHANGED)
    return x


def scaled(gradient: Tensor, grad: Tensor) -> Tensor:
    """Gradient [B, C, L] for an incoming gradient of one, by that of the loss (scalar or [B])."""
    return gradient * grad.reshape(-1, 1, 1).to(gradient.dtype)


def loss(estimates: Tensor, actuals: Tensor, plan: Plan, notices: Notices) -> tuple[Tensor, Tensor]:
    """Loss and parts of [B, C, L] waveforms, differentiable with respect to the estimates."""
    name = backends.select_backend(estimates.device)
    save = torch.is_grad_enabled() and estimates.requires_grad
    if name == "reference" or backends.needs_reference(actuals):
        result = reference.loss(plan, estimates, actuals)
        value, parts, nonfinite = result.loss, result.parts, result.nonfinite
        if torch.compiler.is_compiling() or backends.in_functorch():
            return value, parts  # the count cannot be looked at from in there
    elif torch.compiler.is_compiling():
        value, parts, _ = value_and_gradient(
            estimates, actuals, *encode(plan), name, save, notices.name
        )
        return value, parts
    else:
        value, parts, nonfinite = FusedLoss.apply(  # type: ignore[no-untyped-call]
            estimates, actuals, plan, backends.kernels(name), save
        )
        if save:
            raw = value.grad_fn._raw_saved_tensors
            forgiving(raw[plan.has_level : 1 if actuals.is_inference() else 2])
    if plan.sanitize_waveform or plan.sanitize_spectrum:
        notices.sanitized(nonfinite)
    return value, parts


# torch.compile sees one opaque operator: plans travel as numbers, and the gradient is computed with
# the value, in float32 or better, to be multiplied by the incoming gradient later.

Encoded = tuple[list[float], list[float], list[int], str, float, list[bool]]


def encode(plan: Plan) -> Encoded:
    domains = [[] if d is None else [float(x) for x in d] for d in (plan.waveform, plan.spectrum)]
    resolutions = [
        x
        for r in plan.resolutions
        for x in (r.n_fft, r.hop_length, r.win_length, WINDOWS.index(r.window_fn))
    ]
    sanitize = [plan.sanitize_waveform, plan.sanitize_spectrum]
    return domains[0], domains[1], resolutions, plan.reduction, plan.grad_scale, sanitize


def decode(
    waveform: list[float],
    spectrum: list[float],
    resolutions: list[int],
    reduction: str,
    grad_scale: float,
    sanitize: list[bool],
) -> Plan:
    kinds = [type(value) for value in Objective()]
    domains = [
        Objective._make(kind(x) for kind, x in zip(kinds, d, strict=True)) if d else None
        for d in (waveform, spectrum)
    ]
    quads = [resolutions[i : i + 4] for i in range(0, len(resolutions), 4)]
    stfts = tuple(Resolution(n, hop, win, WINDOWS[w]) for n, hop, win, w in quads)
    return Plan(domains[0], domains[1], stfts, reduction, grad_scale, *sanitize)


@torch.library.custom_op(
    "torch_l1snr_fast::value_and_gradient",
    mutates_args=(),
    schema="(Tensor estimates, Tensor actuals, float[] waveform, float[] spectrum,"
    " int[] resolutions, str reduction, float grad_scale, bool[] sanitize, str backend, bool save,"
    " str name) -> (Tensor, Tensor, Tensor)",
)
def value_and_gradient(
    estimates: Tensor,
    actuals: Tensor,
    waveform: list[float],
    spectrum: list[float],
    resolutions: list[int],
    reduction: str,
    grad_scale: float,
    sanitize: list[bool],
    backend: str,
    save: bool,
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, parts and the gradient for an incoming gradient of one (empty unless ``save``)."""
    plan = decode(waveform, spectrum, resolutions, reduction, grad_scale, sanitize)
    kernels = backends.kernels(backend)
    dtype = compute_dtype(estimates, actuals)
    found = kernels.statistics(plan, estimates, actuals, save)
    result = kernels.objective(plan, found.partials, *estimates.shape[1:], dtype)
    if any(sanitize):
        notices_of(name).sanitized(result.nonfinite)
    gradient = estimates.new_empty(0, dtype=dtype)
    if save:
        # Kernels round to the estimates' dtype; a half-precision unit gradient would underflow.
        wide = estimates.to(dtype)
        gradient = kernels.gradient(plan, found.saved, result.coefficients, wide, dtype)
    return result.loss, result.parts, gradient


@value_and_gradient.register_fake
def _(
    estimates: Tensor,
    actuals: Tensor,
    waveform: list[float],
    spectrum: list[float],
    resolutions: list[int],
    reduction: str,
    grad_scale: float,
    sanitize: list[bool],
    backend: str,
    save: bool,
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(estimates, actuals)
    batch = estimates.shape[0]
    terms = bool(waveform) + len(resolutions) // 4
    return (
        estimates.new_empty((batch,) if reduction == "none" else (), dtype=dtype),
        estimates.new_empty((terms, len(PARTS), batch), dtype=dtype),
        estimates.new_empty(estimates.shape if save else 0, dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[2])
    ctx.dtype = inputs[0].dtype
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    (gradient,) = ctx.saved_tensors
    if grad is not None:
        grad = scaled(gradient, grad).to(ctx.dtype)
    return grad, *[None] * 10


value_and_gradient.register_autograd(_backward, setup_context=_setup_context)
