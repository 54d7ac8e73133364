"""Waveform domain: sums of the error and of the reference, and their gradient.

Both walk the samples in blocks that stay in cache: one read of the data each, and no temporary
larger than a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..plan import COLUMNS, ERR_RE, Q_EST, Q_REF, REF_RE, Objective
from .workspace import scratch

BLOCK = 1 << 20  # samples: large enough to hide the cost of a call, small enough for the cache

# |x| and a sign(x) in one pass each: smooth L1 with the smallest normal number as its beta is L1
# itself, with the three-state sign as its gradient. mse is its like for power 2, gradient 2 a x.
ERROR = {1: torch.ops.aten.smooth_l1_loss.out, 2: torch.ops.aten.mse_loss.out}
ERROR_GRADIENT = {
    1: torch.ops.aten.smooth_l1_loss_backward.grad_input,
    2: torch.ops.aten.mse_loss_backward.grad_input,
}
NO_REDUCTION = 0


def options(power: int, dtype: torch.dtype) -> tuple[float, ...]:
    return (NO_REDUCTION, torch.finfo(dtype).tiny) if power == 1 else (NO_REDUCTION,)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 stays float64; everything else is computed in float32."""
    return torch.float64 if torch.float64 in {x.dtype for x in tensors} else torch.float32


def sum_dtype(device: torch.device) -> torch.dtype:
    """What partial sums are added up in: float64, but where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def blocks(x: Tensor) -> Iterator[slice]:
    """Equal slices of the last dimension of [B, C, L] that hold at most BLOCK samples each."""
    length = x.shape[-1]
    count = min(length, -(-x.numel() // BLOCK))
    step = -(-length // count)
    return (slice(i, min(i + step, length)) for i in range(0, length, step))


def widened(name: str, x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the dtype that is computed in, in scratch memory if that is another one."""
    return x if x.dtype == like.dtype else scratch(name, *x.shape, like=like).copy_(x)


def waveform_statistics(estimates: Tensor, actuals: Tensor, term: Objective) -> Tensor:
    """Partial sums [B, blocks, COLUMNS] of |e-t|^power and |t|^power, and of e^2 and t^2."""
    dtype = compute_dtype(estimates, actuals)
    like = torch.empty(0, dtype=dtype, device=estimates.device)
    none = like.new_zeros(estimates.shape[0])
    measure = torch.abs if term.power == 1 else torch.square
    columns: list[Tensor] = []  # of one block after the other

    for span in blocks(estimates):
        e = widened("estimates", estimates[..., span], like)
        t = widened("actuals", actuals[..., span], like)
        block = scratch("waveform", *e.shape, like=like)
        row = [none] * COLUMNS
        row[ERR_RE] = ERROR[term.power](e, t, *options(term.power, dtype), out=block).sum((1, 2))
        if not term.pure_l1:
            row[REF_RE] = measure(t, out=block).sum((1, 2))
        if term.regularize:
            row[Q_EST] = torch.square(e, out=block).sum((1, 2))
            row[Q_REF] = torch.square(t, out=block).sum((1, 2))
        columns += row
    return torch.stack(columns, dim=1).view(estimates.shape[0], -1, COLUMNS)


def waveform_gradient(
    estimates: Tensor, actuals: Tensor, coefficients: Tensor, term: Objective, gradient: Tensor
) -> None:
    """Write a sign(e-t) + r e (2 a (e-t) for power 2) into ``gradient``.

    ``coefficients`` is [3, B]: a, unused, r.
    """
    dtype = gradient.dtype
    a, _, r = coefficients.to(dtype)[:, :, None, None]
    # One operator, which has no temporaries, needs no blocks.
    alone = not term.regularize and estimates.dtype == actuals.dtype == dtype
    for span in [slice(None)] if alone else blocks(estimates):
        e = widened("estimates", estimates[..., span], gradient)
        t = widened("actuals", actuals[..., span], gradient)
        place = gradient[..., span]
        ERROR_GRADIENT[term.power](a, e, t, *options(term.power, dtype), grad_input=place)
        if term.regularize:
            place.addcmul_(e, r)
