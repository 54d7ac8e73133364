"""Waveform domain: sums of the error and of the reference, and their gradient.

Both walk the samples in blocks that stay in cache: one read of the data each, and no temporary
larger than a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan import COLUMNS, ERR_RE, Q_EST, Q_REF, REF_RE, Objective
from .workspace import scratch

BLOCK = 1 << 19  # samples: large enough to hide the cost of a call, small enough for the cache


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 stays float64; everything else is computed in float32."""
    return torch.float64 if torch.float64 in {x.dtype for x in tensors} else torch.float32


def sum_dtype(device: torch.device) -> torch.dtype:
    """What partial sums are added up in: float64, but where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def blocks(x: Tensor) -> list[slice]:
    """Equal slices of the last dimension of [B, C, L] that hold at most BLOCK samples each."""
    length = x.shape[-1]
    count = min(length, -(-x.numel() // BLOCK))
    step = -(-length // count)
    return [slice(i, min(i + step, length)) for i in range(0, length, step)]


def part(x: Tensor, span: slice) -> Tensor:
    """Samples of [B, C, L]: without an operator where that is all."""
    return x if span == slice(0, x.shape[-1]) else x[..., span]


def widened(name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in the dtype that is computed in, in scratch memory if that is another one."""
    if x.dtype == dtype:
        return x
    return scratch(name, *x.shape, like=x.new_empty(0, dtype=dtype)).copy_(x)


def columns_of(term: Objective) -> list[int]:
    """The sums that a term asks for."""
    levels = [Q_EST, Q_REF] if term.has_level else []
    return [ERR_RE] if term.pure_l1 else [ERR_RE, REF_RE, *levels]


def waveform_sums(
    estimates: Tensor, actuals: Tensor, term: Objective, save: bool
) -> tuple[list[list[Tensor]], Tensor | None]:
    """Of each block the sums [B] of |e-t|^power, |t|^power, e^2 and t^2, as asked for.

    With ``save`` also what the gradient is made of, [B, C, L]: sign(e-t) in int8, or e-t.
    """
    dtype = compute_dtype(estimates, actuals)
    spans, kept = blocks(estimates), None
    if save:
        kept_dtype = torch.int8 if term.power == 1 else dtype
        kept = torch.empty(estimates.shape, dtype=kept_dtype, device=estimates.device)
    found = []
    for span in spans:
        own = None if kept is None else part(kept, span)
        found.append(block_sums(part(estimates, span), part(actuals, span), term, dtype, own))
    return found, kept


def block_sums(
    e: Tensor, t: Tensor, term: Objective, dtype: torch.dtype, kept: Tensor | None
) -> list[Tensor]:
    """The sums of a block, and what is kept of it; in one block of memory, which stays in cache."""
    e, t = widened("estimates", e, dtype), widened("actuals", t, dtype)
    block = scratch("waveform", *e.shape, like=e)
    if term.power == 1:
        measure = torch.abs
        error = torch.sub(e, t, out=block)
        if kept is not None:
            kept.copy_(torch.sign(error, out=scratch("signs", *e.shape, like=e)))
    else:
        measure = torch.square
        error = torch.sub(e, t, out=block if kept is None else kept)
    sums = [measure(error, out=block).sum((1, 2))]
    if not term.pure_l1:
        sums.append(measure(t, out=block).sum((1, 2)))
    if term.has_level:
        sums += [torch.square(x, out=block).sum((1, 2)) for x in (e, t)]
    return sums


def waveform_statistics(
    estimates: Tensor, actuals: Tensor, term: Objective, save: bool
) -> tuple[Tensor, Tensor | None]:
    """Partial sums [B, blocks, COLUMNS], and what the gradient is made of."""
    sums, kept = waveform_sums(estimates, actuals, term, save)
    none = torch.zeros_like(sums[0][0])
    columns = []
    for block in sums:
        own = dict(zip(columns_of(term), block, strict=True))
        columns += [own.get(i, none) for i in range(COLUMNS)]
    return torch.stack(columns, dim=1).view(len(none), -1, COLUMNS), kept


def waveform_gradient(
    kept: Tensor, estimates: Tensor, a: Tensor, r: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """a times what the statistics have kept, sign(e-t) or e-t, + r e.

    The estimates are read for ``r``, if any. ``a`` and ``r`` are [B, 1, 1].
    """
    gradient = torch.empty(kept.shape, dtype=dtype, device=kept.device)
    for span in blocks(kept):
        place, own = part(gradient, span), part(kept, span)
        if own.dtype == dtype:
            torch.mul(own, a, out=place)
        else:  # which in one operator takes a temporary
            place.copy_(own).mul_(a)
        if r is not None:
            place.addcmul_(widened("estimates", part(estimates, span), dtype), r)
    return gradient
