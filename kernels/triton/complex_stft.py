r"""Complex spectra on-chip: mean moduli of D = STFT(e - t) and their gradient, in one kernel.

*No sample moves between threads but in the FFT.* A circular shift of a frame turns its bins and
leaves their moduli. So position p of the signal is element p mod n of every transform that sees it,
whatever the hop: frames are read, their gradients added up, and sums completed in place, where a
frame's own order would rotate all of them by a hop from frame to frame. The gradient of a modulus
turns with the bin, so its inverse transform has the positions where the frame had them.

A program owns a stretch of positions of one signal, and for each resolution walks along the pairs
of frames that reach it. Frames A and B of a pair, a hop apart, are the real and imaginary part of z
(``onchip`` separates them in the same way): A_k = (Z_k + conj Z_{n-k}) / 2 and B_k likewise. With
U = A / \|A\|, V = B / \|B\|, edge bins doubled, the inverse transform of U + i V has twice the
gradients of A and B by their samples. A position that no later frame reaches is added to memory;
reflected borders go to a buffer, and are added by the same program where they belong. A frame that
is silent must have no part of the rounding errors of its partner.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from ..complex_plan import ComplexPlan, hann
from ..eager import complex_stft as eager
from ..eager.waveform import compute_dtype, sum_dtype
from ..modes import kept
from ..plan import Resolution
from .common import ceil_div, launch, on_device, readable, strides
from .fft import Split, fft, pack, twiddles, unpack
from .onchip.pairs import mirrored
from .onchip.signs import either, not_silent
from .onchip.stretches import jit, reflected

BLOCK: tl.constexpr = tl.constexpr(1024)  # samples of the waveform that are read at a time
TINY: tl.constexpr = tl.constexpr(torch.finfo(torch.float32).tiny)
# The same radices backwards, so that one code transforms there and back: half the instructions, and
# a quarter of the time to compile.
SPLITS = {
    256: Split((8, 4, 8), 32),
    512: Split((8, 8, 8), 32),
    1024: Split((8, 16, 8), 64),
    2048: Split((16, 8, 16), 128),
    4096: Split((16, 16, 16), 256),
}
REGISTERS = 168  # per thread: three programs of 128 on a multiprocessor, no spills
PROGRAMS = 4224  # warps wanted of a launch: two rounds of 16 on each of 132 multiprocessors


@triton.jit
def _places(start, hop, RADICES: tl.constexpr):
    """How far behind ``start``, modulo n, the elements of frame A in place lie; and of frame B.

    [n / R1, 2 R1], A's on the left. Neighbours but where it wraps around: that is said to the
    compiler for the order of the threads. No access is in vectors, for no address is known to be
    aligned (see ``jit``).
    """
    R1: tl.constexpr = RADICES[0]
    CHUNK: tl.constexpr = RADICES[1] * RADICES[2]
    column = tl.arange(0, 2 * R1)[None, :]
    at = column * CHUNK + tl.arange(0, CHUNK)[:, None] - start
    at = tl.where(column < R1, at, at - hop) & (R1 * CHUNK - 1)
    return tl.max_contiguous(at, [CHUNK, 1])


@triton.jit
def _pair(estimates, actuals, window, start, last, length, hop, width, RADICES: tl.constexpr):
    """The windowed differences of frames that begin at start and a hop later, if not after last."""
    begin = start + tl.where(tl.arange(0, 2 * RADICES[0])[None, :] < RADICES[0], 0, hop)
    at = _places(start, hop, RADICES)
    inside = (at < width) & (begin <= last)
    p = reflected(begin + at, length)
    e = tl.load(estimates + p, mask=inside, other=0.0).to(tl.float32)
    t = tl.load(actuals + p, mask=inside, other=0.0).to(tl.float32)
    x = unpack((e - t) * tl.load(window + at, mask=inside, other=0.0))
    return x[: RADICES[0]], x[RADICES[0] :]


@triton.jit
def _direction(re, im, gr, gi, a_sounds, b_sounds, edge):
    """U + i V where bin k of Z and bin n - k are given, and the moduli of 2A and 2B.

    Doubled at an edge bin. Below the root of the smallest normal number a quotient fades to zero.
    """
    ar, ai, br, bi = re + gr, im - gi, im + gi, gr - re
    a = ar * ar + ai * ai
    b = br * br + bi * bi
    a_inverse = tl.where(a_sounds, tl.rsqrt(tl.maximum(a, TINY)), 0.0)
    b_inverse = tl.where(b_sounds, tl.rsqrt(tl.maximum(b, TINY)), 0.0)
    a_inverse = tl.where(edge, 2 * a_inverse, a_inverse)
    b_inverse = tl.where(edge, 2 * b_inverse, b_inverse)
    return (
        ar * a_inverse - bi * b_inverse,
        ai * a_inverse + br * b_inverse,
        a * a_inverse,
        b * b_inverse,
    )


@triton.jit
def _directions(re, im, a_sounds, b_sounds):
    """U + i V of a pair's Z in all bins, and the sums of the moduli of 2A and 2B.

    The upper half of the bins repeats the lower: to exchange what is computed once would cost as
    much as the upper half's part of this exchange of Z.
    """
    R: tl.constexpr = len(re)
    c = tl.arange(0, re[0].shape[0])
    low_re, low_im, high_re, high_im = (), (), (), ()
    a_sum = tl.zeros(re[0].shape, tl.float32)
    b_sum = tl.zeros(re[0].shape, tl.float32)
    for k in tl.static_range(R // 2):
        # Bin n - k is in the mirrored column of the mirrored tensor, of column 0 one further.
        gr, gi = mirrored(re[R - 1 - k], im[R - 1 - k])
        gr = tl.where(c == 0, re[(R - k) % R], gr)
        gi = tl.where(c == 0, im[(R - k) % R], gi)
        edge = (c == 0) & (k == 0)
        xr, xi, a, b = _direction(re[k], im[k], gr, gi, a_sounds, b_sounds, edge)
        low_re += (xr,)
        low_im += (xi,)
        a_sum += a
        b_sum += b
        gr, gi = mirrored(re[k], im[k])
        gr = tl.where(c == 0, re[k + 1], gr)
        gi = tl.where(c == 0, im[k + 1], gi)
        edge = (c == 0) & (k == R // 2 - 1)
        xr, xi, a, b = _direction(re[R - 1 - k], im[R - 1 - k], gr, gi, a_sounds, b_sounds, edge)
        high_re += (xr,)
        high_im += (xi,)
        a_sum += a
        b_sum += b
    return low_re + high_re[::-1], low_im + high_im[::-1], a_sum, b_sum


@triton.jit
def _walk(
    estimates,
    actuals,
    window,
    p_twiddles,
    gradient,
    borders,
    length,
    begin,
    end,
    hop,
    width,
    scale,
    zero,
    RADICES: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """Sum of the moduli of the frames that begin at begin <= p < end; their gradient there."""
    R1: tl.constexpr = RADICES[0]
    R2: tl.constexpr = RADICES[1]
    CHUNK: tl.constexpr = R1 * R2
    N: tl.constexpr = R1 * CHUNK
    origin = (N - width) // 2 - N // 2  # where the window of the first frame begins
    reach = 1
    if GRADIENT:
        reach = width
    first = tl.maximum(begin - origin - reach + hop, 0) // hop
    held = tl.zeros([CHUNK, R1], tl.float32)
    total = tl.zeros([R1 * R2], tl.float32)
    for start in range(origin + first * hop, end, 2 * hop):
        last = origin + length
        re, im = _pair(estimates, actuals, window, start, last, length, hop, width, RADICES)
        sounding = tl.where(not_silent(re), 1, 0) | tl.where(not_silent(im), 2, 0)
        sounding = tl.reduce(sounding, 0, either)
        for inverse in range(1 + GRADIENT + zero):  # not to be unrolled
            re, im = fft(re, im, p_twiddles, R2, R1)
            if inverse == 0:
                re, im, a_sum, b_sum = _directions(re, im, sounding & 1 != 0, sounding & 2 != 0)
                re, im = im, re  # exchanged before and after, a transform is its inverse
                total += tl.where(start >= begin, a_sum, 0.0)
                total += tl.where((start + hop >= begin) & (start + hop < end), b_sum, 0.0)
        if GRADIENT:
            begun = start + zero  # places are computed again, for they would not fit the registers
            at = _places(begun, hop, RADICES)
            w = unpack(tl.load(window + at))
            y = pack(re) * pack(w[R1:]) * tl.where(sounding & 2 != 0, scale, 0.0)
            x = pack(im) * pack(w[:R1]) * tl.where(sounding & 1 != 0, scale, 0.0) + held
            # What frame B begins with is n further than what no later frame than A reaches.
            q = tl.arange(0, R1)[None, :] * CHUNK + tl.arange(0, CHUNK)[:, None]
            at = (q - begun) & (N - 1)
            done = tl.where(at < hop, x, x + y)
            held = tl.where(at < hop, y, tl.where(at < 2 * hop, 0.0, x + y))
            border = tl.where(at < -begun, -1 - begun - at, N // 2 + begun - length + at)
            inside = (at >= -begun) & (at < length - begun)
            place = tl.where(inside, gradient + (begun + at), borders + border)
            mask = (at >= begin - begun) & (at < tl.minimum(2 * hop, end - begun))
            tl.store(place, tl.load(place, mask=mask) + done, mask=mask)
    return tl.sum(total, 0) / 4


@jit
def complex_stft_kernel(
    estimates,  # [B, C, L], any row and channel stride
    actuals,  # [B, C, L], any row and channel stride
    windows,  # [resolutions, n], each window in front
    hops,  # tuples: of each resolution
    widths,  # and the length of its window
    p_twiddles,
    gradient,  # [B, C, L] float32, contiguous; written if FIRST, otherwise added to
    borders,  # [signals, n] of zeros, of reflected positions before the signal and after
    partials,  # [signals, stretches, FIRST + resolutions]: shares of the row's means
    channels,
    length,
    stretch_length,
    stretches,
    zero,  # 0, which the compiler does not know
    waveform_weight,
    weight,
    estimate_batch,
    estimate_channel,
    actual_batch,
    actual_channel,
    RADICES: tl.constexpr,
    FIRST: tl.constexpr,  # 1 if the waveform term is computed too, otherwise 0
    GRADIENT: tl.constexpr,
):
    """Shares of means and gradient of one stretch of a signal, the last with what is left."""
    N: tl.constexpr = RADICES[0] * RADICES[1] * RADICES[2]
    program = tl.program_id(0)
    stretch = program % stretches
    signal = (program // stretches).to(tl.int64)  # offsets made of it exceed 32 bits
    row, channel = signal // channels, signal % channels
    estimates += row * estimate_batch + channel * estimate_channel
    actuals += row * actual_batch + channel * actual_channel
    partials += program.to(tl.int64) * (FIRST + len(hops))
    if GRADIENT:
        gradient += signal * length
        borders += signal * N
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
            e = tl.load(estimates + at, mask=at < end, other=0.0).to(tl.float32)
            d = e - tl.load(actuals + at, mask=at < end, other=0.0).to(tl.float32)
            total += tl.abs(d)
            if GRADIENT:
                # A product where d is no number or zero.
                slope = tl.where(d > 0, scale, tl.where(d < 0, -scale, 0 * d))
                tl.store(gradient + at, slope, mask=at < end)
        tl.store(partials, tl.sum(total, 0) / (elements * length))
        if GRADIENT:
            tl.debug_barrier()  # the walk gives these places to other threads
    if stretch == 0:
        begin -= N // 2
    if stretch == stretches - 1:
        end += N // 2

    for r in range(len(hops)):
        hop, width = hops[0], widths[0]
        for k in tl.static_range(1, len(hops)):
            hop = tl.where(r == k, hops[k], hop)
            width = tl.where(r == k, widths[k], width)
        frames = length // hop + 1
        count = elements * (N // 2 + 1) * frames
        moduli = _walk(
            estimates,
            actuals,
            windows + r * N,
            p_twiddles,
            gradient,
            borders,
            length,
            begin,
            end,
            hop,
            width,
            weight / (2 * count),
            zero,
            RADICES,
            GRADIENT,
        )
        tl.store(partials + FIRST + r, moduli / count)

    if GRADIENT:
        # Position -1 - b shows sample 1 + b, position L + b sample L - 2 - b.
        for side in range(2):
            if stretch == side * (stretches - 1):
                tl.debug_barrier()
                for b in range(0, N // 2, BLOCK):
                    at = b + tl.arange(0, BLOCK)
                    there = at < N // 2
                    y = tl.load(borders + side * (N // 2) + at, mask=there)
                    p = tl.where(side == 0, 1 + at, length - 2 - at)
                    tl.store(gradient + p, tl.load(gradient + p, mask=there) + y, mask=there)


def supports(res: Resolution, dtype: torch.dtype, length: int) -> bool:
    """Whether this route computes the resolution: any window, hops of at most half a transform.

    And samples that 32 bits can count, with the borders: of one signal, for signals are many.
    """
    known = res.n_fft in SPLITS and dtype == torch.float32
    return known and 2 * res.hop_length <= res.n_fft and length < 2**31 - 2 * res.n_fft


@kept(at_most=1 << 22)
def windows(resolutions: tuple[Resolution, ...], device: torch.device) -> Tensor:
    """Of resolutions of one n_fft: [R, n], each window in front."""
    rows = [hann(res.win_length, torch.float32, device) for res in resolutions]
    n = resolutions[0].n_fft
    return torch.stack([torch.nn.functional.pad(row, (0, n - len(row))) for row in rows])


def stretches_of(n: int, signals: int, length: int) -> tuple[int, int]:
    """Samples of a stretch, and stretches of a signal.

    Reading the frames that reach into a stretch costs as much as one transform's samples more. The
    first and the last must have the samples that their borders show.
    """
    programs = PROGRAMS // ceil_div(SPLITS[n].threads, 32)
    span = min(max(2 * n, signals * length // programs), 32 * n)
    return span, max(1, length // span)


def _launch(programs: int, threads: int, **arguments: Any) -> None:
    kernel: Any = complex_stft_kernel
    if isinstance(kernel, triton.JITFunction):
        target = driver.active.get_current_target()
        if target.backend == "cuda" and target.arch < 100:
            arguments["maxnreg"] = REGISTERS
    launch(kernel, programs, threads, **arguments)


def complex_stft(
    plan: ComplexPlan, estimates: Tensor, actuals: Tensor, save: bool
) -> tuple[Tensor, Tensor | None]:
    """As the eager backend's, which computes what is not supported."""
    batch, channels, length = estimates.shape
    dtype = compute_dtype(estimates, actuals)
    if not all(supports(res, dtype, length) for res in plan.resolutions):
        return eager.complex_stft(plan, estimates, actuals, save)
    estimates, actuals = readable(estimates), readable(actuals)
    device, signals = estimates.device, batch * channels
    new: Any = {"dtype": torch.float32, "device": device}
    gradient = torch.empty(estimates.shape, **new) if save else None
    alike: dict[int, list[int]] = {}
    for i, res in enumerate(plan.resolutions):
        alike.setdefault(res.n_fft, []).append(i)

    means = {}
    with on_device(estimates):
        for n, places in alike.items():
            first = not means
            some = tuple(plan.resolutions[i] for i in places)
            stretch_length, stretches = stretches_of(n, signals, length)
            partials = torch.empty(batch, channels * stretches, first + len(places), **new)
            _launch(
                signals * stretches,
                SPLITS[n].threads,
                estimates=estimates,
                actuals=actuals,
                windows=windows(some, device),
                hops=tuple(res.hop_length for res in some),
                widths=tuple(res.win_length for res in some),
                p_twiddles=twiddles(n, device),
                gradient=gradient,
                borders=torch.zeros(signals, n, **new) if save else None,
                partials=partials,
                channels=channels,
                length=length,
                stretch_length=stretch_length,
                stretches=stretches,
                zero=0,
                waveform_weight=plan.waveform_weight,
                weight=plan.weight,
                **strides("estimate", estimates),
                **strides("actual", actuals),
                RADICES=SPLITS[n].radices,
                FIRST=int(first),
                GRADIENT=save,
            )
            rows = partials.sum(1, dtype=sum_dtype(device)).unbind(1)
            means |= zip([-1] * first + places, rows, strict=True)
    return torch.stack([means[i] for i in sorted(means)]).float(), gradient
