r"""One STFT resolution without a spectrum in memory: waveforms in, sums and signs out, and back.

Forward. Frames f and f + 1 of one signal, windowed, are the real and imaginary part of z; with
Z = FFT(z) and G_k = conj(Z_{n-k}) their spectra are A_k = (Z_k + G_k) / 2, B_k = (Z_k - G_k) / 2i.
A program walks along a stretch of such pairs of D = STFT(e - t) or of T = STFT(t), adds up
\|Re\| and \|Im\|, and packs the signs of D.

Backward. From the signs, S_k = a_re sign(Re D_k) + i a_im sign(Im D_k) for both frames of a pair,
half of it as G in 0 < k < n/2 (the real FFT counts those bins twice). z is the inverse FFT of
G_A + i G_B, Hermitian parts continued to n/2 < k < n: frame A of the gradient is its real part,
frame B its imaginary part. A program walks along a stretch of pairs, windows and overlap-adds in
registers, and adds each hop to the gradient when no later frame reaches it. It starts early enough
to have the frames that overlap its first hop. The reflected borders go to a buffer, and the same
program adds them where they belong.

A pair of frames consumes, or completes, two hops: that is why a hop must be a whole number of the
chunks in which a signal is held (see ``fft``), and why a chunk is read or written once per stretch.

*Words of signs.* int32 [signals, pairs, R3 / 8, n / R3]: bin c + k n / R3, where k < R3 / 2, is in
word k // 4 of column c, at bits 31 - 8 (k % 4) and down: two for each of Re A, Im A, Re B, Im B,
its sign and whether it is not zero. Im at 0 is always zero; the sign of Re at n/2 has its place.

*Samples that are not finite* leave no finite sum behind. So clean data is read as it is, and only
the stretch whose sums are not finite is done again with NaN as 0 and +-Inf as +-1; its samples that
are not finite are counted, and the count tells the backward where to look for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from .. import plan
from ..plan import Objective, Resolution
from . import common
from .common import (
    COLUMNS,
    ceil_div,
    finite,
    launch,
    new_partials,
    sanitized,
    sign_place,
    signed,
    store_partials,
    strides,
)
from .fft import SPLITS, fft, twiddles, unpack
from .unknown import BITS, is_known, store_unknown

SAVED = 3  # tensors that stft_statistics saves: signs, edge bins, partial sums


def jit(function: Callable[..., None]) -> Any:
    """A kernel that is compiled once for all lengths, strides and addresses; constants in capitals.

    Of no address is it to know that it is aligned: loading one operand in vectors would change the
    layout of all that it meets.
    """
    names = [name for name in inspect.signature(function).parameters if name.islower()]
    return triton.jit(function, do_not_specialize=names)


Q_EST: tl.constexpr = tl.constexpr(plan.Q_EST)
Q_REF: tl.constexpr = tl.constexpr(plan.Q_REF)
NONFINITE: tl.constexpr = tl.constexpr(plan.NONFINITE)

WARPS = 16384  # wanted of a launch: six rounds of 20 on each of 132 multiprocessors
LONGEST = 16  # pairs in a forward stretch: their frames have one bit each in 32
# Per thread, for 20 warps on a multiprocessor, and for 16; no more than the compilers need.
REGISTERS, REGISTERS_OF_LONG_HOPS = 96, 128


@triton.constexpr_function
def _product(radices):
    return radices[0] * radices[1] * radices[2]


@triton.jit
def _or(a, b):
    return a | b


@triton.jit
def _reflect(p, length):
    """The sample that position p of the reflected signal shows; clamped where nothing uses it."""
    last = length - 1
    return tl.maximum(last - tl.abs(last - tl.abs(p)), 0)


@triton.jit
def _read(
    estimates,
    actuals,
    start,
    length,
    dirty,
    COUNT: tl.constexpr,
    CHUNK: tl.constexpr,
    ERROR: tl.constexpr,
    SANITIZE: tl.constexpr,
    INSIDE: tl.constexpr,
):
    """COUNT chunks of e - t or of t, from position ``start`` of the reflected signal."""
    p = tl.arange(0, COUNT)[None, :] * CHUNK + tl.arange(0, CHUNK)[:, None]
    if INSIDE:
        estimates += start
        actuals += start
    else:
        p = _reflect(start + p, length)
    x = tl.load(actuals + p).to(tl.float32)
    if SANITIZE and not INSIDE:
        x = tl.where(dirty, sanitized(x), x)
    if ERROR:
        e = tl.load(estimates + p).to(tl.float32)
        if SANITIZE and not INSIDE:
            e = tl.where(dirty, sanitized(e), e)
        x = e - x
    return unpack(x)


@triton.jit
def _bits(x):
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def _not_silent(x):
    """Whether one of the tensors is not zero, element by element."""
    any = _bits(x[0])
    for j in tl.static_range(1, len(x)):
        any |= _bits(x[j])
    return any << 1 != 0


@triton.jit
def _mirrored(re, im):
    """Element (C - c) mod C of both, by one exchange."""
    C: tl.constexpr = re.shape[0]
    both = (_bits(re).to(tl.uint64) << 32) | _bits(im).to(tl.uint64)
    both = tl.gather(both, (C - tl.arange(0, C)) % C, 0)
    re = (both >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
    return re, both.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def _separate(re, im):
    """2A and 2B in bins below n/2, as tuples of Re and Im, and 2A and 2B at n/2 in column 0.

    Bin n - k is in the mirrored column of the mirrored tensor; for column 0, its own mirror image,
    one tensor further.
    """
    HALF: tl.constexpr = len(re) // 2
    c = tl.arange(0, re[0].shape[0])
    other_re, other_im = (re[0],), (im[0],)
    for k in tl.static_range(HALF):
        gr, gi = _mirrored(re[2 * HALF - 1 - k], im[2 * HALF - 1 - k])
        other_re += (gr,)
        other_im += (gi,)
    a_re, a_im, b_re, b_im = (), (), (), ()
    for k in tl.static_range(HALF):
        gr = tl.where(c == 0, other_re[k], other_re[k + 1])
        gi = tl.where(c == 0, other_im[k], other_im[k + 1])
        a_re += (re[k] + gr,)
        a_im += (im[k] - gi,)
        b_re += (im[k] + gi,)
        b_im += (gr - re[k],)
    # By a product: of a where, LLVM 22 fails to compile the absolute value for sm_80 and sm_100.
    twice_at_0 = tl.where(c == 0, 2.0, 0.0)
    a_end = twice_at_0 * other_re[HALF]
    b_end = twice_at_0 * other_im[HALF]
    return a_re, a_im, b_re, b_im, a_end, b_end


@triton.jit
def _sum_abs(x):
    total = tl.abs(x[0])
    for k in tl.static_range(1, len(x)):
        total += tl.abs(x[k])
    return total


@triton.jit
def _append(word, x):
    """The word with two more bits: the sign of x, and whether x is not zero."""
    some = _bits(0 - tl.abs(x)) >> 31  # 0 - 0 is +0
    return (((word << 1) | (_bits(x) >> 31)) << 1) | some


@triton.jit
def _store_signs(p_signs, a_re, a_im, b_re, b_im):
    C: tl.constexpr = a_re[0].shape[0]
    for h in tl.static_range(len(a_re) // 4):
        word = tl.zeros([C], tl.uint32)
        for k in tl.static_range(4 * h, 4 * h + 4):
            word = _append(word, a_re[k])
            word = _append(word, a_im[k])
            word = _append(word, b_re[k])
            word = _append(word, b_im[k])
        tl.store(p_signs + h * C + tl.arange(0, C), word.to(tl.int32, bitcast=True))


@triton.jit
def _silence(p_signs, frames, first, stop, sounding, WORDS: tl.constexpr):
    """Zero the signs of frames that are silent, which rounding of the other of the pair has set."""
    at = tl.arange(0, WORDS)
    for i in range(first, stop):
        keep = (sounding >> (2 * (i - first))) & 3
        if 2 * i + 1 == frames:
            keep = keep & 1  # there is no frame B
        if keep != 3:
            tl.debug_barrier()  # after the stores of the other threads
            words = p_signs + i * WORDS + at
            mask = tl.where(keep & 1 != 0, 0xF0F0F0F0 - (1 << 32), 0)
            mask |= tl.where(keep & 2 != 0, 0x0F0F0F0F, 0)
            tl.store(words, tl.load(words) & mask)


@triton.jit
def _count(estimates, actuals, first, stop, BLOCK: tl.constexpr):
    """Samples first <= p < stop of e and of t that are not finite."""
    count = tl.zeros([BLOCK], tl.float32)
    at = tl.arange(0, BLOCK)
    for p in range(first, stop, BLOCK):
        e = tl.load(estimates + p + at, mask=p + at < stop, other=0.0).to(tl.float32)
        t = tl.load(actuals + p + at, mask=p + at < stop, other=0.0).to(tl.float32)
        count += tl.where(finite(e), 0.0, 1.0) + tl.where(finite(t), 0.0, 1.0)
    return tl.sum(count, 0)


@triton.jit
def _stretch(
    estimates,
    actuals,
    window,
    p_twiddles,
    p_signs,
    p_unknown,
    partials,
    length,
    frames,
    first,
    stop,
    HOP: tl.constexpr,
    RADICES: tl.constexpr,
    ERROR: tl.constexpr,
    SAVE: tl.constexpr,
    SANITIZE: tl.constexpr,
):
    """What the pairs first <= i < stop of D or of T leave: their row of sums, and signs."""
    R1: tl.constexpr = RADICES[0]
    R2: tl.constexpr = RADICES[1]
    R3: tl.constexpr = RADICES[2]
    N: tl.constexpr = R1 * R2 * R3
    CHUNK: tl.constexpr = R2 * R3
    SHIFT: tl.constexpr = HOP // CHUNK
    chunk = tl.arange(0, R1)[None, :] * CHUNK + tl.arange(0, CHUNK)[:, None]

    held = ()
    for _ in tl.static_range(R1 - SHIFT):
        held += (tl.zeros([CHUNK], tl.float32),)
    sum_re = tl.zeros([R1 * R2], tl.float32)
    sum_im = tl.zeros([R1 * R2], tl.float32)
    sounding = tl.zeros([CHUNK], tl.int32)  # a bit for each frame
    dirty = first < 0
    # A pair reads its last two hops; the pairs before the first only those, for it to hold.
    i = first - N // (2 * HOP)
    while i < stop:
        start = i * (2 * HOP) + N // 2 - HOP
        if (start >= 0) & (start + 2 * HOP <= length) & ~dirty:
            new = _read(
                estimates, actuals, start, length, dirty, 2 * SHIFT, CHUNK, ERROR, SANITIZE, True
            )
        else:
            new = _read(
                estimates, actuals, start, length, dirty, 2 * SHIFT, CHUNK, ERROR, SANITIZE, False
            )
        x = held + new
        held = x[2 * SHIFT :]
        if i >= first:
            w = unpack(tl.load(window + chunk))
            a, b = (), ()
            for j in tl.static_range(R1):
                a += (x[j] * w[j],)
                b += (x[j + SHIFT] * w[j],)
            if SAVE:
                bit = 2 * (i - first)
                sounding |= tl.where(_not_silent(a), 1 << bit, 0)
                sounding |= tl.where(_not_silent(b), 2 << bit, 0)

            re, im = fft(a, b, p_twiddles, R2, R3)
            a_re, a_im, b_re, b_im, a_end, b_end = _separate(re, im)

            there = tl.where(2 * i + 1 < frames, 1.0, 0.0)  # frame B
            sum_re += _sum_abs(a_re) + tl.abs(a_end) + there * (_sum_abs(b_re) + tl.abs(b_end))
            sum_im += _sum_abs(a_im) + there * _sum_abs(b_im)
            if SAVE:
                # Im is zero in bin 0; the bin at n/2 uses its place.
                a_im = (a_im[0] + a_end,) + a_im[1:]
                b_im = (b_im[0] + b_end,) + b_im[1:]
                _store_signs(p_signs + i * (N // 8), a_re, a_im, b_re, b_im)
        i += 1
        if i == stop:
            # Computed again here: kept, it would cost a register in the loop.
            p_partials = partials + tl.program_id(0).to(tl.int64) * COLUMNS
            re, im = 0.5 * tl.sum(sum_re, 0), 0.5 * tl.sum(sum_im, 0)  # of 2A and 2B
            if ERROR:
                store_partials(p_partials, re, im, 0.0, 0.0, 0.0, 0.0, 0.0)
            else:
                store_partials(p_partials, 0.0, 0.0, re, im, 0.0, 0.0, 0.0)
            if SAVE:
                _silence(p_signs, frames, first, stop, tl.reduce(sounding, 0, _or), WORDS=N // 8)
            if SANITIZE:
                if dirty:
                    if ERROR:
                        end = tl.minimum(stop * (2 * HOP), length)
                        begin = first * (2 * HOP)
                        count = _count(estimates, actuals, begin, end, BLOCK=CHUNK)
                        tl.store(p_partials + NONFINITE, count)
                        if SAVE:
                            for p in range(begin, end, CHUNK * BITS):
                                store_unknown(estimates, p_unknown, p, end, CHUNK)
                elif ~finite(re + im):
                    dirty = first >= 0
                    i = first - N // (2 * HOP)
                    sum_re = tl.zeros([R1 * R2], tl.float32)
                    sum_im = tl.zeros([R1 * R2], tl.float32)
                    sounding = tl.zeros([CHUNK], tl.int32)


@jit
def stft_statistics_kernel(
    estimates,
    actuals,
    window,
    p_twiddles,
    signs,
    unknown,
    partials,
    channels,
    length,
    frames,
    pairs,
    span,
    stretches,
    unknown_stride,
    estimate_batch,
    estimate_channel,
    actual_batch,
    actual_channel,
    HOP: tl.constexpr,
    RADICES: tl.constexpr,
    SIGNALS: tl.constexpr,
    SAVE: tl.constexpr,
    SANITIZE: tl.constexpr,
):
    """Sums and signs of one stretch of ``span`` pairs of frames.

    Neighbouring programs do D and T of the same stretch, so that its samples are read from memory
    once.
    """
    program = tl.program_id(0)
    of_target = program % SIGNALS
    stretch = program // SIGNALS % stretches
    signal = (program // SIGNALS // stretches).to(tl.int64)  # offsets made of it exceed 32 bits
    row, channel = signal // channels, signal % channels
    estimates += row * estimate_batch + channel * estimate_channel
    actuals += row * actual_batch + channel * actual_channel
    if SAVE:
        signs += signal * pairs * (_product(RADICES) // 8)
        if SANITIZE:
            unknown += signal * unknown_stride
    first = stretch * span
    stop = tl.minimum(first + span, pairs)
    if of_target == 0:
        _stretch(
            estimates,
            actuals,
            window,
            p_twiddles,
            signs,
            unknown,
            partials,
            length,
            frames,
            first,
            stop,
            HOP,
            RADICES,
            ERROR=True,
            SAVE=SAVE,
            SANITIZE=SANITIZE,
        )
    else:
        _stretch(
            estimates,
            actuals,
            window,
            p_twiddles,
            signs,
            unknown,
            partials,
            length,
            frames,
            first,
            stop,
            HOP,
            RADICES,
            ERROR=False,
            SAVE=False,
            SANITIZE=SANITIZE,
        )


@triton.jit
def _energy(
    wave,
    window,
    p_edges,
    length,
    first,
    stop,
    N: tl.constexpr,
    HOP: tl.constexpr,
    SAVE: tl.constexpr,
    SANITIZE: tl.constexpr,
):
    """sum |X|^2 of the frames first <= f < stop of a signal; bins at 0 and n/2 to ``p_edges``."""
    lane = tl.arange(0, N)
    w = tl.load(window + lane)
    alternating = 1.0 - 2.0 * (lane % 2)
    squares = tl.zeros([N], tl.float32)
    at_edges = 0.0
    for f in range(first, stop):
        x = tl.load(wave + _reflect(f * HOP - N // 2 + lane, length)).to(tl.float32)
        if SANITIZE:
            x = sanitized(x)
        x *= w
        zero, end = tl.sum(x, 0), tl.sum(alternating * x, 0)
        squares += x * x
        at_edges += zero * zero + end * end
        if SAVE:
            tl.store(p_edges + 2 * f, zero)
            tl.store(p_edges + 2 * f + 1, end)
    return 0.5 * (N * tl.sum(squares, 0) + at_edges)


@jit
def stft_level_kernel(
    estimates,
    actuals,
    window,
    edges,
    partials,
    channels,
    length,
    frames,
    span,
    stretches,
    estimate_batch,
    estimate_channel,
    actual_batch,
    actual_channel,
    N: tl.constexpr,
    HOP: tl.constexpr,
    SAVE: tl.constexpr,
    SANITIZE: tl.constexpr,
):
    r"""sum |X|^2 of E and of T, in the rows of ``stft_statistics_kernel``, and E at 0 and n/2.

    Without an FFT: for a windowed frame x,
    sum_{k <= n/2} |X_k|^2 = (n sum x^2 + X_0^2 + X_{n/2}^2) / 2.
    """
    program = tl.program_id(0)
    stretch = program // 2 % stretches
    signal = (program // 2 // stretches).to(tl.int64)
    row, channel = signal // channels, signal % channels
    first = 2 * span * stretch
    stop = tl.minimum(first + 2 * span, frames)
    p_partials = partials + program.to(tl.int64) * COLUMNS
    # One after the other: a choice between e and t would have to be of one dtype.
    if program % 2 == 0:
        p_e = estimates + row * estimate_batch + channel * estimate_channel
        p_edges = edges
        if SAVE:
            p_edges += signal * frames * 2
        energy = _energy(p_e, window, p_edges, length, first, stop, N, HOP, SAVE, SANITIZE)
        tl.store(p_partials + Q_EST, energy)
    else:
        p_t = actuals + row * actual_batch + channel * actual_channel
        energy = _energy(p_t, window, edges, length, first, stop, N, HOP, False, SANITIZE)
        tl.store(p_partials + Q_REF, energy)


@triton.jit
def _sign(word, field):
    """Twice the sign in a field of two bits, counted from the top of the word: 2, -2, 0 or -0."""
    return ((word << (2 * field)) & 0xC0000000).to(tl.float32, bitcast=True)


@triton.jit
def _signs(word, k):
    """Twice the signs of Re A, Im A, Re B and Im B in the byte k of the word."""
    return (
        _sign(word, 4 * k),
        _sign(word, 4 * k + 1),
        _sign(word, 4 * k + 2),
        _sign(word, 4 * k + 3),
    )


@triton.jit
def _spectrum(
    p_signs,
    p_edges,
    a_re,
    a_im,
    half_r,
    i,
    frames,
    R: tl.constexpr,
    C: tl.constexpr,
    LEVEL: tl.constexpr,
):
    """G_A + i G_B of a pair, R tensors of C bins; Hermitian G, halved but at 0 and n/2.

    ``a_re`` and ``a_im`` are a quarter of the row's: for the half, and for signs of 2.
    """
    HALF: tl.constexpr = R // 2
    c = tl.arange(0, C)
    there = 2 * i < frames
    low, high = (), ()
    for h in tl.static_range(HALF // 4):
        words = p_signs + h * C
        low += (_bits(tl.load(words + c, mask=there, other=0)),)
        high += (_bits(tl.load(words + (C - c) % C, mask=there, other=0)),)
    # n - k is in the mirrored column of the mirrored tensor, for column 0 one tensor further.
    shifted = ()
    for h in tl.static_range(HALF // 4):
        further = high[h] << 8
        if 4 * h + 4 < HALF:
            further |= high[h + 1] >> 24
        shifted += (tl.where(c == 0, further, high[h]),)

    re, im, mirrored_re, mirrored_im = (), (), (), ()
    for k in tl.static_range(HALF):
        ar, ai, br, bi = _signs(low[k // 4], k % 4)
        zr = ar * a_re - bi * a_im
        zi = br * a_re + ai * a_im
        if k == 0:
            zero_re, zero_im = 2 * a_re * ar, 2 * a_re * br
            end_re, end_im = 2 * a_re * ai, 2 * a_re * bi
            if LEVEL:
                zero_re += half_r * tl.load(p_edges + 4 * i, mask=there, other=0.0)
                end_re += half_r * tl.load(p_edges + 4 * i + 1, mask=there, other=0.0)
                zero_im += half_r * tl.load(p_edges + 4 * i + 2, mask=2 * i + 1 < frames, other=0.0)
                end_im += half_r * tl.load(p_edges + 4 * i + 3, mask=2 * i + 1 < frames, other=0.0)
            zr = tl.where(c == 0, zero_re, zr)
            zi = tl.where(c == 0, zero_im, zi)
        re += (zr,)
        im += (zi,)
        # The conjugates.
        ar, ai, br, bi = _signs(shifted[k // 4], k % 4)
        zr = ar * a_re + bi * a_im
        zi = br * a_re - ai * a_im
        if k == HALF - 1:
            zr = tl.where(c == 0, end_re, zr)
            zi = tl.where(c == 0, end_im, zi)
        mirrored_re += (zr,)
        mirrored_im += (zi,)
    return re + mirrored_re[::-1], im + mirrored_im[::-1]


@triton.jit
def _overlap_add(held, a, b, w):
    """The frames a and b, a hop apart, windowed and added to what earlier frames left."""
    R: tl.constexpr = len(a)
    SHIFT: tl.constexpr = R - len(held)
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
def _level(
    estimates,
    window,
    length,
    frames,
    p,
    hop,
    at,
    N: tl.constexpr,
    HOP: tl.constexpr,
    SANITIZE: tl.constexpr,
):
    """e times the overlap-added squared window, at positions p = HOP hop + at - n/2."""
    squares = tl.zeros(p.shape, tl.float32)
    for u in tl.static_range(N // HOP):
        w = tl.load(window + u * HOP + at)
        squares += tl.where((hop >= u) & (hop - u < frames), w * w, 0.0)
    e = tl.load(estimates + _reflect(p, length)).to(tl.float32)
    if SANITIZE:
        e = sanitized(e)
    return e * squares


@triton.jit
def _base(gradient, estimates, wave_signs, p, mask, a, r, BASE: tl.constexpr, LANES: tl.constexpr):
    """What this resolution's gradient is added to: what is there, nothing, or the waveform's."""
    if BASE == "added":
        return tl.load(gradient + p, mask=mask)
    elif BASE == "zero":
        return tl.zeros(p.shape, tl.float32)
    else:
        word, shift = sign_place(p, LANES)
        value = signed(tl.load(wave_signs + word, mask=mask), shift, a)
        if BASE == "level":
            value += r * tl.load(estimates + p, mask=mask).to(tl.float32)
        return value


@triton.jit
def _is_known(p_unknown, p_counts, p, mask, owned, SIGNALS: tl.constexpr):
    """``is_known`` where the forward stretch that owns the sample has counted some; else true."""
    noted = tl.load(p_counts + p // owned * (SIGNALS * COLUMNS), mask=mask, other=0.0) > 0
    return is_known(p_unknown, p, mask & noted)


@jit
def stft_gradient_kernel(
    signs,
    edges,
    partials,
    coefficients,
    waveform_coefficients,
    wave_signs,
    estimates,
    unknown,
    window,
    p_twiddles,
    borders,
    gradient,
    batch,
    channels,
    length,
    frames,
    pairs,
    steps,
    span,
    stretches,
    read_span,
    read_stretches,
    wave_words,
    unknown_stride,
    estimate_batch,
    estimate_channel,
    HOP: tl.constexpr,
    RADICES: tl.constexpr,
    SIGNALS: tl.constexpr,
    BASE: tl.constexpr,  # "added", "zero", or the waveform's: "signs", or "level" for r e as well
    LEVEL: tl.constexpr,
    SANITIZE: tl.constexpr,
    LANES: tl.constexpr,
):
    """``span`` times two hops of one signal's gradient, and the rest of it in the last stretch.

    RADICES are the forward's, used here in reverse: bins come in as the chunks that they left.
    """
    R1: tl.constexpr = RADICES[0]
    R2: tl.constexpr = RADICES[1]
    R3: tl.constexpr = RADICES[2]
    N: tl.constexpr = R1 * R2 * R3
    CHUNK: tl.constexpr = R2 * R3
    SHIFT: tl.constexpr = HOP // CHUNK
    program = tl.program_id(0)
    stretch = program % stretches
    signal = (program // stretches).to(tl.int64)  # offsets made of it exceed 32 bits
    row, channel = signal // channels, signal % channels
    estimates += row * estimate_batch + channel * estimate_channel
    gradient += signal * length
    borders += signal * N
    signs += signal * pairs * (N // 8)
    if LEVEL:
        edges += signal * frames * 2
    a_re = 0.25 * tl.load(coefficients + row).to(tl.float32)
    a_im = 0.25 * tl.load(coefficients + batch + row).to(tl.float32)
    half_r = 0.5 * tl.load(coefficients + 2 * batch + row).to(tl.float32)
    wave_a, wave_r = 0.0, 0.0
    if BASE == "signs" or BASE == "level":
        wave_signs += signal * wave_words
        wave_a = tl.load(waveform_coefficients + row).to(tl.float32)
        wave_r = tl.load(waveform_coefficients + 2 * batch + row).to(tl.float32)
    first = stretch * span
    stop = first + span
    if stretch == stretches - 1:
        stop = steps

    dirty = first < 0
    owned = read_span * (2 * HOP)  # samples of a forward stretch
    if SANITIZE:
        unknown += signal * unknown_stride
        p_counts = partials + signal * read_stretches * (SIGNALS * COLUMNS) + NONFINITE
        # The forward stretches that own samples of this one.
        begin = tl.maximum(first * (2 * HOP) - N // 2, 0) // owned
        end = tl.maximum(stop * (2 * HOP) - N // 2, 0) // owned + 1
        for s in range(begin, tl.minimum(end, read_stretches)):
            dirty = dirty | (tl.load(p_counts + s * (SIGNALS * COLUMNS)) > 0)

    lane = tl.arange(0, CHUNK)
    held = ()
    for _ in tl.static_range(R1 - SHIFT):
        held += (tl.zeros([CHUNK], tl.float32),)
    for i in range(tl.maximum(first - N // (2 * HOP), 0), stop):
        re, im = _spectrum(
            signs + i * (N // 8),
            edges,
            a_re,
            a_im,
            half_r,
            i,
            frames,
            R3,
            R1 * R2,
            LEVEL,
        )
        b, a = fft(im, re, p_twiddles, R2, R1)  # exchanged: the inverse
        w = ()
        for j in tl.static_range(R1):
            w += (tl.load(window + j * CHUNK + lane),)
        out = _overlap_add(held, a, b, w)
        held = out[2 * SHIFT :]
        if i >= first:
            start = i * (2 * HOP) - N // 2
            inside = (start >= 0) & (start + 2 * HOP <= length) & ~dirty
            done = ()
            for j in tl.static_range(2 * SHIFT):
                y = out[j]
                if LEVEL:
                    p = start + j * CHUNK + lane
                    at = j % SHIFT * CHUNK + lane
                    hop = 2 * i + j // SHIFT
                    level = _level(estimates, window, length, frames, p, hop, at, N, HOP, SANITIZE)
                    y += (half_r * N) * level
                done += (y,)
            if inside:
                # All loads before the stores, to wait for memory once.
                total = ()
                for j in tl.static_range(2 * SHIFT):
                    p = start + j * CHUNK + lane
                    base = _base(
                        gradient, estimates, wave_signs, p, None, wave_a, wave_r, BASE, LANES
                    )
                    total += (done[j] + base,)
                for j in tl.static_range(2 * SHIFT):
                    tl.store(gradient + start + j * CHUNK + lane, total[j])
            else:
                for j in tl.static_range(2 * SHIFT):
                    p = start + j * CHUNK + lane
                    mask = (p >= 0) & (p < length)
                    known = done[j]
                    if SANITIZE:
                        known = tl.where(
                            _is_known(unknown, p_counts, p, mask & dirty, owned, SIGNALS),
                            known,
                            0.0,
                        )
                    known += _base(
                        gradient, estimates, wave_signs, p, mask, wave_a, wave_r, BASE, LANES
                    )
                    tl.store(gradient + p, known, mask=mask)
                    border = tl.where(p < 0, -1 - p, N // 2 + p - length)
                    outside = (p < 0) | ((p >= length) & (p < length + N // 2))
                    tl.store(borders + border, done[j], mask=outside)

    # Fold the borders: position -1 - b shows sample 1 + b, position L + b sample L - 2 - b. The
    # barriers are for what other threads of this program have stored.
    for side in tl.static_range(2):
        if stretch == side * (stretches - 1):
            tl.debug_barrier()
            for b in range(0, N // 2, CHUNK):
                y = tl.load(borders + side * (N // 2) + b + lane)
                p = 1 + b + lane
                if side == 1:
                    p = length - 1 - p
                if SANITIZE:
                    y = tl.where(_is_known(unknown, p_counts, p, dirty, owned, SIGNALS), y, 0.0)
                tl.store(gradient + p, tl.load(gradient + p) + y)


def supports(res: Resolution, dtype: torch.dtype, length: int) -> bool:
    """Whether this route computes the resolution: hops of whole chunks, two or more to a frame.

    And samples that 32 bits can count, with the borders: of one signal, for signals are many.
    """
    if res.n_fft not in SPLITS or dtype == torch.float64 or length >= 2**31 - 2 * res.n_fft:
        return False
    chunk = res.n_fft // SPLITS[res.n_fft].radices[0]
    hop = res.hop_length
    return res.n_fft % hop == 0 and hop % chunk == 0 and 2 * hop <= res.n_fft


class Base(NamedTuple):
    """The waveform's gradient, a sign(e - t) + r e, to be written with a resolution's added.

    Nothing where there is no waveform term.
    """

    signs: Tensor | None = None  # as the waveform's statistics save them
    coefficients: Tensor | None = None  # [3, B]: a, unused, r
    level: bool = False

    @property
    def kind(self) -> str:
        if self.signs is None:
            return "zero"
        return "level" if self.level else "signs"


def _launch(kernel: Any, programs: int, res: Resolution, **arguments: Any) -> None:
    if isinstance(kernel, triton.JITFunction):
        target = driver.active.get_current_target()
        if target.backend == "cuda" and target.arch < 100:
            long_hops = 2 * res.hop_length == res.n_fft
            arguments["maxnreg"] = REGISTERS_OF_LONG_HOPS if long_hops else REGISTERS
    launch(kernel, programs, SPLITS[res.n_fft].threads, **arguments)


def forward_spans(res: Resolution, signals: int, frames: int) -> tuple[int, int, int]:
    """Pairs of frames of a signal, pairs to a stretch, stretches of a signal."""
    pairs = ceil_div(frames, 2)
    programs = ceil_div(32 * WARPS, SPLITS[res.n_fft].threads)
    span = min(LONGEST, max(2, pairs * signals // programs))
    return pairs, span, ceil_div(pairs, span)


def backward_spans(res: Resolution, signals: int, length: int) -> tuple[int, int, int]:
    """Steps of two hops of a signal and its borders, steps to a stretch, stretches of a signal."""
    steps = ceil_div(length + res.n_fft, 2 * res.hop_length)
    programs = ceil_div(8 * WARPS, SPLITS[res.n_fft].threads)
    # The first stretch and the last must have the samples where their border belongs.
    span = max(res.n_fft // (2 * res.hop_length) + 2, min(32, steps * signals // programs))
    return steps, span, max(1, steps // span)


def stft_statistics(
    estimates: Tensor,
    actuals: Tensor,
    res: Resolution,
    term: Objective,
    save: bool,
    sanitize: bool,
    unknown: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Partial sums [B, chunks, COLUMNS] of one resolution; saved: signs of D, edge bins of E.

    Of stretches with samples that are not finite, ``unknown`` is written (with both save and
    sanitize).
    """
    batch, channels, length = estimates.shape
    device, signals, frames = estimates.device, batch * channels, res.frames(length)
    kinds = 1 if term.pure_l1 else 2
    radices = SPLITS[res.n_fft].radices
    pairs, span, stretches = forward_spans(res, kinds * signals, frames)
    partials = new_partials(estimates, signals, stretches * kinds, torch.float32)
    signs = edges = None
    if save:
        shape = (signals, pairs, radices[2] // 8, res.n_fft // radices[2])
        signs = torch.empty(shape, dtype=torch.int32, device=device)
        if term.has_level:
            edges = torch.empty(signals, frames, 2, dtype=torch.float32, device=device)

    window = res.window(torch.float32, device)
    starts = {**strides("estimate", estimates), **strides("actual", actuals)}
    _launch(
        stft_statistics_kernel,
        signals * stretches * kinds,
        res,
        estimates=estimates,
        actuals=actuals,
        window=window,
        p_twiddles=twiddles(res.n_fft, device),
        signs=signs,
        unknown=unknown,
        partials=partials,
        channels=channels,
        length=length,
        frames=frames,
        pairs=pairs,
        span=span,
        stretches=stretches,
        unknown_stride=0 if unknown is None else unknown.stride(0),
        **starts,
        HOP=res.hop_length,
        RADICES=radices,
        SIGNALS=kinds,
        SAVE=save,
        SANITIZE=sanitize,
    )
    if term.has_level:
        _launch(
            stft_level_kernel,
            signals * stretches * kinds,
            res,
            estimates=estimates,
            actuals=actuals,
            window=window,
            edges=edges,
            partials=partials,
            channels=channels,
            length=length,
            frames=frames,
            span=span,
            stretches=stretches,
            **starts,
            N=res.n_fft,
            HOP=res.hop_length,
            SAVE=save,
            SANITIZE=sanitize,
        )
    kept = partials if save and sanitize else None
    return partials.view(batch, -1, partials.shape[-1]), (signs, edges, kept)


def stft_gradient(
    saved: tuple[Tensor | None, ...],
    coefficients: Tensor,
    estimates: Tensor,
    res: Resolution,
    term: Objective,
    unknown: Tensor | None,
    gradient: Tensor,
    base: Base | None = None,
) -> None:
    """Add the adjoint STFT of a_re sign Re D + i a_im sign Im D, and r dQ_est/2de, to ``gradient``.

    ``coefficients`` is [3, B]: a_re, a_im, r. ``gradient`` is [B, C, L], contiguous float32. With a
    ``base`` it is written: what is there is not read. Samples that are ``unknown`` get nothing
    (None: there are none).
    """
    signs, edges, partials = saved
    batch, channels, length = estimates.shape
    signals, frames = batch * channels, res.frames(length)
    radices = SPLITS[res.n_fft].radices
    kinds = 1 if term.pure_l1 else 2
    pairs, read_span, read_stretches = forward_spans(res, kinds * signals, frames)
    kind = "added" if base is None else base.kind
    wave = Base() if base is None else base
    steps, span, stretches = backward_spans(res, signals, length)
    _launch(
        stft_gradient_kernel,
        signals * stretches,
        res,
        signs=signs,
        edges=edges,
        partials=partials,
        coefficients=coefficients,
        waveform_coefficients=wave.coefficients,
        wave_signs=wave.signs,
        estimates=estimates,
        unknown=unknown,
        window=res.window(torch.float32, gradient.device),
        p_twiddles=twiddles(res.n_fft, gradient.device),
        borders=gradient.new_empty(signals, res.n_fft),
        gradient=gradient,
        batch=batch,
        channels=channels,
        length=length,
        frames=frames,
        pairs=pairs,
        steps=steps,
        span=span,
        stretches=stretches,
        read_span=read_span,
        read_stretches=read_stretches,
        wave_words=0 if wave.signs is None else wave.signs.stride(0),
        unknown_stride=0 if unknown is None else unknown.stride(0),
        **strides("estimate", estimates),
        HOP=res.hop_length,
        RADICES=radices,
        SIGNALS=kinds,
        BASE=kind,
        LEVEL=term.has_level,
        SANITIZE=unknown is not None,
        LANES=common.CONFIG.lanes,
    )
