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
    return torch.float64 if any(x.dtype is torch.float64 for x in tensors) else torch.float32


def sum_dtype(device: torch.device) -> torch.dtype:
    """What partial sums are added up in: float64, but where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def blocks(x: Tensor) -> list[slice]:
    """Equal slices of the last dimension of [B, C, L] that hold at most BLOCK samples each."""
    length, size = x.shape[-1], x.numel()
    if size <= BLOCK:
        return [slice(0, length)]
    count = min(length, -(-size // BLOCK))
    step = -(-length // count)
    return [slice(i, min(i + step, length)) for i in range(0, length, step)]


def stacked(rows: list[Tensor]) -> Tensor:
    """``torch.stack`` that does not copy a single row."""
    return torch.stack(rows) if len(rows) > 1 else rows[0][None]


def part(x: Tensor, span: slice) -> Tensor:
    """Samples of [B, C, L]: without an operator where that is all."""
    return x if span.stop - span.start == x.shape[-1] else x[..., span]


def widened(name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in the dtype that is computed in, in scratch memory if that is another one."""
    if x.dtype == dtype:
        return x
    return scratch(name, *x.shape, like=x.new_empty(0, dtype=dtype)).copy_(x)


def columns_of(term: Objective) -> list[int]:
    """The sums that a term asks for."""
    levels = [Q_EST, Q_REF] if term.has_level else []
    return [ERR_RE] if term.pure_l1 else [ERR_RE, REF_RE, *levels]


def waveform_statistics(
    estimates: Tensor, actuals: Tensor, term: Objective, error: Tensor | None
) -> Tensor:
    """Sums [blocks, columns, B] of |e-t|^power, |t|^power, e^2 and t^2, as far as asked for.

    e - t, of which the gradient is made, is written to ``error``, if given.
    """
    dtype = compute_dtype(estimates, actuals)
    found = []
    for span in blocks(estimates):
        own = None if error is None else part(error, span)
        found.append(block_sums(part(estimates, span), part(actuals, span), term, dtype, own))
    return stacked(found)


def block_sums(
    e: Tensor, t: Tensor, term: Objective, dtype: torch.dtype, kept: Tensor | None
) -> Tensor:
    """The sums of a block, whose measures lie side by side in memory that stays in cache."""
    e, t = widened("estimates", e, dtype), widened("actuals", t, dtype)
    measures = scratch("waveform", len(columns_of(term)), *e.shape, like=e)
    error, *others = measures.unbind()
    measure = torch.abs if term.power == 1 else torch.square
    measure(torch.sub(e, t, out=error if kept is None else kept), out=error)
    if others:
        measure(t, out=others[0])
    if term.has_level:
        torch.square(e, out=others[1])
        torch.square(t, out=others[2])
    return measures.sum((2, 3))


def by_rows(sums: Tensor, term: Objective) -> Tensor:
    """Those sums as all backends have them, [B, blocks, COLUMNS]."""
    found = sums.permute(2, 0, 1)
    partials = found.new_zeros(*found.shape[:2], COLUMNS)
    for i, column in enumerate(columns_of(term)):
        partials[..., column] = found[..., i]
    return partials


def waveform_gradient(
    error: Tensor, estimates: Tensor, a: Tensor, r: Tensor | None, term: Objective
) -> None:
    """a sign(e-t), or 2 a (e-t), + r e in the place of e-t.

    The estimates are read for ``r``, if any. ``a`` and ``r`` are [B, 1, 1].
    """
    if term.power == 2:
        a = 2 * a
    for span in blocks(error):
        own = part(error, span)
        if term.power == 1:
            torch.sign(own, out=own)
        own.mul_(a)
        if r is not None:
            own.addcmul_(widened("estimates", part(estimates, span), own.dtype), r)
