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

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..modes import variable
from ..plan import ERR_RE, NONFINITE, PARTS, Q_EST, Q_REF, REF_RE, Evaluation, Objective, Plan
from .waveform import sum_dtype

C = 10.0 / math.log(10.0)


def dbrms(mean_square: Tensor, eps: float) -> Tensor:
    """Level in dB of a mean square."""
    return C * torch.log(mean_square + eps)


def adaptive_weight(
    l_pred: Tensor, l_true: Tensor, l_min: float, lambda0: float, delta_lambda: float, r: Tensor
) -> Tensor:
    """lambda of the level matching: grows where a non-silent target is estimated too quietly."""
    eta = l_true > l_pred.clamp(min=l_min)
    share = (r / (l_true - l_min).clamp(min=1e-6)).clamp(0.0, 1.0)
    # eta delta_lambda is rounded to float32 in torch-l1-snr, also for float64 input.
    return (lambda0 + eta.float() * delta_lambda * share).detach()


def stacked(rows: list[Tensor]) -> Tensor:
    """``torch.stack`` that does not copy a single row."""
    return torch.stack(rows) if len(rows) > 1 else rows[0][None]


def evaluate(means: Tensor, term: Objective) -> tuple[Tensor, ...]:
    """Weighted loss, parts and slopes M a_re, M a_im, M r, all [R, B], of R terms that are alike.

    ``means`` [R, B, COLUMNS] are the statistics by the number of elements M. The loss is
    differentiable with respect to them; the reference relies on that, and on the slopes being
    exactly that derivative.
    """
    count = term.parts
    error = means[..., ERR_RE : ERR_RE + count]

    def sum_of_parts(x: Tensor) -> Tensor:
        return x.sum(-1) if count > 1 else x[..., 0]

    l1 = sum_of_parts(error) / count
    none = torch.zeros_like(l1)
    d1, level, lam, l_est, l_ref, r = none, none, none, none, none, none
    weight, reg_coef = variable(term.weight), variable(term.reg_coef)
    snr_share = weight * (1 - term.l1_weight)
    l1_share = weight * term.l1_weight * variable(term.l1_scale)

    if term.pure_l1:
        loss = l1_share * l1
        a = torch.zeros_like(error) + l1_share / count
    else:
        reference = means[..., REF_RE : REF_RE + count]
        floored = error + (term.eps if term.tau == 0 else term.tau * reference + term.eps)
        d1 = C * sum_of_parts(torch.log(floored / (reference + term.eps)))
        loss = snr_share * d1
        a = (snr_share * C) / floored
        if term.l1_weight > 0:
            loss = loss + l1_share * l1
            a = a + l1_share / count
        if term.regularize:
            l_est = dbrms(means[..., Q_EST], term.dbrms_eps)
            l_ref = dbrms(means[..., Q_REF], term.dbrms_eps)
            difference = l_est - l_ref
            distance = difference.abs()
            lam = adaptive_weight(
                l_est, l_ref, term.lmin, term.lambda0, term.delta_lambda, distance
            )
            level = lam * distance
            loss = loss + (snr_share * reg_coef) * level
            slope = snr_share * reg_coef * 2 * C
            r = slope * lam * difference.sign() / (means[..., Q_EST] + term.dbrms_eps)

    # What is not finite must show in the gradient too, where c / inf would be 0.
    a = a.add(error, alpha=0)
    return loss, d1, level, l1, lam, l_est, l_ref, a[..., 0], a[..., -1], r


def combine(
    plan: Plan, sums: Sequence[Tensor], channels: int, length: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and parts in ``dtype``, and coefficients, from the sums [B, COLUMNS] of all terms.

    Terms of one domain differ in their number of elements alone, so they are evaluated together.
    """
    counts = [elements for _, elements in plan.terms(channels, length)]
    means = stacked([x / elements for x, elements in zip(sums, counts, strict=True)])
    rows = []
    if plan.waveform is not None:
        rows.append(torch.stack(evaluate(means[:1], plan.waveform), dim=1))
    if plan.spectrum is not None:
        spectra = means[-len(plan.resolutions) :]
        rows.append(torch.stack(evaluate(spectra, plan.spectrum), dim=1))
    found = torch.cat(rows) if len(rows) > 1 else rows[0]  # [terms, 1 + PARTS + 3, B]

    share = plan.grad_scale
    loss = found[:, 0].sum(0) if plan.reduction == "none" else found[:, 0].sum()
    if plan.reduction == "mean":
        loss, share = loss / len(sums[0]), share / len(sums[0])
    slopes = found[:, 1 + len(PARTS) :].unbind()
    coefficients = [x * (share / elements) for x, elements in zip(slopes, counts, strict=True)]
    parts = found[:, 1 : 1 + len(PARTS)].to(dtype, copy=True, memory_format=torch.contiguous_format)
    return loss.to(dtype), parts, stacked(coefficients)


def objective(
    plan: Plan, partials: Sequence[Tensor], channels: int, length: int, dtype: torch.dtype
) -> Evaluation:
    """Loss and parts in ``dtype``, and gradient coefficients, of all terms; computed in float64."""
    wide = [p.to(sum_dtype(p.device)) for p in partials]
    sums = [p.sum(1) if p.shape[1] > 1 else p[:, 0] for p in wide]
    loss, parts, coefficients = combine(plan, sums, channels, length, dtype)
    return Evaluation(loss, coefficients, parts, sums[-1][:, NONFINITE].sum())
