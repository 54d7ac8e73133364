"""A stretch of one signal: its waveform term, its resolutions' walks, and the reflected borders."""

from __future__ import annotations

import triton
import triton.language as tl

from ..onchip.stretches import jit, points
from .difference import BLOCK
from .walk import walk


@triton.jit
def _of(values, r):
    """values[r]."""
    chosen = values[0]
    for k in tl.static_range(1, len(values)):
        chosen = tl.where(r == k, values[k], chosen)
    return chosen


@triton.jit
def _walks(
    stretch,  # as in ``walk``
    resolutions,  # the windows of all, their hops and widths
    tables,
    p_means,
    weight,
    elements,
    zero,
    FROM: tl.constexpr,
    TO: tl.constexpr,
    SIZE: tl.constexpr,
    RADICES: tl.constexpr,
    DOUBLE: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """The walks of resolutions FROM <= r < TO, whose shares of the means are stored."""
    windows, hops, widths = resolutions
    length = stretch[5]
    HALF: tl.constexpr = points(RADICES) * (1 + DOUBLE) // 2
    for r in range(FROM, TO):
        resolution = (windows + r * SIZE, _of(hops, r), _of(widths, r))
        count = elements * (HALF + 1) * (length // resolution[1] + 1)
        scale = weight / (2 * count)
        moduli = walk(stretch, resolution, tables, scale, zero, RADICES, DOUBLE, GRADIENT)
        tl.store(p_means + r, moduli / count)


@jit
def complex_stft_kernel(
    differences,  # [signals, L + 2 border] float32, reflected at its ends
    windows,  # [resolutions, SIZE], each window in front
    hops,  # tuples: of each resolution, those of double frames first,
    widths,  # and the length of its window
    p_twiddles,  # of n points
    p_halves,  # of 2 n
    gradient,  # [B, C, L] float32, contiguous; written if FIRST, otherwise added to
    borders,  # [signals, SIZE] of zeros, of reflected positions after the signal and before
    partials,  # [signals, stretches, FIRST + resolutions]: shares of the row's means
    channels,
    length,
    border,
    stretch_length,
    stretches,
    zero,  # 0, which the compiler does not know
    waveform_weight,
    weight,
    RADICES: tl.constexpr,
    DOUBLES: tl.constexpr,  # resolutions whose frames have 2 n samples
    FIRST: tl.constexpr,  # 1 if the waveform term is computed too, otherwise 0
    GRADIENT: tl.constexpr,
):
    """Shares of means and gradient of one stretch of a signal, the last with what is left."""
    SIZE: tl.constexpr = points(RADICES) * (1 + (DOUBLES > 0))
    program = tl.program_id(0)
    stretch = program % stretches
    signal = (program // stretches).to(tl.int64)  # offsets made of it exceed 32 bits
    differences += signal * (length + 2 * border) + border
    partials += program.to(tl.int64) * (FIRST + len(hops))
    if GRADIENT:
        gradient += signal * length
        borders += signal * SIZE + SIZE // 2
    begin = stretch * stretch_length
    end = begin + stretch_length
    if stretch == stretches - 1:
        end = length
    elements = channels.to(tl.float32)

    if FIRST:
        scale = waveform_weight / (elements * length)
        total = tl.zeros([BLOCK], tl.float32)
        for i in range(begin, end, BLOCK):
            at = i + tl.arange(0, BLOCK)
            d = tl.load(differences + at, mask=at < end, other=0.0)
            total += tl.abs(d)
            if GRADIENT:
                # A product where d is no number or zero.
                slope = tl.where(d > 0, scale, tl.where(d < 0, -scale, 0 * d))
                tl.store(gradient + at, slope, mask=at < end)
        tl.store(partials, tl.sum(total, 0) / (elements * length))
        if GRADIENT:
            tl.debug_barrier()  # the walk gives these places to other threads

    owned = (differences, gradient, borders, begin, end, length)
    resolutions = (windows, hops, widths)
    tables = (p_twiddles, p_halves)
    p_means = partials + FIRST
    # In this order, for double frames leave no registers to what the others need.
    _walks(
        owned, resolutions, tables, p_means, weight, elements, zero,
        DOUBLES, len(hops), SIZE, RADICES, False, GRADIENT,
    )  # fmt: skip
    _walks(
        owned, resolutions, tables, p_means, weight, elements, zero,
        0, DOUBLES, SIZE, RADICES, True, GRADIENT,
    )  # fmt: skip

    if GRADIENT:
        # Position -1 - b shows sample 1 + b, position L + b sample L - 2 - b.
        for side in range(2):
            if stretch == side * (stretches - 1):
                tl.debug_barrier()
                for b in range(0, SIZE // 2, BLOCK):
                    at = b + tl.arange(0, BLOCK)
                    there = at < SIZE // 2
                    y = tl.load(borders + tl.where(side == 0, -1 - at, at), mask=there)
                    p = tl.where(side == 0, 1 + at, length - 2 - at)
                    tl.store(gradient + p, tl.load(gradient + p, mask=there) + y, mask=there)
