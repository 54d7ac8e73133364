r"""Signs to the gradient of the waveforms.

From the signs, S_k = a_re sign(Re D_k) + i a_im sign(Im D_k) for both frames of a pair, half of it
as G in 0 < k < n/2 (the real FFT counts those bins twice). z is the inverse FFT of G_A + i G_B,
Hermitian parts continued to n/2 < k < n: frame A of the gradient is its real part, frame B its
imaginary part. A program walks along a stretch of pairs (see ``stretches``), windows and
overlap-adds in registers, and adds each hop to the gradient when no later frame reaches it. The
reflected borders go to a buffer, and the same program adds them where they belong.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...plan import Resolution
from .. import common
from ..common import COLUMNS, PLANES
from ..fft import SPLITS, fft, twiddles
from ..launching import Launch, Waves
from ..unknown import BITS
from .finish import NONFINITE, finish, finish_with_care, fold_border, is_dirty
from .level import level_gradient
from .pairs import spectrum
from .signs import load_words
from .stretches import backward_stretches, forward_stretches, jit, points, prepare, signal_of, zeros


@triton.jit
def _overlap_add(held, a, b, window):
    """The frames a and b, a hop apart, windowed and added to what earlier frames left."""
    R: tl.constexpr = len(a)
    SHIFT: tl.constexpr = R - len(held)
    CHUNK: tl.constexpr = a[0].shape[0]
    w = ()
    for j in tl.static_range(R):
        w += (tl.load(window + j * CHUNK + tl.arange(0, CHUNK)),)
    out = ()
    for j in tl.static_range(R + SHIFT):
        if j < R - SHIFT:
            y = held[j] + a[j] * w[j]
        elif j < R:
            y = a[j] * w[j]
        if j >= R:
            y = b[j - SHIFT] * w[j - SHIFT]
        elif j >= SHIFT:
            y += b[j - SHIFT] * w[j - SHIFT]
        out += (y,)
    return out


@triton.jit
def _with_levels(
    out, p_e, window, r, start, length, frames, i,
    N: tl.constexpr, HOP: tl.constexpr, SANITIZE: tl.constexpr,
):  # fmt: skip
    """Two hops of the gradient with the rest of the level's."""
    CHUNK: tl.constexpr = out[0].shape[0]
    SHIFT: tl.constexpr = HOP // CHUNK
    lane = tl.arange(0, CHUNK)
    done = ()
    for j in tl.static_range(2 * SHIFT):
        at = j % SHIFT * CHUNK + lane
        hop = 2 * i + j // SHIFT
        p = start + j * CHUNK + lane
        level = level_gradient(p_e, window, length, frames, p, hop, at, N, HOP, SANITIZE)
        done += (out[j] + r * level,)
    return done


@jit
def stft_gradient_kernel(
    signs,  # [B C, pairs, R3 / 8, n / R3]
    edges,  # [B C, frames, 2], read if LEVEL
    partials,  # [B C, read stretches, SIGNALS, COLUMNS], of which NONFINITE is read if SANITIZE
    unknown,  # [B C, ceil(L / 32)], read of the stretches that have counted some
    coefficients,  # [3, B]: a_re, a_im, r
    wave_signs,  # [B C, words], read for BASE "signs" and "level"
    wave_coefficients,  # [3, B]: a, unused, r; read with the signs
    estimates, estimate_batch, estimate_channel,  # [B, C, L], read if LEVEL, and for BASE "level"
    window,  # [n]
    p_twiddles,  # [2, n]
    borders,  # [B C, n]
    gradient,  # [B, C, L], contiguous, written; read for BASE "added"
    batch,
    channels,
    length,
    span,  # steps to a stretch
    read_span,  # pairs to a stretch of the forward
    HOP: tl.constexpr,
    RADICES: tl.constexpr,  # the forward's, in reverse: bins come in as the chunks that they left
    SIGNALS: tl.constexpr,
    BASE: tl.constexpr,  # "added", "zero", or the waveform's: "signs", or "level" for r e as well
    LEVEL: tl.constexpr,
    SANITIZE: tl.constexpr,
    LANES: tl.constexpr,  # of a block of the waveform's signs
    PREFETCH: tl.constexpr,  # a pair's signs are loaded before the FFT of the pair before it
):  # fmt: skip
    """``span`` times two hops of one signal's gradient, and the rest of it in the last stretch."""
    R1: tl.constexpr = RADICES[0]
    R2: tl.constexpr = RADICES[1]
    R3: tl.constexpr = RADICES[2]
    N: tl.constexpr = points(RADICES)
    CHUNK: tl.constexpr = R2 * R3
    SHIFT: tl.constexpr = HOP // CHUNK
    program = tl.program_id(0)
    steps, stretches = backward_stretches(span, length, N, HOP)
    stretch = program % stretches
    signal = (program // stretches).to(tl.int64)  # offsets made of it exceed 32 bits
    row = signal // channels
    frames = length // HOP + 1
    first, stop = stretch * span, stretch * span + span
    if stretch == stretches - 1:
        stop = steps

    p_e = signal_of(estimates, estimate_batch, estimate_channel, signal, channels)
    p_gradient = gradient + signal * length
    p_borders = borders + signal * N
    p_signs = signs + signal * ((frames + 1) // 2) * (N // 8)
    p_edges = edges
    if LEVEL:
        p_edges += signal * frames * 2
    a_re = 0.25 * tl.load(coefficients + row).to(tl.float32)
    a_im = 0.25 * tl.load(coefficients + batch + row).to(tl.float32)
    half_r = 0.5 * tl.load(coefficients + 2 * batch + row).to(tl.float32)
    wave = (wave_signs, p_e, 0.0, 0.0)
    if BASE == "signs" or BASE == "level":
        wave_words = (length + PLANES * LANES - 1) // (PLANES * LANES) * LANES
        wave_a = tl.load(wave_coefficients + row).to(tl.float32)
        wave_r = tl.load(wave_coefficients + 2 * batch + row).to(tl.float32)
        wave = (wave_signs + signal * wave_words, p_e, wave_a, wave_r)
    dirty = first < 0
    repairs = (unknown, partials, length)
    if SANITIZE:
        owned = read_span * (2 * HOP)  # samples of a forward stretch
        read_stretches = forward_stretches(read_span, length, HOP)
        p_counts = partials + signal * read_stretches * (SIGNALS * COLUMNS) + NONFINITE
        dirty = is_dirty(p_counts, owned, first, stop, read_stretches, N, HOP, SIGNALS)
        repairs = (unknown + signal * ((length + BITS - 1) // BITS), p_counts, owned)

    held = zeros(R1 - SHIFT, CHUNK)
    begin = tl.maximum(first - N // (2 * HOP), 0)
    if PREFETCH:
        words = load_words(p_signs + begin * (N // 8), 2 * begin < frames, R3 // 2, R1 * R2)
    for i in range(begin, stop):
        p_words = p_signs + i * (N // 8)
        if PREFETCH:
            loaded = words
            words = load_words(p_words + N // 8, 2 * i + 2 < frames, R3 // 2, R1 * R2)
        else:
            loaded = load_words(p_words, 2 * i < frames, R3 // 2, R1 * R2)
        re, im = spectrum(loaded, p_edges, (a_re, a_im, half_r), i, frames, R3, R1 * R2, LEVEL)
        b, a = fft(im, re, p_twiddles, R2, R1)  # exchanged: the inverse
        out = _overlap_add(held, a, b, window)
        held = out[2 * SHIFT :]
        if i >= first:
            start = i * (2 * HOP) - N // 2
            done = out[: 2 * SHIFT]
            if LEVEL:
                done = _with_levels(
                    done, p_e, window, half_r * N, start, length, frames, i, N, HOP, SANITIZE
                )
            if (start >= 0) & (start + 2 * HOP <= length) & ~dirty:
                finish(done, p_gradient, wave, start, HOP, BASE, LANES)
            else:
                finish_with_care(
                    done, p_gradient, p_borders, wave, repairs, start, length, dirty,
                    N, HOP, SIGNALS, BASE, SANITIZE, LANES,
                )  # fmt: skip
    if stretch == 0:
        fold_border(p_gradient, p_borders, repairs, length, dirty, 0, N, CHUNK, SIGNALS, SANITIZE)
    if stretch == stretches - 1:
        fold_border(p_gradient, p_borders, repairs, length, dirty, 1, N, CHUNK, SIGNALS, SANITIZE)


def gradient(
    given: Waves,
    res: Resolution,
    spans: tuple[int, int, int],
    kinds: int,
    level: bool,
    sanitize: bool,
    base: str,
) -> Launch:
    """Adds to a gradient, or writes it, by the kind of its ``base``.

    ``spans`` are the steps of a stretch, a signal's stretches, and the pairs of a forward stretch.
    """
    batch, channels, length = given.shape
    span, stretches, read_span = spans
    sizes = common.config()
    return prepare(
        stft_gradient_kernel,
        given.signals * stretches,
        res,
        **given.strides("estimate"),
        window=res.window(torch.float32, given.device),
        p_twiddles=twiddles(res.n_fft, given.device),
        batch=batch,
        channels=channels,
        length=length,
        span=span,
        read_span=read_span,
        HOP=res.hop_length,
        RADICES=SPLITS[res.n_fft].radices,
        SIGNALS=kinds,
        BASE=base,
        LEVEL=level,
        SANITIZE=sanitize,
        LANES=sizes.lanes,
        PREFETCH=sizes.prefetch,
    )
