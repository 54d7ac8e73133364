r"""Two real frames in one complex transform, apart and together.

With z = a + i b, Z = FFT(z) and G_k = conj(Z_{n-k}), the spectra of the frames are
A_k = (Z_k + G_k) / 2 and B_k = (Z_k - G_k) / 2i. The other way, of half-spectra A and B in
0 <= k <= n/2, continued as Hermitian ones, the transform of A + i B has frame a as its real part
and frame b as its imaginary part.

Both frames are of one signal: rounding of the one, or what is not a number, shows in the other.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .signs import bits, mirrored_words, signs_of


@triton.jit
def mirrored(re, im):
    """Element (C - c) mod C of both, by one exchange."""
    C: tl.constexpr = re.shape[0]
    both = (bits(re).to(tl.uint64) << 32) | bits(im).to(tl.uint64)
    both = tl.gather(both, (C - tl.arange(0, C)) % C, 0)
    re = (both >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
    return re, both.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def separate(re, im):
    """2A and 2B in bins below n/2, as tuples of Re and Im, and 2A and 2B at n/2 in column 0.

    Bin n - k is in the mirrored column of the mirrored tensor; for column 0, its own mirror image,
    one tensor further.
    """
    HALF: tl.constexpr = len(re) // 2
    c = tl.arange(0, re[0].shape[0])
    other_re, other_im = (re[0],), (im[0],)
    for k in tl.static_range(HALF):
        gr, gi = mirrored(re[2 * HALF - 1 - k], im[2 * HALF - 1 - k])
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
def _edge_bins(p_edges, half_r, i, frames):
    """r / 2 times E at 0 and at n/2 of frame A, then of B; 0 of a frame that is not there."""
    p = p_edges + 4 * i
    a, b = 2 * i < frames, 2 * i + 1 < frames
    return (
        half_r * tl.load(p, mask=a, other=0.0),
        half_r * tl.load(p + 1, mask=a, other=0.0),
        half_r * tl.load(p + 2, mask=b, other=0.0),
        half_r * tl.load(p + 3, mask=b, other=0.0),
    )


@triton.jit
def spectrum(
    loaded, p_edges, coefficients, i, frames,
    R: tl.constexpr, C: tl.constexpr, LEVEL: tl.constexpr,
):  # fmt: skip
    """G_A + i G_B of a pair, R tensors of C bins; Hermitian G, halved but at 0 and n/2.

    ``loaded`` are the pair's words. ``coefficients`` are a_re, a_im and r of the row, a quarter of
    them for the half and for signs of 2, and half of r.
    """
    HALF: tl.constexpr = R // 2
    a_re, a_im, half_r = coefficients
    c = tl.arange(0, C)
    words, mirrored = loaded[0], mirrored_words(loaded[1])
    re, im, mirrored_re, mirrored_im = (), (), (), ()
    for k in tl.static_range(HALF):
        ar, ai, br, bi = signs_of(words, k)
        zr = ar * a_re - bi * a_im
        zi = br * a_re + ai * a_im
        if k == 0:
            zero_re, zero_im = 2 * a_re * ar, 2 * a_re * br
            end_re, end_im = 2 * a_re * ai, 2 * a_re * bi
            if LEVEL:
                a_zero, a_end, b_zero, b_end = _edge_bins(p_edges, half_r, i, frames)
                zero_re += a_zero
                end_re += a_end
                zero_im += b_zero
                end_im += b_end
            zr = tl.where(c == 0, zero_re, zr)
            zi = tl.where(c == 0, zero_im, zi)
        re += (zr,)
        im += (zi,)
        # The conjugates.
        ar, ai, br, bi = signs_of(mirrored, k)
        zr = ar * a_re + bi * a_im
        zi = br * a_re - ai * a_im
        if k == HALF - 1:
            zr = tl.where(c == 0, end_re, zr)
            zi = tl.where(c == 0, end_im, zi)
        mirrored_re += (zr,)
        mirrored_im += (zi,)
    return re + mirrored_re[::-1], im + mirrored_im[::-1]
