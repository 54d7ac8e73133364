r"""The objective: from the sums of a row to its loss and to the coefficients of its gradient.

With M elements in a row, c = 10 / ln 10 and the parts p (one for a waveform; Re and Im for a
spectrum), for means err_p = S_err_p / M and ref_p = S_ref_p / M:

.. math::
    D_1 &= \sum_p c \ln\frac{err_p + \tau\, ref_p + \epsilon}{ref_p + \epsilon} \\
    L   &= c \ln(Q / M + \epsilon_{dB}), \quad R = |L_{est} - L_{ref}| \\
    \lambda &= \lambda_0 + \eta\, \Delta\lambda\, clip(R / \max(L_{ref} - L_{min}, 10^{-6}), 0, 1),
    \quad \eta = [L_{ref} > \max(L_{est}, L_{min})] \\
    loss &= (1 - w)(D_1 + coef\, \lambda R) + w\, scale\, \tfrac1P \sum_p err_p

lambda is detached. The gradient of a row is then, with d = e - t,

    a_p = [(1-w) c / (err_p + tau ref_p + eps) + w scale / P] / M      on sign(d_p), or 2 d
    r   = (1-w) coef lambda sign(L_est - L_ref) 2c / (M (Q_est / M + eps_dB))   on dQ_est / 2 de

(arXiv:2309.02539 for D1, arXiv:2501.16171 for the level matching).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..plan import (
    COLUMNS,
    ERR_RE,
    PARTS,
    Q_EST,
    Q_REF,
    REF_RE,
    Evaluation,
    Objective,
    Plan,
    Term,
)
from .waveform import by_rows, stacked, sum_dtype

C = 10.0 / math.log(10.0)

REPORTED, SLOPES = slice(1, 1 + len(PARTS)), slice(1 + len(PARTS), None)  # of what is evaluated

# Of one row, Python's numbers, or of all rows, tensors.
Number = TypeVar("Number", float, Tensor)


def log(x: Number) -> Number:
    return math.log(x) if isinstance(x, float) else x.log()


def sign(x: Number) -> Number:
    return float((x > 0) - (x < 0)) if isinstance(x, float) else x.sign()


def clamp(x: Number, low: float, high: float = math.inf) -> Number:
    return min(max(x, low), high) if isinstance(x, float) else x.clamp(low, high)


def detached(x: Number) -> Number:
    return x if isinstance(x, float) else x.detach()


def switched(x: float, on: bool | Tensor) -> Any:
    """x or 0, rounded to float32."""
    return on.float() * x if isinstance(on, Tensor) else on * ctypes.c_float(x).value


def dbrms(mean_square: Number, eps: float) -> Number:
    """Level in dB of a mean square."""
    return C * log(mean_square + eps)


def adaptive_weight(
    l_pred: Number, l_true: Number, l_min: float, lambda0: float, delta_lambda: float, r: Number
) -> Number:
    """lambda of the level matching: grows where a non-silent target is estimated too quietly."""
    eta = l_true > clamp(l_pred, l_min)
    share = clamp(r / clamp(l_true - l_min, 1e-6), 0.0, 1.0)
    # eta delta_lambda is rounded to float32 in torch-l1-snr, also for float64 input.
    lam: Number = detached(lambda0 + switched(delta_lambda, eta) * share)
    return lam


def evaluate(means: Sequence[Any], term: Objective) -> tuple[Any, ...]:
    """Weighted loss, parts and slopes M a_re, M a_im, M r, of one row or of tensors of rows.

    ``means`` are the statistics, COLUMNS of them, by the number of elements M. The loss is
    differentiable with respect to them; the reference relies on that, and on the slopes being
    exactly that derivative. What is not computed is the number 0.
    """
    count = term.parts
    errors, references = means[ERR_RE : ERR_RE + count], means[REF_RE : REF_RE + count]
    l1 = (errors[0] if count == 1 else errors[0] + errors[1]) / count
    d1: Any = 0.0
    level = lam = l_est = l_ref = r = d1
    snr_share = term.weight * (1 - term.l1_weight)
    l1_share = term.weight * term.l1_weight * term.l1_scale
    # What is not finite must show in the gradient too, where c / inf would be 0.
    a = [l1_share / count + 0.0 * error for error in errors]

    if term.pure_l1:
        loss = l1_share * l1
    else:
        for i, reference in enumerate(references):
            floored = errors[i] + (term.tau * reference + term.eps)
            d1 = d1 + C * log(floored / (reference + term.eps))
            a[i] = a[i] + (snr_share * C) / floored
        loss = snr_share * d1
        if term.l1_weight > 0:
            loss = loss + l1_share * l1
        if term.regularize:
            l_est = dbrms(means[Q_EST], term.dbrms_eps)
            l_ref = dbrms(means[Q_REF], term.dbrms_eps)
            difference = l_est - l_ref
            distance = abs(difference)
            lam = adaptive_weight(
                l_est, l_ref, term.lmin, term.lambda0, term.delta_lambda, distance
            )
            level = lam * distance
            loss = loss + (snr_share * term.reg_coef) * level
            slope = snr_share * term.reg_coef * 2 * C
            r = slope * lam * sign(difference) / (means[Q_EST] + term.dbrms_eps)

    return loss, d1, level, l1, lam, l_est, l_ref, a[0], a[-1], r


def of_tensors(sums: Sequence[Tensor], terms: list[Term]) -> Tensor:
    """What :func:`evaluate` finds of each term's rows, [terms, values, B], differentiable.

    Terms of one domain differ in their number of elements alone, so they are evaluated together.
    """
    means = stacked([x / elements for x, (_, elements) in zip(sums, terms, strict=True)])
    waveforms = sum(term.parts == 1 for term, _ in terms)
    found = []
    for alike in (slice(waveforms), slice(waveforms, None)):
        if terms[alike]:
            # Not unbound, for which DTensor has no gradient where columns are unused.
            own = [means[alike][..., i] for i in range(COLUMNS)]
            columns = evaluate(own, terms[alike][0][0])
            none = torch.zeros_like(columns[0])
            numbers = [x if isinstance(x, Tensor) else none for x in columns]
            found.append(torch.stack(numbers, dim=1))
    return torch.cat(found) if len(found) > 1 else found[0]


def factors(plan: Plan, terms: list[Term], batch: int) -> tuple[float, list[float]]:
    """Of the rows' loss, and of each term's slopes."""
    share = 1.0 / batch if plan.reduction == "mean" else 1.0
    return share, [plan.grad_scale * share / elements for _, elements in terms]


def evaluated(terms: list[Term], partials: Sequence[Tensor]) -> Tensor:
    """What :func:`evaluate` finds of rows' statistics, [terms, values, B]."""
    wide = sum_dtype(partials[0].device)
    sums = [
        by_rows(p, term).to(wide) if term.parts == 1 else p.sum(1, dtype=wide)
        for p, (term, _) in zip(partials, terms, strict=True)
    ]
    return of_tensors(sums, terms)


def coefficients(found: Tensor, shares: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Of the gradients of rows, [terms, 3, B], by the :func:`factors` of the terms' slopes."""
    slopes = found[:, SLOPES].unbind()
    return stacked([x * factor for x, factor in zip(slopes, shares, strict=True)]).to(dtype)


def finished(
    plan: Plan, tables: Sequence[Tensor], share: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Loss and parts in ``dtype``, from what was evaluated of all rows."""
    found = torch.cat(list(tables), -1) if len(tables) > 1 else tables[0]
    loss = found[:, 0].sum(0) if plan.reduction == "none" else found[:, 0].sum() * share
    parts = found[:, REPORTED].to(dtype, copy=True, memory_format=torch.contiguous_format)
    return loss.to(dtype), parts


def combine(
    plan: Plan, terms: list[Term], found: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and parts in ``dtype``, and coefficients, from what was evaluated of all rows."""
    share, shares = factors(plan, terms, found.shape[-1])
    loss, parts = finished(plan, [found], share, dtype)
    return loss, parts, coefficients(found, shares, found.dtype)


def objective(
    plan: Plan, partials: Sequence[Any], channels: int, length: int, dtype: torch.dtype
) -> Evaluation:
    """Loss and parts in ``dtype``, and gradient coefficients, of all terms; computed in float64."""
    *sums, nonfinite = partials
    terms = plan.terms(channels, length)
    loss, parts, slopes = combine(plan, terms, evaluated(terms, sums), dtype)
    return Evaluation(loss, slopes, parts, nonfinite)
