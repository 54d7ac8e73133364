"""The frames that reach a stretch, of one resolution: read, transform there and back, lay down.

After each frame the hop that no later frame reaches is added to memory, and the others move up by a
hop through shared memory:

    position      start          start + hop                   start + width
    frame         |==============|=============================|
    held          | all frames before this one, and it         | 0 ...
                  `- finished    `- held for the next frame, whose first sample this is
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..fft import fft, pack, unpack
from ..onchip.signs import either, not_silent
from ..onchip.stretches import points
from .directions import directions


@triton.jit
def _in_order(x):
    """R consecutive chunks [F] as one tensor [R F]."""
    return tl.reshape(tl.trans(pack(x)), [len(x) * x[0].shape[0]])


@triton.jit
def _chunks(x, R: tl.constexpr):
    """And back."""
    return unpack(tl.trans(tl.reshape(x, [R, x.shape[0] // R])))


@triton.jit
def _interleaved(even, odd):
    return tl.reshape(tl.join(even, odd), [2 * even.shape[0]])


@triton.jit
def _windowed(frame, window, at, width, R: tl.constexpr):
    """Elements ``at`` of a frame with its window, as R chunks."""
    d = tl.load(frame + at, mask=at < width, other=0.0)
    return _chunks(d * tl.load(window + at), R)


@triton.jit
def _which_sound(a, b):
    """Whether two frames have a sample that is not zero."""
    sounding = tl.where(not_silent(a), 1, 0) | tl.where(not_silent(b), 2, 0)
    sounding = tl.reduce(sounding, 0, either)
    return sounding & 1 != 0, sounding & 2 != 0


@triton.jit
def _add(place, x, mask):
    tl.store(place, tl.load(place, mask=mask) + x, mask=mask)


@triton.jit
def _finish(x, at, start, hop, stretch):
    """Add to memory elements at < hop of a frame that begins at ``start``, if in the stretch."""
    _, gradient, borders, begin, end, length = stretch
    HALF: tl.constexpr = x.shape[0] // 2  # a hop is no longer
    x, _ = tl.split(tl.trans(tl.reshape(x, [2, HALF])))
    at, _ = tl.split(tl.trans(tl.reshape(at, [2, HALF])))
    mask = (at >= begin - start) & (at < tl.minimum(hop, end - start))
    if (start >= 0) & (start + hop <= length):
        _add(gradient + start + at, x, mask)
    else:
        p = start + at
        outside = borders + tl.where(p < 0, p, p - length)
        _add(tl.where((p >= 0) & (p < length), gradient + p, outside), x, mask)


@triton.jit
def _further(x, at, hop):
    """Elements at + hop of x, whose elements are ``at``; zeros after its end."""
    both = tl.trans(tl.join(x, tl.zeros_like(x)))
    return tl.gather(tl.reshape(both, [2 * x.shape[0]]), at + hop, 0)


@triton.jit
def _laid_down(held, frame, window, at, start, hop, stretch):
    """``held`` with a frame, its first hop finished, moved up by a hop."""
    held += frame * tl.load(window + at)
    _finish(held, at, start, hop, stretch)
    return _further(held, at, hop)


@triton.jit
def _double_laid_down(held, odd, even_x, odd_x, window, at, start, hop, further_by, stretch):
    """The same of a double frame's even samples and its odd ones."""
    held += even_x * tl.load(window + at)
    odd += odd_x * tl.load(window + 1 + at)
    _finish(held, at, start, hop, stretch)
    _finish(odd, at, start + 1, hop - 1, stretch)
    both = _further(_interleaved(held, odd), _interleaved(at, at + 1), further_by)
    return tl.split(tl.reshape(both, [at.shape[0], 2]))


@triton.jit
def walk(
    stretch,  # differences, gradient and borders of its signal, begin, end, length
    resolution,  # its window, hop, the window's length
    tables,  # powers of twiddles of n points, and of 2 n
    scale,  # of a frame's gradient
    zero,
    RADICES: tl.constexpr,
    DOUBLE: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """Sum of the moduli of the frames that begin at begin <= p < end; their gradient there."""
    differences, gradient, borders, begin, end, length = stretch
    window, hop, width = resolution
    p_twiddles, p_halves = tables
    R1: tl.constexpr = RADICES[0]
    R2: tl.constexpr = RADICES[1]
    N: tl.constexpr = points(RADICES)
    HALF: tl.constexpr = N * (1 + DOUBLE) // 2  # of a frame
    begin = tl.where(begin == 0, -HALF, begin)
    end = tl.where(end == length, length + HALF, end)
    owned = (differences, gradient, borders, begin, end, length)
    origin = (2 * HALF - width) // 2 - HALF  # where the window of the first frame begins
    reach = 1
    if GRADIENT:
        reach = width
    first = tl.maximum(begin - origin - reach + hop, 0) // hop
    at = tl.arange(0, N) * (1 + DOUBLE)
    held = tl.zeros([N], tl.float32)
    odd = tl.zeros([N], tl.float32)
    total = tl.zeros([R1 * R2], tl.float32)
    for start in range(origin + first * hop, end, hop * (2 - DOUBLE)):
        second = start + hop
        # Addresses that a loop does not change are kept, and these would not fit the registers.
        changing = start & zero
        w, table = window + changing, p_halves + changing
        a_width = tl.where(start <= origin + length, width, 0)
        if DOUBLE:
            re = _windowed(differences + start, w, at, a_width, R1)
            im = _windowed(differences + start + 1, w + 1, at, a_width - 1, R1)
        else:
            b_width = tl.where(second <= origin + length, width, 0)
            re = _windowed(differences + start, w, at, a_width, R1)
            im = _windowed(differences + second, w, at, b_width, R1)
            a_sounds, b_sounds = _which_sound(re, im)
        for inverse in range(1 + GRADIENT + zero):  # not to be unrolled
            powers = p_twiddles
            if DOUBLE:
                powers += inverse & zero  # made anew in each round, as addresses in each step
            re, im = fft(re, im, powers, R2, R1)
            if inverse == 0:
                re, im, a, b = directions(re, im, table, DOUBLE)
                re, im = im, re  # exchanged before and after, a transform is its inverse
                if DOUBLE:
                    total += tl.where(start >= begin, a, 0.0)
                else:
                    total += tl.where(a_sounds & (start >= begin), a, 0.0)
                    total += tl.where(b_sounds & (second >= begin) & (second < end), b, 0.0)
        if GRADIENT:
            x, y = _in_order(im), _in_order(re)
            w = window + (second & zero)  # loaded again, for the same reason
            if DOUBLE:
                held, odd = _double_laid_down(
                    held, odd, scale * x, scale * y, w, at, start, hop, hop + changing, owned
                )
            else:
                a = tl.where(a_sounds, scale, 0.0) * x
                b = tl.where(b_sounds, scale, 0.0) * y
                held = _laid_down(held, a, w, at, start, hop, owned)
                held = _laid_down(held, b, w, at, second, hop, owned)
    return tl.sum(total, 0) / 4
