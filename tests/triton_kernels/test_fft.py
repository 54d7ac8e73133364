"""The transform across the threads of one program, against torch.fft in float64."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from torch_l1snr_fast.kernels.triton.common import launch
from torch_l1snr_fast.kernels.triton.fft import SPLITS, fft, pack, twiddles, unpack


def bound(n: int, radices: tuple[int, ...]) -> float:
    """Relative rms error of a transform, in which rounding errors add up as squares.

    A value is rounded with 0.4 x 2^-24 rms. A butterfly a + w b, a - w b of equally large a and b
    so adds 0.44 x 2^-48 to the square of the relative error, at each of log2 n levels. Within a
    stage of radix R the factors are w, w^2, ... w^(R/2), each computed from the one before, so
    their errors double from level to level: half the squares of (0.4 to 0.6) (1, 2, ... R/2), which
    is at most 0.2 (R^2 - 1) / 3; and their products with constants are off by 0.3 more in square.
    The first stage has w = 1.
    """
    butterflies = (0.44 + 0.3) * math.log2(n)
    factors = sum(0.2 * (radix**2 - 1) / 3 for radix in radices[1:])
    return 2**-24 * math.sqrt(butterflies + factors)


@triton.jit
def transform_kernel(
    re,
    im,
    p_twiddles,
    out_re,
    out_im,
    R1: tl.constexpr,  # noqa: N803
    R2: tl.constexpr,  # noqa: N803
    R3: tl.constexpr,  # noqa: N803
    INVERSE: tl.constexpr,  # noqa: N803
):
    """One transform of R1 R2 R3 points per program."""
    first = tl.program_id(0) * (R1 * R2 * R3)
    chunk = tl.arange(0, R1)[None, :] * (R2 * R3) + tl.arange(0, R2 * R3)[:, None]
    x, y = unpack(tl.load(re + first + chunk)), unpack(tl.load(im + first + chunk))
    if INVERSE:
        y, x = fft(y, x, p_twiddles, R2, R3)
    else:
        x, y = fft(x, y, p_twiddles, R2, R3)
    chunk = tl.arange(0, R3)[None, :] * (R1 * R2) + tl.arange(0, R1 * R2)[:, None]
    tl.store(out_re + first + chunk, pack(x))
    tl.store(out_im + first + chunk, pack(y))


def transform(z: Tensor, radices: tuple[int, ...], inverse: bool) -> Tensor:
    """Of complex64 [programs, n]."""
    n = z.shape[-1]
    out_re, out_im = (torch.empty_like(z.real) for _ in range(2))
    launch(
        transform_kernel,
        len(z),
        SPLITS[n].threads,
        re=z.real.contiguous(),
        im=z.imag.contiguous(),
        p_twiddles=twiddles(n, z.device),
        out_re=out_re,
        out_im=out_im,
        **dict(zip(("R1", "R2", "R3"), radices, strict=True)),
        INVERSE=inverse,
    )
    return torch.complex(out_re, out_im)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("n", SPLITS)
def test_against_torch(n: int, inverse: bool, device: torch.device):
    """In the order of the radices in which each direction is used."""
    z = torch.randn(2, n, dtype=torch.complex64, device=device)
    radices = SPLITS[n].radices[::-1] if inverse else SPLITS[n].radices
    got = transform(z, radices, inverse).to(torch.complex128)
    wide = z.to(torch.complex128)
    want = torch.fft.ifft(wide, norm="forward") if inverse else torch.fft.fft(wide)
    assert ((got - want).norm(dim=1) <= bound(n, radices) * want.norm(dim=1)).all()


def test_twiddles_are_rounded_once():
    for n in SPLITS:
        circle = torch.polar(
            torch.ones(n, dtype=torch.float64),
            torch.arange(n, dtype=torch.float64) * (-2 * math.pi / n),
        )
        assert torch.equal(twiddles(n, torch.device("cpu")), torch.view_as_real(circle).mT.float())


def test_splits_fit_the_words_and_the_threads():
    """The last radix fills words of signs; no stage has tensors shorter than the threads."""
    for n, (radices, threads) in SPLITS.items():
        assert math.prod(radices) == n
        assert radices[2] % 8 == 0
        assert all(n // radix >= threads for radix in radices)
