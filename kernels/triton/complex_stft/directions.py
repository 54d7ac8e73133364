r"""From transforms to moduli and their slopes: a pair of frames, or one of twice the points.

For a pair, 2 A_k = Z_k + conj Z_{n-k} and 2 i B_k = Z_k - conj Z_{n-k}. Its frames have the
directions U = A / \|A\| and V = B / \|B\|, edge bins doubled; U + i V, transformed back, has twice
the gradients of A and B by their samples. A double frame has bins A_k + w^k B_k and, n further,
A_k - w^k B_k with w = exp(-pi i / n). With their directions U and V, U + V + i w^{-k} (U - V),
transformed back, has twice the gradients of even and of odd samples.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..onchip.pairs import mirrored

TINY: tl.constexpr = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _unit(re, im, edge):
    """X / |X| and |X|, doubled at an edge bin.

    Below the root of the smallest normal number the quotient fades to zero.
    """
    square = re * re + im * im
    inverse = tl.rsqrt(tl.maximum(square, TINY))
    inverse = tl.where(edge, 2 * inverse, inverse)
    return re * inverse, im * inverse, square * inverse


@triton.jit
def _direction(re, im, k: tl.constexpr, p_halves, DOUBLE: tl.constexpr):
    """Tensor k of what is transformed back, and the moduli of 2 A and 2 B, or of a frame's sum."""
    R: tl.constexpr = len(re)
    C: tl.constexpr = re[0].shape[0]
    c = tl.arange(0, C)
    # Bin n - k is in the mirrored column of the mirrored tensor, of column 0 one further.
    gr, gi = mirrored(re[R - 1 - k], im[R - 1 - k])
    gr = tl.where(c == 0, re[(R - k) % R], gr)
    gi = tl.where(c == 0, im[(R - k) % R], gi)
    ar, ai, br, bi = re[k] + gr, im[k] - gi, im[k] + gi, gr - re[k]
    if DOUBLE:
        wr = tl.load(p_halves + (k * C + c))
        wi = tl.load(p_halves + (2 * R * C + k * C + c))
        # A + w B, and A - w B.
        xr = ar + wr * br - wi * bi
        xi = ai + wr * bi + wi * br
        br, bi = 2 * ar - xr, 2 * ai - xi
        ar, ai = xr, xi
    edge = (c == 0) & ((k == 0) | (k == R // 2) & (not DOUBLE))
    ur, ui, a = _unit(ar, ai, edge)
    vr, vi, b = _unit(br, bi, edge)
    if DOUBLE:
        sr, si, dr, di = ur + vr, ui + vi, ur - vr, ui - vi
        return sr + wi * dr - wr * di, si + wr * dr + wi * di, a + b, 0.0
    else:
        return ur - vi, ui + vr, a, b


@triton.jit
def directions(re, im, p_halves, DOUBLE: tl.constexpr):
    """All tensors, from both ends so that Z makes room for them, and the sums of the moduli.

    The upper half of the bins repeats the lower: to exchange what is computed once would cost as
    much as the upper half's part of this exchange of Z.
    """
    R: tl.constexpr = len(re)
    low_re, low_im, high_re, high_im = (), (), (), ()
    a_sum = tl.zeros(re[0].shape, tl.float32)
    b_sum = tl.zeros(re[0].shape, tl.float32)
    for k in tl.static_range(R // 2):
        xr, xi, a, b = _direction(re, im, k, p_halves, DOUBLE)
        low_re += (xr,)
        low_im += (xi,)
        yr, yi, c, d = _direction(re, im, R - 1 - k, p_halves, DOUBLE)
        high_re += (yr,)
        high_im += (yi,)
        a_sum += a + c
        b_sum += b + d
    return low_re + high_re[::-1], low_im + high_im[::-1], a_sum, b_sum
