r"""Waveforms to windowed frames, and frames back to a gradient.

Frame f of a signal starts at sample f hop - pad; the borders are reflected. For a windowed frame x
of even length n the level needs no FFT:

.. math:: \sum_{k \le n/2} |X_k|^2 = (n \sum x^2 + X_0^2 + X_{n/2}^2) / 2, \quad
          X_0 = \sum x_j, \quad X_{n/2} = \sum (-1)^j x_j

(odd n has no X_{n/2}). Half of its gradient by the waveform is w_j (n w_j e_j + X_0 + (-1)^j
X_{n/2}) / 2: the edge bins enter with the spectrum (``spectrum.py``), n w_j^2 e_j / 2 here.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ..plan import Objective, Resolution
from . import common
from .common import (
    COLUMNS,
    ceil_div,
    finite,
    jit,
    place,
    sanitized,
    store_partials,
)
from .launching import Launch, Waves
from .unknown import is_known, unknown_words

UNROLL = tl.constexpr(4)  # elements of a thread whose loads are in flight together


class Slab(NamedTuple):
    """The frames that are handled together: some signals' frames, all or a span of them."""

    first_signal: int
    signals: int
    first_frame: int
    frames: int  # of each signal

    @property
    def pairs(self) -> int:
        """Pairs of frames of a signal; where these are odd in number, the last has no partner."""
        return self.signals * ceil_div(self.frames, 2)

    @property
    def span(self) -> tuple[slice, slice]:
        """The slab's part of a tensor [signals, frames, ...]."""
        return (
            slice(self.first_signal, self.first_signal + self.signals),
            slice(self.first_frame, self.first_frame + self.frames),
        )


@jit
def frame_kernel(
    estimates,  # [B, C, L], any row and channel stride
    actuals,  # [B, C, L], any row and channel stride
    window,  # [n]
    framed,  # [1 or 2, signals, frames, n] of the slab: of e - t and, if TARGET, of t; written
    partials,  # [signals, chunks, COLUMNS] of the slab, written if TALLY
    edges,  # [signals, frames, 2] of the slab: X_0 and X_{n/2} of e, written if SAVE
    estimate_batch,
    estimate_channel,
    actual_batch,
    actual_channel,
    partial_stride,  # from signal to signal
    edge_stride,  # from signal to signal
    channels,
    length,
    first_signal,
    first_frame,
    frames,  # per signal in the slab
    frame_count,  # per signal in all
    values,  # from a frame of e - t to that of t
    chunks,  # per signal in the slab
    span,  # frames per chunk
    n,
    hop,
    pad,
    TARGET: tl.constexpr,
    LEVEL: tl.constexpr,
    SAVE: tl.constexpr,
    SANITIZE: tl.constexpr,
    TALLY: tl.constexpr,  # there are levels or sanitized samples to sum
    LANES: tl.constexpr,
):
    DTYPE: tl.constexpr = window.dtype.element_ty
    chunk, local, row, channel = place(chunks, first_signal, channels)
    p_e = estimates + (row * estimate_batch + channel * estimate_channel)
    p_t = actuals + (row * actual_batch + channel * actual_channel)
    lane = tl.arange(0, LANES)
    alternating = (1 - 2 * (lane % 2)).to(DTYPE)
    nonfinite = tl.zeros([LANES], DTYPE)
    level_e = tl.zeros([LANES], DTYPE)
    level_t = tl.zeros([LANES], DTYPE)
    edges_e = tl.cast(0.0, DTYPE)
    edges_t = tl.cast(0.0, DTYPE)

    for i in range(chunk * span, tl.minimum(chunk * span + span, frames)):
        start = (first_frame + i) * hop - pad
        p_frame = framed + (local * frames + i) * n
        # Reflected positions count from the frame's start, and so need no more than 32 bits.
        before = tl.maximum(-start, 0).to(tl.int32)
        final = tl.minimum(length - 1 - start, n).to(tl.int32)
        # Every sample counts once: in the last frame that starts at or before it.
        until = tl.where(first_frame + i == frame_count - 1, n, hop)
        sum_e = tl.zeros([LANES], DTYPE)
        sum_t = tl.zeros([LANES], DTYPE)
        turn_e = tl.zeros([LANES], DTYPE)
        turn_t = tl.zeros([LANES], DTYPE)
        for first in range(0, n, UNROLL * LANES):
            for step in tl.static_range(UNROLL):
                j = first + step * LANES + lane
                inside = j < n
                at = tl.abs(j - before) + before
                at = tl.minimum(at, 2 * final - at)
                w = tl.load(window + j, mask=inside, other=0.0)
                e = tl.load(p_e + start + at, mask=inside, other=0.0).to(DTYPE)
                t = tl.load(p_t + start + at, mask=inside, other=0.0).to(DTYPE)
                if SANITIZE:
                    own = (j >= before) & (j <= final) & (j < until)
                    unknown = (finite(e) == 0).to(DTYPE) + (finite(t) == 0).to(DTYPE)
                    nonfinite += tl.where(own, unknown, 0.0)
                    e = sanitized(e)
                    t = sanitized(t)
                tl.store(p_frame + j, w * (e - t), mask=inside)
                if TARGET:
                    tl.store(p_frame + values + j, w * t, mask=inside)
                if LEVEL:
                    e = w * e
                    t = w * t
                    level_e += e * e
                    level_t += t * t
                    sum_e += e
                    sum_t += t
                    turn_e += alternating * e
                    turn_t += alternating * t
        if LEVEL:
            even = 1 - n % 2
            x0_e, xn_e = tl.sum(sum_e), tl.sum(turn_e) * even
            x0_t, xn_t = tl.sum(sum_t), tl.sum(turn_t) * even
            edges_e += x0_e * x0_e + xn_e * xn_e
            edges_t += x0_t * x0_t + xn_t * xn_t
            if SAVE:
                p_edges = edges + (local * edge_stride + i * 2)
                tl.store(p_edges, x0_e)
                tl.store(p_edges + 1, xn_e)

    if TALLY:
        store_partials(
            partials + (local * partial_stride + chunk * COLUMNS),
            0.0,
            0.0,
            0.0,
            0.0,
            0.5 * (n * tl.sum(level_e) + edges_e),
            0.5 * (n * tl.sum(level_t) + edges_t),
            tl.sum(nonfinite),
        )


@triton.jit
def overlapped(p_framed, window, base, offset, inside, first_row, first_frame, frames, n, hop):
    """Sums of w y and of w^2 over the frames that reach padded samples base + offset."""
    # Splitting off the base leaves a division of 32 bits for each sample.
    nearest = base // hop
    near = (base - nearest * hop).to(tl.int32) + offset
    i = (nearest - first_frame).to(tl.int32) + near // hop
    j = near % hop
    total = tl.zeros(offset.shape, window.dtype.element_ty)
    squares = tl.zeros(offset.shape, window.dtype.element_ty)
    for _ in range((n + hop - 1) // hop):
        mask = inside & (i >= 0) & (i < frames) & (j < n)
        w = tl.load(window + j, mask=mask, other=0.0)
        row = first_row + i
        total += w * tl.load(p_framed + (row // 2 * n + j) * 2 + row % 2, mask=mask, other=0.0)
        squares += w * w
        i -= 1
        j += hop
    return total, squares


@jit
def overlap_add_kernel(
    gradient,  # [B, C, L], contiguous, added to
    framed,  # [pairs, n, 2]: two frames of a signal side by side
    window,  # [n]
    estimates,  # [B, C, L], any row and channel stride; read if LEVEL
    unknown,  # [B C, words], read if SANITIZE
    coefficients,  # [3, B], of which r is read
    estimate_batch,
    estimate_channel,
    batch,
    channels,
    length,
    words,  # of ``unknown`` per signal
    first_signal,
    first_frame,
    frames,  # per signal in the slab
    first_sample,  # that the slab's frames reach
    samples,  # that they reach
    blocks,  # of samples per signal, one program each
    n,
    hop,
    pad,
    LEVEL: tl.constexpr,
    SANITIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Every sample gathers its frames in a fixed order, and those of its images in the borders."""
    DTYPE: tl.constexpr = window.dtype.element_ty
    block, local, row, channel = place(blocks, first_signal, channels)
    start = first_sample + block * WIDTH
    lane = tl.arange(0, WIDTH)
    inside = lane < first_sample + samples - start
    first_row = local * (frames + frames % 2)

    total, squares = overlapped(
        framed, window, start + pad, lane, inside, first_row, first_frame, frames, n, hop
    )
    if start <= pad:  # sample p is also padded sample pad - p
        base = tl.maximum(pad - start - (WIDTH - 1), 0)
        image = inside & (start + lane >= 1) & (start + lane <= pad)
        offset = (pad - start - base).to(tl.int32) - lane
        more, more_squares = overlapped(
            framed, window, base, offset, image, first_row, first_frame, frames, n, hop
        )
        total += more
        squares += more_squares
    if start + WIDTH > length - 1 - pad:  # and padded sample pad + L + (L - 2 - p)
        offset = (length - 2 - start).to(tl.int32) - lane
        image = inside & (offset >= 0) & (offset < pad)
        base = start * 0 + pad + length
        more, more_squares = overlapped(
            framed, window, base, offset, image, first_row, first_frame, frames, n, hop
        )
        total += more
        squares += more_squares

    if LEVEL:
        p_e = estimates + (row * estimate_batch + channel * estimate_channel + start)
        e = tl.load(p_e + lane, mask=inside, other=0.0).to(DTYPE)
        r = tl.load(coefficients + 2 * batch + row).to(DTYPE)
        total += 0.5 * r * n * (sanitized(e) if SANITIZE else e) * squares
    if SANITIZE:
        p_unknown = unknown + (first_signal + local) * words
        total = tl.where(is_known(p_unknown, start + lane, inside), total, 0.0)
    p_gradient = gradient + ((first_signal + local) * length + start) + lane
    tl.store(p_gradient, tl.load(p_gradient, mask=inside, other=0.0) + total, mask=inside)


def frame(
    given: Waves,
    res: Resolution,
    slab: Slab,
    term: Objective,
    save: bool,
    sanitize: bool,
    chunks: tuple[int, int],
    partial_stride: int,
) -> Launch:
    """Writes the slab's windowed frames of e - t, and those of t unless the loss is pure L1.

    Of ``partials`` [signals, chunks, COLUMNS], and of ``edges`` [signals, frames, 2], it is given
    the slab's. ``chunks`` says how many there are per signal and how many frames each has.
    """
    _, channels, length = given.shape
    count, level, lanes = res.frames(length), term.has_level, common.config().lanes
    return Launch(
        frame_kernel,
        programs=slab.signals * chunks[0],
        threads=lanes,
        **given.strides("estimate", "actual"),
        window=res.window(given.dtype, given.device),
        partial_stride=partial_stride,
        edge_stride=count * 2,
        channels=channels,
        length=length,
        first_signal=slab.first_signal,
        first_frame=slab.first_frame,
        frames=slab.frames,
        frame_count=count,
        values=slab.signals * slab.frames * res.n_fft,
        chunks=chunks[0],
        span=chunks[1],
        n=res.n_fft,
        hop=res.hop_length,
        pad=res.pad,
        TARGET=not term.pure_l1,
        LEVEL=level,
        SAVE=save and level,
        SANITIZE=sanitize,
        TALLY=level or sanitize,
        LANES=lanes,
    )


def overlap_add(given: Waves, res: Resolution, slab: Slab, level: bool, sanitize: bool) -> Launch:
    """Adds the slab's frames, windowed, overlapped and folded, and r n w^2 e / 2 to ``gradient``.

    ``framed`` is [pairs, n, 2]. With ``sanitize``, samples that ``unknown`` names get nothing.
    """
    batch, channels, length = given.shape
    # Samples whose frames, or whose images' frames, may lie in the slab.
    first = slab.first_frame * res.hop_length - res.pad
    end = first + (slab.frames - 1) * res.hop_length + res.n_fft
    first, end = max(0, min(first, length - 1 - res.pad)), min(end, length)
    lanes = common.config().lanes
    width = lanes * UNROLL.value
    blocks = ceil_div(end - first, width)
    return Launch(
        overlap_add_kernel,
        programs=slab.signals * blocks,
        threads=lanes,
        **given.strides("estimate"),
        window=res.window(given.dtype, given.device),
        batch=batch,
        channels=channels,
        length=length,
        words=unknown_words(length),
        first_signal=slab.first_signal,
        first_frame=slab.first_frame,
        frames=slab.frames,
        first_sample=first,
        samples=end - first,
        blocks=blocks,
        n=res.n_fft,
        hop=res.hop_length,
        pad=res.pad,
        LEVEL=level,
        SANITIZE=sanitize,
        WIDTH=width,
    )
