r"""The signs of D, as the forward packs and the backward reads them.

int32 [signals, pairs, R3 / 8, n / R3]: bin c + k n / R3, where k < R3 / 2, is in word k // 4 of
column c, in the byte k % 4 from the top. A byte has two bits each for Re A, Im A, Re B, Im B of a
pair of frames A and B, from the top: the sign, and whether it is not zero.

    word k // 4 of column c    |  k % 4 = 0  |      1      |      2      |      3      |
    a byte                     |s n|s n|s n|s n|
                                ReA ImA ReB ImB

Im at 0 is always zero; the sign of Re at n/2 has its place. Both bits at the top of a float are 2,
-2, 0 or -0, so that a shift and a mask read a sign that can be multiplied.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bits(x):
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def either(a, b):
    return a | b


@triton.jit
def not_silent(x):
    """Whether one of the tensors is not zero, element by element."""
    any = bits(x[0])
    for j in tl.static_range(1, len(x)):
        any |= bits(x[j])
    return any << 1 != 0


@triton.jit
def _append(word, x):
    """The word with two more bits: the sign of x, and whether x is not zero."""
    some = bits(0 - tl.abs(x)) >> 31  # 0 - 0 is +0
    return (((word << 1) | (bits(x) >> 31)) << 1) | some


@triton.jit
def store_signs(p_signs, a_re, a_im, b_re, b_im, a_end, b_end):
    """The words of a pair, of tuples of R3 / 2 tensors [n / R3] and what is at n/2 in column 0."""
    C: tl.constexpr = a_re[0].shape[0]
    a_im = (a_im[0] + a_end,) + a_im[1:]
    b_im = (b_im[0] + b_end,) + b_im[1:]
    for h in tl.static_range(len(a_re) // 4):
        word = tl.zeros([C], tl.uint32)  # [c]
        for k in tl.static_range(4 * h, 4 * h + 4):
            word = _append(word, a_re[k])
            word = _append(word, a_im[k])
            word = _append(word, b_re[k])
            word = _append(word, b_im[k])
        tl.store(p_signs + h * C + tl.arange(0, C), word.to(tl.int32, bitcast=True))


@triton.jit
def silence(p_signs, frames, first, stop, sounding, WORDS: tl.constexpr):
    """Zero the signs of frames that are silent, which rounding of the other of the pair has set.

    ``sounding`` has a bit for each frame of the pairs first <= i < stop.
    """
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
def load_words(p_signs, there, HALF: tl.constexpr, C: tl.constexpr):
    """A pair's words of each column c and of the mirrored one, C - c."""
    c = tl.arange(0, C)
    words, opposite = (), ()
    for h in tl.static_range(HALF // 4):
        p = p_signs + h * C
        words += (bits(tl.load(p + c, mask=there, other=0)),)  # [c]
        opposite += (bits(tl.load(p + (C - c) % C, mask=there, other=0)),)  # [c]
    return words, opposite


@triton.jit
def mirrored_words(opposite):
    """Words of the bins n - k: of the mirrored column, for column 0 one tensor further."""
    c = tl.arange(0, opposite[0].shape[0])
    mirrored = ()
    for h in tl.static_range(len(opposite)):
        further = opposite[h] << 8
        if h + 1 < len(opposite):
            further |= opposite[h + 1] >> 24
        mirrored += (tl.where(c == 0, further, opposite[h]),)
    return mirrored


@triton.jit
def _sign(word, field):
    """Twice the sign in a field of two bits, counted from the top of the word: 2, -2, 0 or -0."""
    return ((word << (2 * field)) & 0xC0000000).to(tl.float32, bitcast=True)


@triton.jit
def signs_of(words, k):
    """Twice the signs of Re A, Im A, Re B and Im B of tensor k."""
    word = words[k // 4]
    field = k % 4 * 4
    return (
        _sign(word, field),
        _sign(word, field + 1),
        _sign(word, field + 2),
        _sign(word, field + 3),
    )
