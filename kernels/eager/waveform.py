"""Waveform domain: sums of the error and of the reference, and their gradient.

Both walk the samples in blocks that stay in cache: one read of the data each, and no temporary
larger than a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..plan import COLUMNS, ERR_RE, Q_EST, Q_REF, REF_RE, Objective

BLOCK = 1 << 18  # samples; 1 MiB of float32, so that a block and its temporary share the cache


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 stays float64; everything else is computed in float32."""
    return torch.float64 if torch.float64 in {x.dtype for x in tensors} else torch.float32


def blocks(x: Tensor) -> Iterator[slice]:
    """Slices of the last dimension of [B, C, L] that hold about BLOCK samples each."""
    length = x.shape[-1]
    step = max(1, BLOCK * length // x.numel())
    return (slice(i, min(i + step, length)) for i in range(0, length, step))


def waveform_statistics(estimates: Tensor, actuals: Tensor, term: Objective) -> Tensor:
    """Partial sums [B, blocks, COLUMNS] of |e-t|^power and |t|^power, and of e^2 and t^2."""
    dtype = compute_dtype(estimates, actuals)
    spans = list(blocks(estimates))
    partials = estimates.new_zeros(estimates.shape[0], len(spans), COLUMNS, dtype=torch.float64)
    measure = torch.Tensor.abs_ if term.power == 1 else torch.Tensor.square_

    for i, span in enumerate(spans):
        e, t = estimates[..., span].to(dtype), actuals[..., span].to(dtype)
        block = torch.sub(e, t)
        partials[:, i, ERR_RE] = measure(block).sum((1, 2))
        if not term.pure_l1:
            partials[:, i, REF_RE] = measure(block.copy_(t)).sum((1, 2))
        if term.regularize:
            partials[:, i, Q_EST] = torch.mul(e, e, out=block).sum((1, 2))
            partials[:, i, Q_REF] = torch.mul(t, t, out=block).sum((1, 2))
    return partials


def waveform_gradient(
    estimates: Tensor, actuals: Tensor, coefficients: Tensor, term: Objective, gradient: Tensor
) -> None:
    """Write a sign(e-t) + r e (a (e-t) for power 2) into ``gradient``.

    ``coefficients`` is [3, B]: a, unused, r.
    """
    dtype = gradient.dtype
    a, _, r = coefficients.to(dtype)[:, :, None, None]
    for span in blocks(estimates):
        e, t = estimates[..., span].to(dtype), actuals[..., span].to(dtype)
        block = torch.sub(e, t)
        if term.power == 1:
            block.sign_()
        torch.mul(block, a, out=gradient[..., span])
        if term.regularize:
            gradient[..., span].addcmul_(e, r)
