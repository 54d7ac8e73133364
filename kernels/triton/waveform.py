r"""Waveform domain: sums of the error and of the reference, and their gradient.

Per row, with d = e - t and power p:

.. math:: S_{err} = \sum |d|^p, \quad S_{ref} = \sum |t|^p, \quad
          Q_{est} = \sum e^2, \quad Q_{ref} = \sum t^2

and the gradient is a sign(d) + r e, or 2 a d + r e for power 2. The signs, or d itself for power 2,
are kept from the forward pass, so without the level term (r = 0) the backward pass reads nothing
else.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..plan import Objective
from . import common
from .common import (
    COLUMNS,
    DTYPES,
    PLANES,
    block_count,
    finite,
    jit,
    place,
    sanitized,
    sign_code,
    signed,
    split,
    store_partials,
)
from .launching import Launch, Waves, prepared


@jit
def waveform_statistics_kernel(
    estimates,  # [B, C, L], any row and channel stride
    actuals,  # [B, C, L], any row and channel stride
    partials,  # [B C, chunks, COLUMNS], written
    kept,  # written if SAVE: [B C, words] signs for power 1, [B, C, L] d for power 2
    estimate_batch,
    estimate_channel,
    actual_batch,
    actual_channel,
    channels,
    length,
    blocks,  # per signal
    chunks,  # per signal
    span,  # blocks per chunk
    words,  # per signal
    POWER: tl.constexpr,
    REFERENCE: tl.constexpr,  # sum the reference
    LEVEL: tl.constexpr,  # sum the squares
    SAVE: tl.constexpr,  # keep the signs
    SANITIZE: tl.constexpr,
    COUNT: tl.constexpr,  # of samples that are not finite
    LANES: tl.constexpr,
):
    DTYPE: tl.constexpr = partials.dtype.element_ty
    chunk, signal, row, channel = place(chunks, 0, channels)
    p_e = estimates + (row * estimate_batch + channel * estimate_channel)
    p_t = actuals + (row * actual_batch + channel * actual_channel)
    lane = tl.arange(0, LANES)
    error = tl.zeros([LANES], DTYPE)
    reference = tl.zeros([LANES], DTYPE)
    q_est = tl.zeros([LANES], DTYPE)
    q_ref = tl.zeros([LANES], DTYPE)
    nonfinite = tl.zeros([LANES], DTYPE)

    for block in range(chunk * span, tl.minimum(chunk * span + span, blocks)):
        start = block * (PLANES * LANES)
        left = tl.minimum(length - start, PLANES * LANES).to(tl.int32)
        word = tl.zeros([LANES], tl.int32)
        for plane in tl.static_range(PLANES):
            o = plane * LANES + lane
            e = tl.load(p_e + start + o, mask=o < left, other=0.0).to(DTYPE)
            t = tl.load(p_t + start + o, mask=o < left, other=0.0).to(DTYPE)
            known = finite(e)
            if COUNT:
                nonfinite += (known == 0).to(DTYPE) + (finite(t) == 0).to(DTYPE)
            if SANITIZE:
                e = sanitized(e)
                t = sanitized(t)
            d = e - t
            if POWER == 1:
                error += tl.abs(d)
            else:
                error += d * d
            if REFERENCE:
                if POWER == 1:
                    reference += tl.abs(t)
                else:
                    reference += t * t
            if LEVEL:
                q_est += e * e
                q_ref += t * t
            if SAVE and POWER == 2:
                if SANITIZE:
                    d = tl.where(known, d, 0.0)
                tl.store(kept + signal * length + start + o, d, mask=o < left)
            if SAVE and POWER == 1:
                code = sign_code(d)
                if SANITIZE:
                    code = tl.where(known, code, 0)
                word |= code << (2 * plane)
        if SAVE and POWER == 1:
            tl.store(kept + signal * words + block * LANES + lane, word)

    store_partials(
        partials + (signal * chunks + chunk) * COLUMNS,
        tl.sum(error),
        0.0,
        tl.sum(reference),
        0.0,
        tl.sum(q_est),
        tl.sum(q_ref),
        tl.sum(nonfinite),
    )


@jit
def waveform_gradient_kernel(
    gradient,  # [B, C, L], contiguous, written
    kept,  # [B C, words] signs for power 1, [B, C, L] d for power 2
    estimates,  # [B, C, L], read for the level term
    coefficients,  # [3, B]: a, unused, r
    estimate_batch,
    estimate_channel,
    batch,
    channels,
    length,
    blocks,  # per signal, one program each
    POWER: tl.constexpr,
    LEVEL: tl.constexpr,
    SANITIZE: tl.constexpr,
    DTYPE: tl.constexpr,
    LANES: tl.constexpr,
):
    block, signal, row, channel = place(blocks, 0, channels)
    start = block * (PLANES * LANES)
    left = tl.minimum(length - start, PLANES * LANES).to(tl.int32)
    p_e = estimates + (row * estimate_batch + channel * estimate_channel + start)
    p_gradient = gradient + (signal * length + start)
    lane = tl.arange(0, LANES)
    a = tl.load(coefficients + row).to(DTYPE)
    r = tl.load(coefficients + 2 * batch + row).to(DTYPE)
    if POWER == 1:
        word = tl.load(kept + (signal * blocks + block) * LANES + lane)

    for plane in tl.static_range(PLANES):
        o = plane * LANES + lane
        if POWER == 1:
            value = signed(word, 2 * plane, a)
        else:
            value = 2 * a * tl.load(kept + signal * length + start + o, mask=o < left, other=0.0)
        if LEVEL:
            e = tl.load(p_e + o, mask=o < left, other=0.0).to(DTYPE)
            if SANITIZE:
                e = tl.where(finite(e), e, 0.0)
            value += r * e
        tl.store(p_gradient + o, value.to(gradient.dtype.element_ty), mask=o < left)


@prepared
def _statistics(
    given: Waves, term: Objective, save: bool, sanitize: bool, count: bool
) -> tuple[Launch, tuple[int, ...], tuple[int, ...], torch.dtype]:
    """The launch, and the shapes of the partial sums and of what is kept, with its dtype."""
    batch, channels, length = given.shape
    lanes = common.config().lanes
    blocks = block_count(length)
    chunks, span = split(given.signals, blocks, PLANES.value * lanes)
    words = blocks * lanes
    launch = Launch(
        waveform_statistics_kernel,
        programs=given.signals * chunks,
        threads=lanes,
        **given.strides("estimate", "actual"),
        channels=channels,
        length=length,
        blocks=blocks,
        chunks=chunks,
        span=span,
        words=words,
        POWER=term.power,
        REFERENCE=not term.pure_l1,
        LEVEL=term.has_level,
        SAVE=save,
        SANITIZE=sanitize,
        COUNT=count,
        LANES=lanes,
    )
    sums = (batch, channels * chunks, COLUMNS.value)
    if term.power == 1:
        return launch, sums, (given.signals, words), torch.int32
    return launch, sums, given.shape, given.dtype


@prepared
def _gradient(given: Waves, term: Objective, sanitize: bool) -> Launch:
    batch, channels, length = given.shape
    lanes = common.config().lanes
    blocks = block_count(length)
    return Launch(
        waveform_gradient_kernel,
        programs=given.signals * blocks,
        threads=lanes,
        **given.strides("estimate"),
        batch=batch,
        channels=channels,
        length=length,
        blocks=blocks,
        POWER=term.power,
        LEVEL=term.has_level,
        SANITIZE=sanitize,
        DTYPE=DTYPES[given.dtype],
        LANES=lanes,
    )


def waveform_statistics(
    given: Waves,
    estimates: Tensor,
    actuals: Tensor,
    term: Objective,
    save: bool,
    sanitize: bool,
    count: bool,
) -> tuple[Tensor, Tensor | None]:
    """Partial sums [B, chunks, COLUMNS] and, with ``save``, what the gradient needs of e - t."""
    launch, sums, shape, dtype = _statistics(given, term, save, sanitize, count)
    partials = estimates.new_empty(sums, dtype=given.dtype)
    kept = estimates.new_empty(shape, dtype=dtype) if save else None
    launch(estimates=estimates, actuals=actuals, partials=partials, kept=kept)
    return partials, kept


def waveform_gradient(
    given: Waves,
    kept: Tensor | None,
    coefficients: Tensor,
    estimates: Tensor,
    term: Objective,
    sanitize: bool,
    gradient: Tensor,
) -> None:
    """Write a sign(e-t) + r e (power 2: 2 a (e-t) + r e) into the contiguous ``gradient``.

    ``kept`` comes from :func:`waveform_statistics`.
    """
    launch = _gradient(given, term, sanitize)
    launch(gradient=gradient, kept=kept, estimates=estimates, coefficients=coefficients)
