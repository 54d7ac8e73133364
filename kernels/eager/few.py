"""The objective of few rows on a CPU, where operators take longer than the numbers that they read.

Sums and parts are Python's numbers, in lists where tensors have dimensions: ten of these take as
long as one small operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..plan import COLUMNS, Objective, Plan
from .objective import REPORTED, SLOPES, evaluate, of_tensors
from .waveform import columns_of

ROWS = 32  # of all terms, at most

Rows = list[list[float]]  # [B][COLUMNS]
Table = list[list[Sequence[float]]]  # [terms][values][B]


def serves(plan: Plan, device: torch.device, rows: int) -> bool:
    """Whether they are so few, and need no waiting for a device."""
    terms = (plan.waveform is not None) + len(plan.resolutions)
    return device.type == "cpu" and terms * rows <= ROWS


def by_rows(partials: Tensor, term: Objective) -> Rows:
    """Sums of a term over all blocks."""
    if term.parts == 2:
        spectral: Rows = partials.sum(1, dtype=torch.float64).tolist()
        return spectral
    rows = [[0.0] * COLUMNS for _ in range(partials.shape[-1])]
    for block in partials.tolist():
        for column, values in zip(columns_of(term), block, strict=True):
            for row, value in zip(rows, values, strict=True):
                row[column] += value
    return rows


def evaluated(plan: Plan, partials: Sequence[Tensor], channels: int, length: int) -> Table:
    """What :func:`evaluate` finds of rows' statistics."""
    terms = plan.terms(channels, length)
    sums = [by_rows(p, term) for p, (term, _) in zip(partials, terms, strict=True)]
    try:
        return [
            list(zip(*[evaluate([x / elements for x in row], term) for row in rows], strict=True))
            for rows, (term, elements) in zip(sums, terms, strict=True)
        ]
    except (ValueError, ZeroDivisionError):  # a logarithm or quotient that only tensors have
        tensors = [torch.tensor(rows, dtype=torch.float64, device="cpu") for rows in sums]
        found: Table = of_tensors(tensors, terms).tolist()
        return found


def coefficients(found: Table, shares: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Of the gradients of rows, [terms, 3, B], by the factors of the terms' slopes."""
    slopes = [
        [[x * factor for x in row] for row in values[SLOPES]]
        for values, factor in zip(found, shares, strict=True)
    ]
    return torch.tensor(slopes, dtype=dtype, device="cpu")


def joined(tables: Sequence[Table]) -> Table:
    """The rows of several tables in one."""
    return [
        [[x for row in rows for x in row] for rows in zip(*values, strict=True)]
        for values in zip(*tables, strict=True)
    ]


def finished(
    plan: Plan, tables: Sequence[Table], share: float, dtype: torch.dtype
) -> tuple[Tensor, Table]:
    """Loss in ``dtype``, and parts, from what was evaluated of all rows."""
    found = tables[0] if len(tables) == 1 else joined(tables)
    losses = [sum(row) for row in zip(*[values[0] for values in found], strict=True)]
    parts = [values[REPORTED] for values in found]
    if plan.reduction == "none":
        return torch.tensor(losses, dtype=dtype, device="cpu"), parts
    return torch.full((), sum(losses) * share, dtype=dtype, device="cpu"), parts
