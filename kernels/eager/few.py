"""The same for few rows on a CPU, where operators take longer than the samples that they read.

Sums, parts and the count of what is not finite are Python's numbers, in lists where tensors have
dimensions: ten of these take as long as one small operator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan import COLUMNS, NONFINITE, Evaluation, Plan, Statistics
from . import gradient
from . import statistics as statistics_of_many
from .objective import REPORTED, SLOPES, combine, evaluate, factors
from .waveform import columns_of, waveform_sums

__all__ = ["gradient", "objective", "statistics"]

ROWS = 32  # of all terms, at most


def serves(plan: Plan, estimates: Tensor) -> bool:
    """Whether rows are so few, and need no waiting for a device."""
    terms = (plan.waveform is not None) + len(plan.resolutions)
    return estimates.device.type == "cpu" and terms * len(estimates) <= ROWS


Rows = list[list[float]]  # [B][COLUMNS]


def statistics(plan: Plan, estimates: Tensor, actuals: Tensor, save: bool) -> Statistics:
    """Sums of every term, [B][COLUMNS] each; ``save`` keeps what :func:`gradient` needs."""
    if plan.waveform is None or plan.spectrum is not None or plan.sanitize_waveform:
        found = statistics_of_many(plan, estimates, actuals, save)
        sums = [p.sum(1, dtype=torch.float64).tolist() for p in found.partials]
        return Statistics(tuple(sums), found.saved)
    blocks, kept = waveform_sums(estimates, actuals, plan.waveform, save)
    rows = [[0.0] * COLUMNS for _ in range(len(estimates))]
    for block in blocks:
        for column, values in zip(columns_of(plan.waveform), block, strict=True):
            for row, value in zip(rows, values.tolist(), strict=True):
                row[column] += value
    return Statistics((rows,), (None, kept))


def objective(
    plan: Plan, sums: tuple[Rows, ...], channels: int, length: int, dtype: torch.dtype
) -> Evaluation:
    """Loss in ``dtype``, gradient coefficients, and the parts of all terms in lists."""
    terms, nonfinite = plan.terms(channels, length), int(sum(row[NONFINITE] for row in sums[-1]))
    share, *shares = factors(plan, terms, len(sums[0]))
    try:
        found: list[list[tuple[float, ...]]] = [
            list(zip(*[evaluate([x / elements for x in row], term) for row in rows], strict=True))
            for rows, (term, elements) in zip(sums, terms, strict=True)
        ]
    except (ValueError, ZeroDivisionError):  # a logarithm or quotient that only tensors have
        tensors = [torch.tensor(rows, dtype=torch.float64, device="cpu") for rows in sums]
        loss, table, coefficients = combine(plan, tensors, channels, length, dtype)
        return Evaluation(loss, coefficients, table.tolist(), nonfinite)
    losses = [sum(row) for row in zip(*[values[0] for values in found], strict=True)]
    if plan.reduction == "none":
        loss = torch.tensor(losses, dtype=dtype, device="cpu")
    else:  # in half the time
        loss = torch.full((), sum(losses) * share, dtype=dtype, device="cpu")
    parts = [values[REPORTED] for values in found]
    coefficients = torch.tensor(
        [
            [[x * factor for x in slopes] for slopes in values[SLOPES]]
            for values, factor in zip(found, shares, strict=True)
        ],
        dtype=torch.float64,
        device="cpu",
    )
    return Evaluation(loss, coefficients, parts, nonfinite)
