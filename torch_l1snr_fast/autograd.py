"""From a plan to a differentiable loss: an autograd.Function, and an operator to compile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _autograd

from . import backends, reference
from .kernels import eager
from .kernels.eager.waveform import compute_dtype
from .kernels.modes import variable
from .kernels.plan import PARTS, WINDOWS, Objective, Plan, Resolution, Table
from .notices import Notices, notices_of


class FusedLoss(torch.autograd.Function):
    """Statistics, objective and coefficients in forward, the gradient in backward."""

    @staticmethod
    def forward(
        ctx: Any, estimates: Tensor, actuals: Tensor, plan: Plan, backend: str, save: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        kernels = backends.kernels(backend)
        dtype = compute_dtype(estimates, actuals)
        found = kernels.statistics(plan, estimates, actuals, save)
        result = kernels.objective(plan, found.partials, *estimates.shape[1:], dtype)
        if save:
            ctx.plan, ctx.backend, ctx.dtype = plan, backend, dtype
            # The parts without their version: to write into the components is the caller's right.
            ctx.parts = result.parts.data
            ctx.again = Again(estimates, actuals)
            read = estimates if plan.has_level else None
            ctx.save_for_backward(read, result.coefficients, *found.saved)
        ctx.mark_non_differentiable(result.parts, result.nonfinite)
        ctx.set_materialize_grads(False)
        return result.loss, result.parts, result.nonfinite

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        estimates, coefficients, *saved = ctx.saved_tensors
        if estimates is None:
            estimates = ctx.again.estimates
        if torch.compiler.is_compiling():  # compiled autograd sees one opaque operator, too
            rows = coefficients * grad
            gradient = fused_gradient(
                saved, rows, estimates, ctx.dtype, *encode(ctx.plan), ctx.backend
            )
        elif torch.is_grad_enabled():
            gradient = differentiable(ctx, grad)
        else:
            # vmap (is_grads_batched=True) sees no further than PyTorch's operators.
            batched = backends.is_batched(grad)
            rows = coefficients if batched else coefficients * grad
            kernels = backends.kernels(ctx.backend)
            gradient = kernels.gradient(ctx.plan, tuple(saved), rows, estimates, ctx.dtype)
            if batched:
                gradient = scaled(gradient, grad)
            release(ctx)
        return gradient, None, None, None, None


class LossAtOnce(torch.autograd.Function):
    """Value and gradient in forward, of which backward has nothing to do but to multiply."""

    @staticmethod
    def forward(
        ctx: Any, estimates: Tensor, actuals: Tensor, plan: Plan
    ) -> tuple[Tensor, Table, int]:
        loss, parts, nonfinite, gradient = eager.value_and_gradient(plan, estimates, actuals, True)
        ctx.plan = plan
        ctx.parts = parts
        if isinstance(parts, Tensor):
            ctx.parts = parts.data
            ctx.mark_non_differentiable(parts)
        ctx.again = Again(estimates, actuals)
        ctx.save_for_backward(gradient)
        ctx.alone = _autograd._top_saved_tensors_default_hooks(True) is None
        ctx.set_materialize_grads(False)
        return loss, parts, nonfinite

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None
        (gradient,) = ctx.saved_tensors
        dtype = ctx.again.estimates.dtype
        if torch.compiler.is_compiling():
            result = scaled(gradient, grad)
        elif torch.is_grad_enabled():
            return differentiable(ctx, grad), None, None
        else:
            result = multiplied(gradient, grad, ctx.alone)
            release(ctx)
        return result.to(dtype), None, None


class Again:
    """Both waveforms, held for a second derivative.

    What PyTorch saves of a node must not be written before the backward pass. These may be, since
    no first derivative reads them; a second one refuses to, if they were.
    """

    def __init__(self, estimates: Tensor, actuals: Tensor) -> None:
        self.estimates, self.actuals = estimates, actuals
        self.versions = self._versions()

    def _versions(self) -> tuple[int, int]:
        # Targets made in inference mode count no versions.
        known = not self.actuals.is_inference()
        return self.estimates._version, self.actuals._version if known else 0

    def unwritten(self) -> tuple[Tensor, Tensor]:
        """Estimates and actuals as they were."""
        if self._versions() != self.versions:
            raise RuntimeError(CHANGED)
        return self.estimates, self.actuals


def release(ctx: Any) -> None:
    """Let go of them, as PyTorch does of what it saved, unless the graph is retained."""
    if torch.compiler.is_compiling():  # by compiled autograd, whose graph comes again
        return
    if not _autograd._get_current_graph_task_keep_graph():
        ctx.again = None


def differentiable(ctx: Any, grad: Tensor) -> Tensor:
    """The gradient as something to be differentiated (create_graph=True)."""
    estimates, actuals = ctx.again.unwritten()
    again = reference.loss(ctx.plan, estimates, actuals)
    parts = torch.as_tensor(ctx.parts, dtype=again.parts.dtype, device=again.parts.device)
    if not torch.allclose(again.parts, parts, *SAME_PARTS, equal_nan=True):
        raise RuntimeError(CHANGED)
    (gradient,) = torch.autograd.grad(again.loss, estimates, grad, create_graph=True)
    return gradient


# How far parts in dB, of the same samples, may lie apart in float32 with ample margin.
SAME_PARTS = (1e-3, 1e-3)
CHANGED = (
    "a second derivative (create_graph=True) reads estimates and actuals again, but their memory"
    " was written in place after the loss was computed. Give the loss copies (.clone()) of what"
    " will be overwritten, or write after the backward pass."
)


def scaled(gradient: Tensor, grad: Tensor) -> Tensor:
    """Gradient [B, C, L] for an incoming gradient of one, by that of the loss (scalar or [B])."""
    return gradient * grad.reshape(-1, 1, 1).to(gradient.dtype)


def multiplied(gradient: Tensor, grad: Tensor, alone: bool) -> Tensor:
    """The same of a saved gradient: in its own memory, if nobody will ask for that again.

    ``alone``: no hooks of others hold it.
    """
    if not alone or _autograd._get_current_graph_task_keep_graph() or backends.is_batched(grad):
        return scaled(gradient, grad)
    if grad.ndim or grad.device.type != "cpu" or grad.item() != 1.0:
        gradient.mul_(grad.reshape(-1, 1, 1).to(gradient.dtype))
    return gradient


def loss(estimates: Tensor, actuals: Tensor, plan: Plan, notices: Notices) -> tuple[Tensor, Tensor]:
    """Loss and parts of [B, C, L] waveforms, differentiable with respect to the estimates."""
    name = backends.select_backend(estimates.device)
    save = estimates.requires_grad and torch.is_grad_enabled()
    if name == "reference" or backends.needs_reference(estimates, actuals):
        if plan.spectrum is not None:
            backends.refuse_distributed(estimates)
        result = reference.loss(plan, estimates, actuals)
        value, parts, nonfinite = result.loss, result.parts, result.nonfinite
        if backends.needs_operator() or backends.transforming():
            return value, parts  # the count cannot be looked at from in there
    elif backends.needs_operator():
        value, parts, _ = value_and_gradient(
            estimates, actuals, *encode(plan), name, save, notices.name
        )
        return value, parts
    elif name == "eager" and not save:
        value, parts, nonfinite, _ = eager.value_and_gradient(plan, estimates, actuals, save)
    elif name == "eager":
        value, parts, nonfinite = LossAtOnce.apply(  # type: ignore[no-untyped-call]
            estimates, actuals, plan
        )
    else:
        value, parts, nonfinite = FusedLoss.apply(  # type: ignore[no-untyped-call]
            estimates, actuals, plan, name, save
        )
    if plan.sanitize_waveform or plan.sanitize_spectrum:
        notices.sanitized(nonfinite)
    return value, parts


# torch.compile and modes that look at every operator see opaque ones: plans travel as numbers, and
# the gradient is computed with the value, in float32 or better, to be multiplied by the incoming
# gradient later.

Encoded = tuple[Tensor | None, list[float], list[bool], list[int], str, list[bool]]
ENCODED = (
    "Tensor? numbers, float[] settings, bool[] domains, int[] resolutions, str reduction,"
    " bool[] sanitize"
)


def encode_numbers(values: Sequence[float]) -> tuple[Tensor | None, list[float]]:
    """Numbers as arguments of an operator: a tensor of them if some are variables, else a list."""
    settings = [variable(x) for x in values]
    if any(isinstance(x, Tensor) for x in settings):
        one = torch.ones((), dtype=torch.float64, device="cpu")
        return torch.stack([one * x for x in settings]), []
    return None, [float(x) for x in settings]


def decode_numbers(numbers: Tensor | None, settings: list[float]) -> list[float]:
    return settings if numbers is None else numbers.tolist()


def encode(plan: Plan) -> Encoded:
    """A plan as an operator's arguments."""
    domains = plan.waveform, plan.spectrum
    numbers, settings = encode_numbers(
        [plan.grad_scale, *(x for domain in domains if domain is not None for x in domain)]
    )
    resolutions = [
        x
        for r in plan.resolutions
        for x in (r.n_fft, r.hop_length, r.win_length, WINDOWS.index(r.window_fn))
    ]
    sanitize = [plan.sanitize_waveform, plan.sanitize_spectrum]
    present = [domain is not None for domain in domains]
    return numbers, settings, present, resolutions, plan.reduction, sanitize


def decode(
    numbers: Tensor | None,
    settings: list[float],
    domains: list[bool],
    resolutions: list[int],
    reduction: str,
    sanitize: list[bool],
) -> Plan:
    grad_scale, *values = decode_numbers(numbers, settings)
    kinds = [type(value) for value in Objective()]
    objectives: list[Objective | None] = []
    for present in domains:
        own, values = values[: len(kinds) * present], values[len(kinds) * present :]
        fields = (kind(x) for kind, x in zip(kinds, own, strict=True)) if present else ()
        objectives.append(Objective._make(fields) if present else None)
    quads = [resolutions[i : i + 4] for i in range(0, len(resolutions), 4)]
    stfts = tuple(Resolution(n, hop, win, WINDOWS[w]) for n, hop, win, w in quads)
    waveform, spectrum = objectives
    return Plan(waveform, spectrum, stfts, reduction, grad_scale, *sanitize)


@torch.library.custom_op(
    "torch_l1snr_fast::value_and_gradient",
    mutates_args=(),
    schema=f"(Tensor estimates, Tensor actuals, {ENCODED}, str backend, bool save, str name)"
    " -> (Tensor, Tensor, Tensor)",
)
def value_and_gradient(
    estimates: Tensor, actuals: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, parts and the gradient for an incoming gradient of one (empty unless ``save``)."""
    *encoded, backend, save, name = rest
    plan = decode(*encoded)
    dtype = compute_dtype(estimates, actuals)
    if backend == "eager":
        loss, parts, nonfinite, gradient = eager.value_and_gradient(plan, estimates, actuals, save)
    else:
        kernels = backends.kernels(backend)
        found = kernels.statistics(plan, estimates, actuals, save)
        loss, coefficients, parts, nonfinite = kernels.objective(
            plan, found.partials, *estimates.shape[1:], dtype
        )
        gradient = None
        if save:
            # Kernels round to the estimates' dtype; a half-precision unit gradient would underflow.
            wide = estimates.to(dtype)
            gradient = kernels.gradient(plan, found.saved, coefficients, wide, dtype)
    if plan.sanitize_waveform or plan.sanitize_spectrum:
        notices_of(name).sanitized(nonfinite)
    if gradient is None:
        gradient = estimates.new_empty(0, dtype=dtype)
    parts = torch.as_tensor(parts, dtype=dtype, device=estimates.device)
    return loss, parts, gradient


@value_and_gradient.register_fake
def _(estimates: Tensor, actuals: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, _, domains, resolutions, reduction, _, _, save, _ = rest
    dtype = compute_dtype(estimates, actuals)
    batch = estimates.shape[0]
    terms = domains[0] + len(resolutions) // 4
    return (
        estimates.new_empty((batch,) if reduction == "none" else (), dtype=dtype),
        estimates.new_empty((terms, len(PARTS), batch), dtype=dtype),
        estimates.new_empty(estimates.shape if save else 0, dtype=dtype),
    )


def keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Of an operator whose first input is the estimates, and third output their gradient."""
    ctx.save_for_backward(output[2])
    ctx.dtype, ctx.rest = inputs[0].dtype, len(inputs) - 1
    ctx.set_materialize_grads(False)


def scale_kept(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a second derivative (create_graph=True) is not there within torch.compile or a mode"
            " that looks at every operator. Compute the loss with use_backend('reference')"
        )
    (gradient,) = ctx.saved_tensors
    if grad is not None:
        grad = scaled(gradient, grad).to(ctx.dtype)
    return grad, *[None] * ctx.rest


value_and_gradient.register_autograd(scale_kept, setup_context=keep_gradient)


@torch.library.custom_op(
    "torch_l1snr_fast::gradient",
    mutates_args=(),
    schema=f"(Tensor?[] saved, Tensor coefficients, Tensor estimates, ScalarType dtype, {ENCODED},"
    " str backend) -> Tensor",
)
def fused_gradient(
    saved: list[Tensor | None],
    coefficients: Tensor,
    estimates: Tensor,
    dtype: torch.dtype,
    *rest: Any,
) -> Tensor:
    """The gradient that :class:`FusedLoss` has saved everything for."""
    *encoded, backend = rest
    kernels = backends.kernels(backend)
    gradient: Tensor = kernels.gradient(
        decode(*encoded), tuple(saved), coefficients, estimates, dtype
    )
    return gradient


@fused_gradient.register_fake
def _(saved: Any, coefficients: Any, estimates: Tensor, *rest: Any) -> Tensor:
    return estimates.new_empty(estimates.shape)
