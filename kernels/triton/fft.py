r"""A complex FFT across the threads of one program, in plain triton.language.

A transform of n = R1 R2 R3 points lives in tuples of tensors, the real and the imaginary parts
apart. Each of its three stages works on the tuple as a whole, so in registers, and computes from
the R tensors x_j the R tensors

.. math:: X_k = \sum_{j<R} (w^j x_j)\, e^{-2\pi i jk/R}, \quad w = e^{-2\pi i q / (QR)}

where q < Q is what earlier stages have found of the output index. Between two stages an exchange
through shared memory makes the next digit of the input index the one that numbers the tensors:

    stage 1   R1 tensors over (j2, j3)   w = 1
    stage 2   R2 tensors over (j3, k1)   w = exp(-2 pi i k1 / (R1 R2))
    stage 3   R3 tensors over (k2, k1)   w = exp(-2 pi i (k1 + R1 k2) / n)

Input j1 (n / R1) + (j2 R3 + j3) is element (j2, j3) of tensor j1, output k1 + R1 k2 + R1 R2 k3 is
element (k2, k1) of tensor k3: in time as in frequency a tensor is a contiguous chunk.

The inverse (norm="forward") is the same function with real and imaginary parts exchanged in its
arguments and in its results.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..modes import kept


class Split(NamedTuple):
    """How a transform is computed."""

    radices: tuple[int, int, int]
    threads: int


# Sixteen complex values per thread (eight for 256) fill the registers and leave room for a loop
# around. The last radix is 8 or 16, for whole words of signs; and no tensor of any stage is shorter
# than the threads are many.
SPLITS = {
    256: Split((8, 4, 8), 32),
    512: Split((8, 8, 8), 32),
    1024: Split((16, 8, 8), 64),
    2048: Split((16, 16, 8), 128),
    4096: Split((16, 16, 16), 256),
}


@kept(at_most=1 << 22)
def twiddles(n: int, device: torch.device) -> Tensor:
    """cos and sin of -2 pi k / n, [2, n]."""
    angles = torch.arange(n, dtype=torch.float64, device="cpu") * (-2 * math.pi / n)
    return torch.stack([angles.cos(), angles.sin()]).float().to(device)


@triton.constexpr_function
def _cos(k, n):
    return math.cos(-2 * math.pi * k / n)


@triton.constexpr_function
def _sin(k, n):
    return math.sin(-2 * math.pi * k / n)


@triton.jit
def _interleave(a, b):
    """The tuple a0, b0, a1, b1, ..."""
    both = ()
    for i in tl.static_range(len(a)):
        both += (a[i], b[i])
    return both


@triton.jit
def pack(x):
    """R tensors [F] as one [F, R]."""
    if len(x) == 1:
        return tl.reshape(x[0], [x[0].shape[0], 1])
    else:
        F: tl.constexpr = x[0].shape[0]
        return tl.reshape(tl.join(pack(x[0::2]), pack(x[1::2])), [F, len(x)])


@triton.jit
def unpack(x):
    """A tensor [F, R] as R tensors [F]."""
    F: tl.constexpr = x.shape[0]
    R: tl.constexpr = x.shape[1]
    if R == 1:
        return (tl.reshape(x, [F]),)
    else:
        even, odd = tl.split(tl.reshape(x, [F, R // 2, 2]))
        return _interleave(unpack(even), unpack(odd))


@triton.jit
def _exchange(re, im, NEXT: tl.constexpr, FOUND: tl.constexpr):
    """From R tensors k over (j, rest, found) to NEXT tensors j over (rest, k, found)."""
    R: tl.constexpr = len(re)
    REST: tl.constexpr = re[0].shape[0] // (NEXT * FOUND)
    x = tl.reshape(tl.join(pack(re), pack(im)), [NEXT, REST, FOUND, R, 2])
    x = tl.reshape(tl.permute(x, [1, 3, 2, 4, 0]), [REST * R * FOUND, 2 * NEXT])
    x = unpack(x)
    return x[:NEXT], x[NEXT:]


@triton.jit
def _factor(wr, wi, k: tl.constexpr, R: tl.constexpr, TWIDDLED: tl.constexpr):
    """w exp(-2 pi i k / R), or without w."""
    if not TWIDDLED:
        return _cos(k, R), _sin(k, R)
    elif k == 0:
        return wr, wi
    else:
        return wr * _cos(k, R) - wi * _sin(k, R), wr * _sin(k, R) + wi * _cos(k, R)


@triton.jit
def _dft(re, im, wr, wi, TWIDDLED: tl.constexpr):
    """X_k of one stage, by halves: X_k, X_{k + R/2} = even_k +- w exp(-2 pi i k / R) odd_k.

    The halves are such sums themselves, with w^2 for w. So twiddles cost no multiplications of
    their own: they are in the butterflies, as factors of their six fused multiply-adds.
    """
    R: tl.constexpr = len(re)
    if R == 1:
        return re, im
    else:
        wr2, wi2 = wr, wi
        if TWIDDLED:
            wr2 = 1 - 2 * wi * wi
            wi2 = 2 * wi * wr
        even_re, even_im = _dft(re[0::2], im[0::2], wr2, wi2, TWIDDLED)
        odd_re, odd_im = _dft(re[1::2], im[1::2], wr2, wi2, TWIDDLED)

        QUARTER: tl.constexpr = (R + 3) // 4
        plus_re, plus_im, minus_re, minus_im = (), (), (), ()
        for k in tl.static_range(R // 2):
            ar, ai, br, bi = even_re[k], even_im[k], odd_re[k], odd_im[k]
            # exp(-2 pi i k / R) is -i times that of k - R/4: the factors are few.
            if k % QUARTER != 0 or TWIDDLED:
                fr, fi = _factor(wr, wi, k % QUARTER, R, TWIDDLED)
                if k < QUARTER and not TWIDDLED:
                    # Written out because LLVM 22 for sm_100 fails on the sums (radix 16, inverse).
                    xr = tl.fma(bi, -fi, tl.fma(br, fr, ar))
                    xi = tl.fma(bi, fr, tl.fma(br, fi, ai))
                elif k < QUARTER:
                    xr = ar + br * fr - bi * fi
                    xi = ai + br * fi + bi * fr
                else:
                    xr = ar + br * fi + bi * fr
                    xi = ai + bi * fi - br * fr
                yr = 2 * ar - xr
                yi = 2 * ai - xi
            elif k < QUARTER:
                xr, xi, yr, yi = ar + br, ai + bi, ar - br, ai - bi
            else:
                xr, xi, yr, yi = ar + bi, ai - br, ar - bi, ai + br
            plus_re += (xr,)
            plus_im += (xi,)
            minus_re += (yr,)
            minus_im += (yi,)
        return plus_re + minus_re, plus_im + minus_im


@triton.jit
def fft(re, im, p_twiddles, R2: tl.constexpr, R3: tl.constexpr):
    """R1 tensors of n / R1 consecutive points to R3 tensors of n / R3 consecutive bins."""
    R1: tl.constexpr = len(re)
    N: tl.constexpr = R1 * R2 * R3
    re, im = _dft(re, im, 1.0, 0.0, TWIDDLED=False)
    # Loaded in each call: cheaper than the registers to keep them in a loop, and a load fixes the
    # layout of what it is combined with.
    re, im = _exchange(re, im, NEXT=R2, FOUND=1)
    k1 = tl.arange(0, R3 * R1) % R1
    wr, wi = tl.load(p_twiddles + k1 * R3), tl.load(p_twiddles + N + k1 * R3)
    re, im = _dft(re, im, wr, wi, TWIDDLED=True)
    re, im = _exchange(re, im, NEXT=R3, FOUND=R1)
    k = tl.arange(0, R2 * R1)
    wr, wi = tl.load(p_twiddles + k), tl.load(p_twiddles + N + k)
    return _dft(re, im, wr, wi, TWIDDLED=True)
