"""The objective of all terms in one launch; the formulas are in ``eager/objective.py``.

One program adds the partial sums of every row in float64, in a fixed order, and writes the loss,
the coefficients of the gradient, the parts and the count of samples that are not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import plan as columns
from ..eager.objective import C as DECIBELS
from ..modes import kept
from ..plan import PARTS, Evaluation, Plan
from . import common
from .common import COLUMNS, jit, on_device
from .launching import Launch, prepared

C = tl.constexpr(DECIBELS)
ERR_RE, ERR_IM = tl.constexpr(columns.ERR_RE), tl.constexpr(columns.ERR_IM)
REF_RE, REF_IM = tl.constexpr(columns.REF_RE), tl.constexpr(columns.REF_IM)
Q_EST, Q_REF = tl.constexpr(columns.Q_EST), tl.constexpr(columns.Q_REF)
NONFINITE = tl.constexpr(columns.NONFINITE)

THREADS = 256
ROWS = 16  # rows that are evaluated side by side, at most


@kept(at_most=1 << 21)  # thousands: a CUDA graph may still point to them
def settings(plan: Plan, device: torch.device) -> Tensor:
    """The plan's numbers, float64 [terms, settings], kept on the device.

    As arguments Triton would round them to float32, as constants it would compile for each. A
    signal of L samples has bins ((L - slack) // hop + 1) elements in a term.
    """
    terms = [] if plan.waveform is None else [(plan.waveform, 1, 1, 1)]
    if plan.spectrum is not None:
        terms += [
            (plan.spectrum, res.bins, res.hop_length, res.n_fft - 2 * res.pad)
            for res in plan.resolutions
        ]
    table = [
        [
            *(bins, hop, slack),
            *(plan.grad_scale, term.weight, term.parts, term.eps, term.tau),
            *(term.l1_weight, term.l1_scale, term.regularize and not term.pure_l1),
            *(term.reg_coef, term.lambda0, term.delta_lambda, term.lmin, term.dbrms_eps),
        ]
        for term, bins, hop, slack in terms
    ]
    return torch.tensor(table, dtype=torch.float64, device=device)


@triton.jit
def row_sums(p_partials, first_row, batch, chunks, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """[ROWS, 8]: each row's COLUMNS sums over its chunks, and a column of zeros."""
    # Rows side by side and their chunks after one another, so that threads share the rows out.
    at = tl.arange(0, WIDTH * ROWS)[:, None]
    row = first_row + at % ROWS
    column = tl.arange(0, 8)[None, :]
    sums = tl.zeros([WIDTH * ROWS, 8], tl.float64)
    p_rows = p_partials + row.to(tl.int64) * chunks * COLUMNS
    m_rows = (row < batch) & (column < COLUMNS)
    for first in range(0, chunks, WIDTH):
        chunk = first + at // ROWS
        mask = m_rows & (chunk < chunks)
        sums += tl.load(p_rows + chunk * COLUMNS + column, mask=mask, other=0.0).to(tl.float64)
    return tl.sum(tl.reshape(sums, [WIDTH, ROWS, 8]), axis=0)


@triton.jit
def pick(sums, index: tl.constexpr):
    """One of the columns, [ROWS]."""
    return tl.sum(tl.where(tl.arange(0, 8)[None, :] == index, sums, 0.0), axis=1)


@triton.jit
def loaded(p, COUNT: tl.constexpr):
    values = ()
    for i in tl.static_range(COUNT):
        values += (tl.load(p + i),)
    return values


@triton.jit
def adaptive_weight(l_est, l_ref, lmin, lambda0, delta_lambda, distance):
    room = l_ref - lmin
    share = distance / tl.where(room < 1e-6, 1e-6, room)
    share = tl.where(share < 0, 0.0, tl.where(share > 1, 1.0, share))
    eta = ((l_ref > l_est) & (l_ref > lmin)).to(tl.float32)
    # eta delta_lambda is rounded to float32 in torch-l1-snr, also for float64 input.
    return lambda0 + (eta * delta_lambda.to(tl.float32)).to(tl.float64) * share


@jit
def objective_kernel(
    partials,  # per term [B, chunks, COLUMNS]
    chunk_counts,  # per term; as floats, whose values Triton never specializes on
    settings,  # [terms, SETTINGS]
    loss,  # scalar, or [B] for reduction "none"; written
    coefficients,  # [terms, 3, B], written
    parts,  # [terms, PARTS, B], written
    nonfinite,  # scalar, written
    batch,
    channels,
    length,
    TERMS: tl.constexpr,
    REDUCTION: tl.constexpr,
    SETTINGS: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,  # chunks that are added side by side
):
    total = tl.zeros([ROWS], tl.float64)
    bad = tl.zeros([ROWS], tl.float64)
    for first in range(0, batch, ROWS):
        row = first + tl.arange(0, ROWS)
        live = row < batch
        row_loss = tl.zeros([ROWS], tl.float64)
        for term in range(TERMS):
            p_partials, chunks = partials[0], chunk_counts[0]
            for other in tl.static_range(1, TERMS):
                p_partials = tl.where(term == other, partials[other], p_partials)
                chunks = tl.where(term == other, chunk_counts[other], chunks)
            sums = row_sums(p_partials, first, batch, tl.cast(chunks, tl.int32), ROWS, WIDTH)
            bad += tl.where(term == 0, pick(sums, NONFINITE), 0.0)  # each term counts the same
            (
                bins, hop, slack, grad_scale, weight, count, eps, tau, w, scale,
                regularize, reg_coef, lambda0, delta_lambda, lmin, dbrms_eps,
            ) = loaded(settings + term * SETTINGS, SETTINGS)  # fmt: skip
            frames = (length - slack.to(tl.int64)) // hop.to(tl.int64) + 1
            elements = channels * frames * bins
            means = sums / elements
            snr = w != 1  # pure L1 is the scaled mean error and nothing else
            leveled = snr & (regularize != 0)

            err_re, err_im = pick(means, ERR_RE), pick(means, ERR_IM)
            ref_re, ref_im = pick(means, REF_RE), pick(means, REF_IM)
            l1 = (err_re + err_im) / count
            # tau = 0 asks for nothing of a reference that is infinite.
            floor_re = err_re + tl.where(tau == 0, eps, tau * ref_re + eps)
            floor_im = err_im + tl.where(tau == 0, eps, tau * ref_im + eps)
            d1_re = C * tl.log(floor_re / (ref_re + eps))
            d1_im = C * tl.log(floor_im / (ref_im + eps))
            d1 = tl.where(snr, d1_re + tl.where(count == 2, d1_im, 0.0), 0.0)
            q_est = pick(means, Q_EST) + dbrms_eps
            l_est = tl.where(leveled, C * tl.log(q_est), 0.0)
            l_ref = tl.where(leveled, C * tl.log(pick(means, Q_REF) + dbrms_eps), 0.0)
            distance = tl.abs(l_est - l_ref)
            lam = adaptive_weight(l_est, l_ref, lmin, lambda0, delta_lambda, distance)
            lam = tl.where(leveled, lam, 0.0)
            level = lam * distance
            l1_share, snr_share = weight * w * scale, weight * (1 - w)
            row_loss += tl.where(w > 0, l1_share * l1, 0.0)
            row_loss += tl.where(snr, snr_share * (d1 + reg_coef * level), 0.0)

            share = grad_scale / elements
            if REDUCTION == "mean":
                share = share / batch
            # What is not finite must show in the gradient too, where C / inf would be 0.
            a_re = l1_share / count + tl.where(snr, snr_share * C / floor_re, 0.0) + 0 * err_re
            a_im = l1_share / count + tl.where(snr, snr_share * C / floor_im, 0.0) + 0 * err_im
            side = (l_est > l_ref).to(tl.float64) - (l_est < l_ref).to(tl.float64)
            r = snr_share * reg_coef * lam * side * 2 * C / q_est
            p = coefficients + term * 3 * batch + row
            tl.store(p, share * a_re, mask=live)
            tl.store(p + batch, share * tl.where(count == 2, a_im, a_re), mask=live)
            tl.store(p + 2 * batch, share * tl.where(leveled, r, 0.0), mask=live)
            p = parts + term * PARTS * batch + row
            tl.store(p, d1, mask=live)
            tl.store(p + batch, level, mask=live)
            tl.store(p + 2 * batch, l1, mask=live)
            tl.store(p + 3 * batch, lam, mask=live)
            tl.store(p + 4 * batch, l_est, mask=live)
            tl.store(p + 5 * batch, l_ref, mask=live)
        if REDUCTION == "none":
            tl.store(loss + row, row_loss.to(loss.dtype.element_ty), mask=live)
        total += tl.where(live, row_loss, 0.0)

    if REDUCTION != "none":
        value = tl.sum(total)
        if REDUCTION == "mean":
            value = value / batch
        tl.store(loss, value.to(loss.dtype.element_ty))
    tl.store(nonfinite, tl.sum(bad))


class Work(NamedTuple):
    """The launch, and the shapes of what it writes."""

    launch: Launch
    loss: tuple[int, ...]
    coefficients: tuple[int, ...]
    parts: tuple[int, ...]


@prepared
def _work(
    plan: Plan, shapes: tuple[torch.Size, ...], channels: int, length: int, device: torch.device
) -> Work:
    """For partial sums of these ``shapes``."""
    batch, terms = shapes[0][0], len(shapes)
    table = settings(plan, device)
    rows = min(ROWS, triton.next_power_of_2(batch))
    launch = Launch(
        objective_kernel,
        programs=1,
        threads=THREADS,
        chunk_counts=tuple(float(chunks) for _, chunks, _ in shapes),
        settings=table,
        batch=batch,
        channels=channels,
        length=length,
        TERMS=terms,
        REDUCTION=plan.reduction,
        SETTINGS=table.shape[1],
        PARTS=len(PARTS),
        ROWS=rows,
        WIDTH=max(1, common.config().sums // rows),
    )
    loss = (batch,) if plan.reduction == "none" else ()
    return Work(launch, loss, (terms, 3, batch), (terms, len(PARTS), batch))


def objective(
    plan: Plan, partials: Sequence[Tensor], channels: int, length: int, dtype: torch.dtype
) -> Evaluation:
    """Loss and parts in ``dtype``, gradient coefficients in float64, of all terms."""
    partials, first = tuple(partials), partials[0]
    shapes = tuple([sums.shape for sums in partials])
    work = _work(plan, shapes, channels, length, first.device)
    double = torch.float64
    result = Evaluation(
        loss=first.new_empty(work.loss, dtype=dtype),
        coefficients=first.new_empty(work.coefficients, dtype=double),
        parts=first.new_empty(work.parts, dtype=dtype),
        nonfinite=first.new_empty((), dtype=double),
    )
    with on_device(first):
        work.launch(partials=partials, **result._asdict())
    return result
