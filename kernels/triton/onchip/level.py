r"""The level of spectra, without an FFT: for a windowed frame x,

.. math:: \sum_{k \le n/2} |X_k|^2 = (n \sum x^2 + X_0^2 + X_{n/2}^2) / 2.

In a kernel of its own, so that the transform's registers do not pay for an option that is off by
default. Half of its gradient by the waveform is w_j (n w_j e_j + X_0 + (-1)^j X_{n/2}) / 2: the
edge bins enter with the backward's spectrum, e times the overlap-added w^2 in the time domain.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ... import plan
from ...plan import Resolution
from ..common import COLUMNS, sanitized
from ..launching import Launch, Waves
from .stretches import forward_stretch, forward_stretches, jit, prepare, reflected, signal_of

Q_EST: tl.constexpr = tl.constexpr(plan.Q_EST)
Q_REF: tl.constexpr = tl.constexpr(plan.Q_REF)


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
        x = tl.load(wave + reflected(f * HOP - N // 2 + lane, length)).to(tl.float32)
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
    estimates, estimate_batch, estimate_channel,  # [B, C, L], any row and channel stride
    actuals, actual_batch, actual_channel,  # [B, C, L], any row and channel stride
    window,  # [n]
    edges,  # [B C, frames, 2]: X_0 and X_{n/2} of e, written if SAVE
    partials,  # [B C, stretches, 2, COLUMNS], of which Q_EST and Q_REF are written
    channels,
    length,
    span,  # pairs to a stretch
    N: tl.constexpr,
    HOP: tl.constexpr,
    SAVE: tl.constexpr,
    SANITIZE: tl.constexpr,
):  # fmt: skip
    """sum |X|^2 of E and of T, in the rows of ``stft_statistics_kernel``, and E at 0 and n/2."""
    program = tl.program_id(0)
    stretches = forward_stretches(span, length, HOP)
    signal = (program // 2 // stretches).to(tl.int64)
    first, stop, frames = forward_stretch(program // 2 % stretches, span, length, HOP)
    first, stop = 2 * first, tl.minimum(2 * stop, frames)
    p_partials = partials + program.to(tl.int64) * COLUMNS
    # One after the other: a choice between e and t would have to be of one dtype.
    if program % 2 == 0:
        p_e = signal_of(estimates, estimate_batch, estimate_channel, signal, channels)
        p_edges = edges
        if SAVE:
            p_edges += signal * frames * 2
        energy = _energy(p_e, window, p_edges, length, first, stop, N, HOP, SAVE, SANITIZE)
        tl.store(p_partials + Q_EST, energy)
    else:
        p_t = signal_of(actuals, actual_batch, actual_channel, signal, channels)
        energy = _energy(p_t, window, edges, length, first, stop, N, HOP, False, SANITIZE)
        tl.store(p_partials + Q_REF, energy)


@triton.jit
def level_gradient(
    p_e,
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
    e = tl.load(p_e + reflected(p, length)).to(tl.float32)
    if SANITIZE:
        e = sanitized(e)
    return e * squares


def energies(
    given: Waves, res: Resolution, programs: int, span: int, save: bool, sanitize: bool
) -> Launch:
    """Adds to the partial sums; writes the edge bins to be saved."""
    return prepare(
        stft_level_kernel,
        programs,
        res,
        **given.strides("estimate", "actual"),
        window=res.window(torch.float32, given.device),
        channels=given.shape[1],
        length=given.shape[2],
        span=span,
        N=res.n_fft,
        HOP=res.hop_length,
        SAVE=save,
        SANITIZE=sanitize,
    )
