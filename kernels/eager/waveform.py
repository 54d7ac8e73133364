"""Waveform domain: sums of the error and of the reference, and their gradient.

Both walk the samples in blocks that stay in cache: one read of the data each, and no temporary
larger than a block.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..plan import COLUMNS, ERR_RE, Q_EST, Q_REF, REF_RE, Objective
from .workspace import scratch, scratch_columns

MEASURES = {1: torch.abs, 2: torch.square}  # by the power of a sum
TOGETHER = 1 << 18  # numbers, below which one sum of all columns is faster than one of each
CHUNK = 256  # squares that are added up as one norm
BLOCK = 1 << 20  # samples: large enough to hide the cost of a call, small enough for the cache


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 stays float64; everything else is computed in float32."""
    for x in tensors:
        if x.dtype == torch.float64:
            return torch.float64
    return torch.float32


def sum_dtype(device: torch.device) -> torch.dtype:
    """What partial sums are added up in: float64, but where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Tensors [B, C, L] side by side, in equal parts of L that hold at most BLOCK samples each."""
    length, size = tensors[0].shape[-1], tensors[0].numel()
    if size <= BLOCK:
        return [tensors]
    count = min(length, -(-size // BLOCK))
    return zip(*(torch.split(x, -(-length // count), -1) for x in tensors), strict=True)


def stacked(rows: list[Tensor]) -> Tensor:
    """``torch.stack`` that does not copy a single row."""
    return torch.stack(rows) if len(rows) > 1 else rows[0][None]


def widened(name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in the dtype that is computed in, in scratch memory if that is another one."""
    if x.dtype == dtype:
        return x
    return scratch(name, *x.shape, like=x.new_empty(0, dtype=dtype)).copy_(x)


def columns_of(term: Objective) -> list[int]:
    """The sums that a term asks for."""
    if term.pure_l1:
        return [ERR_RE]
    return [ERR_RE, REF_RE, Q_EST, Q_REF] if term.regularize else [ERR_RE, REF_RE]


def waveform_statistics(
    estimates: Tensor, actuals: Tensor, term: Objective, error: Tensor | None
) -> Tensor:
    """Sums [B, columns] of |e-t|^power, |t|^power, e^2 and t^2, as far as asked for.

    e - t, of which the gradient is made, is written to ``error``, if given.
    """
    dtype = compute_dtype(estimates, actuals)
    kept = () if error is None else (error,)
    found = [block_sums(term, dtype, *block) for block in blocks(estimates, actuals, *kept)]
    if len(found) == 1:
        return found[0]
    return torch.stack(found).sum(0, dtype=sum_dtype(estimates.device))


def block_sums(
    term: Objective, dtype: torch.dtype, e: Tensor, t: Tensor, kept: Tensor | None = None
) -> Tensor:
    """The sums of a block: few numbers are measured side by side and added up in one operator."""
    e, t = widened("estimates", e, dtype), widened("actuals", t, dtype)
    columns = columns_of(term)
    together = len(columns) if len(columns) * e.numel() < TOGETHER else 1
    whole, (room, *others) = scratch_columns("waveform", together, e)
    error = torch.sub(e, t, out=room if kept is None else kept)
    powers = ((error, term.power), (t, term.power), (e, 2), (t, 2))
    if together == 1:
        return torch.stack([total(x, power, room) for x, power in powers[: len(columns)]], 1)
    for out, (x, power) in zip((room, *others), powers, strict=False):
        MEASURES[power](x, out=out)
    return whole.sum((2, 3))


def total(x: Tensor, power: int, room: Tensor) -> Tensor:
    """Sums [B] of |x|^power of many numbers, by way of ``room``, whose memory may be that of x.

    Squares are added up as norms, which writes nothing; of chunks, since a norm is less exact than
    a sum: it takes eight numbers at a time.
    """
    if power == 1:
        return torch.abs(x, out=room).sum((1, 2))
    found: list[Tensor] = []
    for part in torch.split(x, max(CHUNK, x.shape[-1] // CHUNK * CHUNK), -1):
        chunks = torch.unflatten(part, -1, (-1, min(CHUNK, part.shape[-1])))
        found.append(torch.linalg.vector_norm(chunks, dim=-1).square_().sum((1, 2)))
    return found[0] if len(found) == 1 else found[0] + found[1]


def by_rows(sums: Tensor, term: Objective) -> Tensor:
    """Those sums as all backends have them, [B, COLUMNS]."""
    found = sums.new_zeros(len(sums), COLUMNS)
    for i, column in enumerate(columns_of(term)):
        found[:, column] = sums[:, i]
    return found


def waveform_gradient(
    error: Tensor, estimates: Tensor, coefficients: Tensor, term: Objective
) -> None:
    """a sign(e-t), or 2 a (e-t), + r e in the place of e-t; the estimates are read for ``r`` alone.

    ``coefficients`` are those of all terms, [terms, 3, B]; this one is the first.
    """
    rows = coefficients.reshape(-1, error.shape[0], 1, 1)
    a = rows[0]
    if term.power == 2:
        a = 2 * a
    r = rows[2] if term.has_level else None
    for own, e in blocks(error, estimates):
        if term.power == 1:
            torch.sign(own, out=own)
        own.mul_(a)
        if r is not None:
            own.addcmul_(widened("estimates", e, own.dtype), r)
