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


def kept_dtype(power: int, dtype: torch.dtype) -> torch.dtype:
    """Of what the gradient needs of e - t: its sign for power 1, itself for power 2."""
    return torch.int8 if power == 1 else dtype


def waveform_statistics(
    estimates: Tensor, actuals: Tensor, term: Objective, save: bool
) -> tuple[Tensor, Tensor | None]:
    """Partial sums [B, blocks, COLUMNS] of |e-t|^power and |t|^power, and of e^2 and t^2.

    With ``save`` also what the gradient needs of e - t, [B, C, L].
    """
    dtype = compute_dtype(estimates, actuals)
    like = torch.empty(0, dtype=dtype, device=estimates.device)
    none = like.new_zeros(estimates.shape[0])
    measure = torch.abs if term.power == 1 else torch.square
    kept = None
    if save:
        kept = like.new_empty(estimates.shape, dtype=kept_dtype(term.power, dtype))
    columns: list[Tensor] = []  # of one block after the other

    for span in blocks(estimates):
        e = widened("estimates", estimates[..., span], like)
        t = widened("actuals", actuals[..., span], like)
        block = scratch("waveform", *e.shape, like=like)
        row = [none] * COLUMNS
        torch.sub(e, t, out=block)
        if kept is not None:
            sign = scratch("signs", *e.shape, like=like)
            kept[..., span] = torch.sign(block, out=sign) if term.power == 1 else block
        row[ERR_RE] = measure(block, out=block).sum((1, 2))
        if not term.pure_l1:
            row[REF_RE] = measure(t, out=block).sum((1, 2))
        if term.has_level:
            row[Q_EST] = torch.square(e, out=block).sum((1, 2))
            row[Q_REF] = torch.square(t, out=block).sum((1, 2))
        columns += row
    return torch.stack(columns, dim=1).view(estimates.shape[0], -1, COLUMNS), kept


def waveform_gradient(
    kept: Tensor, estimates: Tensor, coefficients: Tensor, term: Objective, gradient: Tensor
) -> None:
    """Write a sign(e-t) + r e (2 a (e-t) for power 2) into ``gradient``.

    ``kept`` is what the statistics saved of e - t; the estimates are read for r alone.
    ``coefficients`` is [3, B]: a, unused, r.
    """
    a, _, r = (term.power * coefficients).to(gradient.dtype)[:, :, None, None]
    for span in blocks(gradient):
        place = gradient[..., span]
        place.copy_(kept[..., span]).mul_(a)
        if term.has_level:
            place.addcmul_(widened("estimates", estimates[..., span], gradient), r)
