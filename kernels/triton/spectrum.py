r"""Spectra to sums and signs, and signs back to spectra.

Per row, over bins k and frames f, with D = STFT(e - t) and T = STFT(t): the sums of abs Re D, abs
Im D, abs Re T and abs Im T. Re and Im alternate in memory, and so do their signs, two bits each, in
the order in which the FFT wrote them: element 2 (f bins + k) of a signal is Re, the next one Im.

The gradient's frames are y_j = Re sum_{k <= n/2} G_k exp(2 pi i jk / n), with G = a_re sign Re D +
i a_im sign Im D. That is the inverse complex FFT of the Hermitian S_k = G_k / 2, S_{n-k} =
conj(G_k) / 2, but Re G_k at k = 0 and k = n/2. Two frames a, b share one transform, of S_a + i S_b:
y_a is its real, y_b its imaginary part. (PyTorch's inverse real FFT would copy its input first.)
They are of one signal, because rounding of the one, or what is not a number, shows in the other.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..plan import Objective, Resolution
from . import common
from .common import (
    COLUMNS,
    PLANES,
    block_count,
    jit,
    place,
    sign_code,
    sign_place,
    signed,
    store_partials,
)
from .frames import Slab
from .launching import Launch, Waves


@jit
def spectrum_statistics_kernel(
    spectra,  # [1 or 2, signals, frames, bins, 2] of the slab: D and, if TARGET, T
    partials,  # [signals, chunks, COLUMNS] of the slab, written
    signs,  # [signals, words] of the slab, written if SAVE
    partial_stride,  # from signal to signal
    sign_stride,  # from signal to signal
    values,  # of a signal in the slab
    target,  # from D to T
    blocks,  # per signal
    chunks,  # per signal
    span,  # blocks per chunk
    TARGET: tl.constexpr,
    SAVE: tl.constexpr,
    LANES: tl.constexpr,
):
    DTYPE: tl.constexpr = spectra.dtype.element_ty
    chunk, local, _, _ = place(chunks, 0, 1)
    p_spectrum = spectra + local * values
    lane = tl.arange(0, LANES)
    error = tl.zeros([LANES], DTYPE)
    reference = tl.zeros([LANES], DTYPE)

    for block in range(chunk * span, tl.minimum(chunk * span + span, blocks)):
        start = block * (PLANES * LANES)
        left = tl.minimum(values - start, PLANES * LANES).to(tl.int32)
        word = tl.zeros([LANES], tl.int32)
        for plane in tl.static_range(PLANES):
            o = plane * LANES + lane
            d = tl.load(p_spectrum + start + o, mask=o < left, other=0.0)
            error += tl.abs(d)
            if TARGET:
                t = tl.load(p_spectrum + target + start + o, mask=o < left, other=0.0)
                reference += tl.abs(t)
            if SAVE:
                word |= sign_code(d) << (2 * plane)
        if SAVE:
            tl.store(signs + (local * sign_stride + block * LANES) + lane, word)

    re = lane % 2 == 0
    store_partials(
        partials + (local * partial_stride + chunk * COLUMNS),
        tl.sum(tl.where(re, error, 0.0)),
        tl.sum(tl.where(re, 0.0, error)),
        tl.sum(tl.where(re, reference, 0.0)),
        tl.sum(tl.where(re, 0.0, reference)),
        0.0,
        0.0,
        0.0,
    )


@triton.jit
def half_spectrum(
    signs,
    edges,
    coefficients,
    row,
    k,
    batch,
    channels,
    words,
    edge_stride,
    first_signal,
    first_frame,
    frames,
    n,
    LEVEL: tl.constexpr,
    LANES: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """S_k, k <= n / 2, of a frame of the slab; zero where it but completes a signal's last pair."""
    even = frames + frames % 2
    signal, frame = first_signal + row // even, row % even
    live = frame < frames
    p_coefficients = coefficients + signal // channels
    a_re = tl.load(p_coefficients).to(DTYPE)
    a_im = tl.load(p_coefficients + batch).to(DTYPE)
    signal, frame = signal.to(tl.int64), (first_frame + frame).to(tl.int64)

    element = frame * (n // 2 + 1) * 2
    block = element // (PLANES * LANES)
    p_signs = signs + (signal * words + block * LANES)
    word, shift = sign_place((element - block * (PLANES * LANES)).to(tl.int32) + 2 * k, LANES)
    p_words = p_signs + word
    mask = live & (2 * k <= n)
    middle = 2 * k == n
    edge = (k == 0) | middle
    re = signed(tl.load(p_words, mask=mask, other=0), shift, 0.5 * a_re)
    im = signed(tl.load(p_words + 1, mask=mask, other=0), shift, 0.5 * a_im)
    re = tl.where(edge, 2 * re, re)
    im = tl.where(edge, 0.0, im)
    if LEVEL:
        half_r = 0.5 * tl.load(p_coefficients + 2 * batch).to(DTYPE)
        p_edges = edges + (signal * edge_stride + frame * 2)
        x = tl.load(p_edges + middle.to(tl.int32), mask=mask & edge, other=0.0)
        re += half_r * x
    return re, im


@jit
def spectrum_gradient_kernel(
    spectra,  # [pairs of the slab's frames, n, 2], written
    signs,  # [signals, words]
    edges,  # [signals, frames, 2], read if LEVEL
    coefficients,  # [3, B]: a_re, a_im, r
    batch,
    channels,
    words,  # per signal
    edge_stride,  # from signal to signal
    first_signal,
    first_frame,
    frames,  # per signal in the slab
    n,
    LEVEL: tl.constexpr,
    LANES: tl.constexpr,
):
    DTYPE: tl.constexpr = spectra.dtype.element_ty
    pair = tl.program_id(0)
    p_spectrum = spectra + pair.to(tl.int64) * n * 2  # offsets exceed 32 bits
    part = tl.arange(0, 2)[None, :]
    for first in range(0, n // 2 + 1, LANES):
        k = first + tl.arange(0, LANES)
        a_re, a_im = half_spectrum(
            signs, edges, coefficients, 2 * pair, k, batch, channels, words, edge_stride,
            first_signal, first_frame, frames, n, LEVEL, LANES, DTYPE,
        )  # fmt: skip
        b_re, b_im = half_spectrum(
            signs, edges, coefficients, 2 * pair + 1, k, batch, channels, words, edge_stride,
            first_signal, first_frame, frames, n, LEVEL, LANES, DTYPE,
        )  # fmt: skip
        z = tl.join(a_re - b_im, b_re + a_im)
        mirrored = tl.join(a_re + b_im, b_re - a_im)
        k = k[:, None]
        tl.store(p_spectrum + 2 * k + part, z, mask=2 * k <= n)
        tl.store(p_spectrum + 2 * (n - k) + part, mirrored, mask=(k > 0) & (2 * k < n))


def sign_words(res: Resolution, length: int) -> int:
    """Of a signal."""
    return block_count(res.frames(length) * 2 * res.bins) * common.config().lanes


def spectrum_statistics(
    given: Waves,
    res: Resolution,
    slab: Slab,
    term: Objective,
    save: bool,
    chunks: tuple[int, int],
    partial_stride: int,
) -> Launch:
    """Sums over a slab's ``spectra`` [1 or 2, signals, frames, bins, 2], and the first one's signs.

    Of ``partials`` [signals, chunks, COLUMNS] and ``signs`` [signals, words] it is given the
    slab's. ``chunks`` says how many there are per signal and how many blocks each has.
    """
    values = slab.frames * 2 * res.bins
    lanes = common.config().lanes
    return Launch(
        spectrum_statistics_kernel,
        programs=slab.signals * chunks[0],
        threads=lanes,
        partial_stride=partial_stride,
        sign_stride=sign_words(res, given.shape[-1]),
        values=values,
        target=slab.signals * values,
        blocks=block_count(values),
        chunks=chunks[0],
        span=chunks[1],
        TARGET=not term.pure_l1,
        SAVE=save,
        LANES=lanes,
    )


def spectrum_gradient(given: Waves, res: Resolution, slab: Slab, level: bool) -> Launch:
    """Writes S_a + i S_b of each pair of the slab's frames into ``spectra`` [pairs, n, 2]."""
    batch, channels, length = given.shape
    lanes = common.config().lanes
    return Launch(
        spectrum_gradient_kernel,
        programs=slab.pairs,
        threads=lanes,
        batch=batch,
        channels=channels,
        words=sign_words(res, length),
        edge_stride=res.frames(length) * 2,
        first_signal=slab.first_signal,
        first_frame=slab.first_frame,
        frames=slab.frames,
        n=res.n_fft,
        LEVEL=level,
        LANES=lanes,
    )
