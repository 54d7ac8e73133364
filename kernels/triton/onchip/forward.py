r"""Waveforms to sums and signs of their spectra.

Frames f and f + 1 of one signal, windowed, are the real and imaginary part of z; with Z = FFT(z)
and G_k = conj(Z_{n-k}) their spectra are A_k = (Z_k + G_k) / 2, B_k = (Z_k - G_k) / 2i. A program
does so with a stretch of such pairs (see ``stretches``) of D = STFT(e - t) or of T = STFT(t), adds
up \|Re\| and \|Im\|, and packs the signs of D.

*Samples that are not finite* leave no finite sum behind. So clean data is read as it is, and only
the stretch whose sums are not finite is done again with NaN as 0 and +-Inf as +-1; its samples that
are not finite are counted, and those of the estimates noted for the backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ... import plan
from ...plan import Resolution
from .. import common
from ..common import COLUMNS, finite, store_partials
from ..fft import SPLITS, fft, twiddles, unpack
from ..launching import Launch, Waves
from ..unknown import BITS, store_unknown
from .pairs import separate
from .samples import NOTED, chunks, count_nonfinite, read
from .signs import either, not_silent, silence, store_signs
from .stretches import (
    forward_stretch,
    forward_stretches,
    jit,
    points,
    prepare,
    signal_of,
    zeros,
)

NONFINITE: tl.constexpr = tl.constexpr(plan.NONFINITE)


@triton.jit
def _windowed(x, window, SHIFT: tl.constexpr):
    """Frames A and B, a hop apart, of the chunks that both reach over."""
    R: tl.constexpr = len(x) - SHIFT
    CHUNK: tl.constexpr = x[0].shape[0]
    chunk = tl.arange(0, R)[None, :] * CHUNK + tl.arange(0, CHUNK)[:, None]
    w = unpack(tl.load(window + chunk))
    a, b = (), ()
    for j in tl.static_range(R):
        a += (x[j] * w[j],)
        b += (x[j + SHIFT] * w[j],)
    return a, b


@triton.jit
def _sum_abs(x):
    total = tl.abs(x[0])
    for k in tl.static_range(1, len(x)):
        total += tl.abs(x[k])
    return total


@triton.jit
def _add_up(sum_re, sum_im, a_re, a_im, b_re, b_im, a_end, b_end, there):
    """The sums with a pair's |Re| and |Im| added, of B only if it is ``there``."""
    sum_re += _sum_abs(a_re) + tl.abs(a_end) + there * (_sum_abs(b_re) + tl.abs(b_end))
    sum_im += _sum_abs(a_im) + there * _sum_abs(b_im)
    return sum_re, sum_im


@triton.jit
def _stretch(
    waves,
    tables,
    p_signs,
    length,
    frames,
    first,
    stop,
    HOP: tl.constexpr,
    RADICES: tl.constexpr,
    SAVE: tl.constexpr,
    SANITIZE: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """What the pairs first <= i < stop of D or of T leave: their row of sums, and signs."""
    R1: tl.constexpr = RADICES[0]
    R2: tl.constexpr = RADICES[1]
    R3: tl.constexpr = RADICES[2]
    N: tl.constexpr = R1 * R2 * R3
    CHUNK: tl.constexpr = R2 * R3
    SHIFT: tl.constexpr = HOP // CHUNK
    window, p_twiddles = tables

    re, im = 0.0, 0.0
    dirty = first < 0
    todo = first < stop
    while todo:
        held = zeros(R1 - SHIFT, CHUNK)
        sum_re = tl.zeros([R1 * R2], tl.float32)  # [bin mod n / R3]
        sum_im = tl.zeros([R1 * R2], tl.float32)
        sounding = tl.zeros([CHUNK], tl.int32)  # a bit for each frame
        begin = first - N // (2 * HOP)
        if PREFETCH:
            following = read(waves, begin, length, dirty, N, HOP, CHUNK, SANITIZE, PREFETCH)
        for i in range(begin, stop):
            if PREFETCH:
                new = chunks(following)
                following = read(waves, i + 1, length, dirty, N, HOP, CHUNK, SANITIZE, PREFETCH)
            else:
                new = read(waves, i, length, dirty, N, HOP, CHUNK, SANITIZE, PREFETCH)
            x = held + new
            held = x[2 * SHIFT :]
            if i >= first:
                a, b = _windowed(x, window, SHIFT)
                if SAVE:
                    sounding |= tl.where(not_silent(a), 1 << (2 * (i - first)), 0)
                    sounding |= tl.where(not_silent(b), 2 << (2 * (i - first)), 0)
                zr, zi = fft(a, b, p_twiddles, R2, R3)
                a_re, a_im, b_re, b_im, a_end, b_end = separate(zr, zi)
                there = tl.where(2 * i + 1 < frames, 1.0, 0.0)
                sum_re, sum_im = _add_up(
                    sum_re, sum_im, a_re, a_im, b_re, b_im, a_end, b_end, there
                )
                if SAVE:
                    p_words = p_signs + i * (N // 8)
                    store_signs(p_words, a_re, a_im, b_re, b_im, a_end, b_end)

        re, im = 0.5 * tl.sum(sum_re, 0), 0.5 * tl.sum(sum_im, 0)  # of 2A and 2B
        if SAVE:
            silence(p_signs, frames, first, stop, tl.reduce(sounding, 0, either), WORDS=N // 8)
        todo = first < 0
        if SANITIZE:
            todo = ~dirty & ~finite(re + im)
            dirty = dirty | todo
    return re, im, dirty


@triton.jit
def _share(program, places, sizes, HOP: tl.constexpr, SIGNALS: tl.constexpr):
    """Whose samples and which pairs a program reads: starts of e and t, signal, first, stop."""
    e, t = places
    channels, length, span = sizes
    stretches = forward_stretches(span, length, HOP)
    signal = (program // SIGNALS // stretches).to(tl.int64)  # offsets made of it exceed 32 bits
    first, stop, _ = forward_stretch(program // SIGNALS % stretches, span, length, HOP)
    p_e = signal_of(e[0], e[1], e[2], signal, channels)
    p_t = signal_of(t[0], t[1], t[2], signal, channels)
    return (p_e, p_t), signal, first, stop


@jit
def stft_statistics_kernel(
    estimates, estimate_batch, estimate_channel,  # [B, C, L], any row and channel stride
    actuals, actual_batch, actual_channel,  # [B, C, L], any row and channel stride
    window,  # [n]
    p_twiddles,  # [2, n]
    signs,  # [B C, pairs, R3 / 8, n / R3], written if SAVE
    unknown,  # [B C, ceil(L / 32)], written if SAVE and SANITIZE, by stretches that find some
    partials,  # [B C, stretches, SIGNALS, COLUMNS], written
    channels,
    length,
    span,  # pairs to a stretch
    HOP: tl.constexpr,
    RADICES: tl.constexpr,
    SIGNALS: tl.constexpr,  # 2: D and T; 1: D alone
    SAVE: tl.constexpr,
    SANITIZE: tl.constexpr,
    PREFETCH: tl.constexpr,  # a pair's samples are loaded before the FFT of the pair before it
):  # fmt: skip
    """Sums and signs of one stretch of ``span`` pairs of frames.

    Neighbouring programs do D and T of the same stretch, so that its samples are read from memory
    once.
    """
    program, zero = tl.program_id(0), tl.program_id(1)  # which the compiler cannot know is 0
    places = (estimates, estimate_batch, estimate_channel), (actuals, actual_batch, actual_channel)
    sizes = (channels, length, span)
    waves, signal, first, stop = _share(program, places, sizes, HOP, SIGNALS)
    frames = length // HOP + 1
    tables = (window, p_twiddles)
    if SAVE:
        signs += signal * ((frames + 1) // 2) * (points(RADICES) // 8)
    if program % SIGNALS == 0:
        re, im, dirty = _stretch(
            waves, tables, signs, length, frames, first, stop, HOP, RADICES,
            SAVE=SAVE, SANITIZE=SANITIZE, PREFETCH=PREFETCH,
        )  # fmt: skip
        # All of what follows is computed again rather than kept in registers during the loop.
        program += zero
        p_partials = partials + program.to(tl.int64) * COLUMNS
        store_partials(p_partials, re, im, 0.0, 0.0, 0.0, 0.0, 0.0)
        if SANITIZE:
            if dirty:
                sizes = (channels, length, span + zero)
                waves, signal, first, stop = _share(program, places, sizes, HOP, SIGNALS)
                begin, end = first * (2 * HOP), tl.minimum(stop * (2 * HOP), length)
                tl.store(p_partials + NONFINITE, count_nonfinite(waves, begin, end))
                if SAVE:
                    p_unknown = unknown + signal * ((length + BITS - 1) // BITS)
                    for p in range(begin, end, NOTED * BITS):
                        store_unknown(waves[0], p_unknown, p, end, NOTED)
    else:
        re, im, _ = _stretch(
            waves[1:], tables, signs, length, frames, first, stop, HOP, RADICES,
            SAVE=False, SANITIZE=SANITIZE, PREFETCH=PREFETCH,
        )  # fmt: skip
        p_partials = partials + program.to(tl.int64) * COLUMNS
        store_partials(p_partials, 0.0, 0.0, re, im, 0.0, 0.0, 0.0)


def statistics(
    given: Waves,
    res: Resolution,
    programs: int,
    span: int,
    kinds: int,
    save: bool,
    sanitize: bool,
) -> Launch:
    """Writes the partial sums and, to be saved, signs, and the samples that are not known."""
    return prepare(
        stft_statistics_kernel,
        programs,
        res,
        **given.strides("estimate", "actual"),
        window=res.window(torch.float32, given.device),
        p_twiddles=twiddles(res.n_fft, given.device),
        channels=given.shape[1],
        length=given.shape[2],
        span=span,
        HOP=res.hop_length,
        RADICES=SPLITS[res.n_fft].radices,
        SIGNALS=kinds,
        SAVE=save,
        SANITIZE=sanitize,
        PREFETCH=common.config().prefetch_forward,
    )
