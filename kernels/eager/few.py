"""The objective of few rows on a CPU, where operators take longer than the numbers that they read.

Sums and parts are Python's numbers, in lists where tensors have dimensions: ten of these take as
long as one small operator.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from ..plan import COLUMNS, Objective, Plan, Term
from . import objective as many
from .objective import REPORTED, SLOPES, evaluate
from .waveform import columns_of

ROWS = 32  # of all terms, at most
TYPECODES = {torch.float32: "f", torch.float64: "d"}

Table = list[list[Sequence[float]]]  # [terms][values][B]


def serves(terms: list[Term], device: torch.device, rows: int) -> bool:
    """Whether they are so few, and need no waiting for a device."""
    return len(terms) * rows <= ROWS and device.type == "cpu"


def means(partials: Tensor, term: Objective, elements: int) -> list[list[float]]:
    """Of a term's rows, with COLUMNS each, as :func:`evaluate` takes them."""
    if term.parts == 2:
        spectral: list[list[float]] = (partials.sum(1, dtype=torch.float64) / elements).tolist()
        return spectral
    rows, columns = [], columns_of(term)
    for sums in partials.tolist():
        row = [0.0] * COLUMNS
        for column, x in zip(columns, sums, strict=True):
            row[column] = x / elements
        rows.append(row)
    return rows


def evaluated(terms: list[Term], partials: Sequence[Tensor]) -> Table:
    """What :func:`evaluate` finds of rows' statistics."""
    found: Table = []
    try:
        for sums, (term, elements) in zip(partials, terms, strict=True):
            rows = [evaluate(row, term) for row in means(sums, term, elements)]
            found.append(list(zip(*rows, strict=True)))
    except (ValueError, ZeroDivisionError):  # a logarithm or quotient that only tensors have
        found = many.evaluated(terms, partials).tolist()
    return found


def coefficients(found: Table, shares: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Of the gradients of rows, [terms, 3, B], by the factors of the terms' slopes."""
    slopes = [
        x * factor
        for values, factor in zip(found, shares, strict=True)
        for row in values[SLOPES]
        for x in row
    ]
    # In half the time of torch.tensor.
    numbers = torch.frombuffer(array(TYPECODES[dtype], slopes), dtype=dtype)
    return numbers.view(len(found), 3, -1)


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
    parts = [values[REPORTED] for values in found]
    if plan.reduction == "none":
        losses = [sum(row) for row in zip(*[values[0] for values in found], strict=True)]
        return torch.tensor(losses, dtype=dtype, device="cpu"), parts
    loss = share * sum([sum(values[0]) for values in found])
    return torch.full((), loss, dtype=dtype, device="cpu"), parts
