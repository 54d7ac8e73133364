r"""Complex spectra on-chip: mean moduli of D = STFT(e - t) and their gradient, from one reading.

First the differences are written, with their borders reflected: what follows reads frames as they
lie in memory, of one dtype. Then a program owns a stretch of positions of one signal, and for each
resolution walks along the frames that reach it. A step is one complex transform of n points there
and back, of either

- a pair of frames A and B of n samples, a hop apart, as the real and the imaginary part of z;
- or one frame of 2 n samples, its even samples A as the real part, its odd ones B as the imaginary.

Either way 2 A_k = Z_k + conj Z_{n-k} and 2 i B_k = Z_k - conj Z_{n-k} (``onchip.pairs``). A pair's
frames have the directions U = A / \|A\| and V = B / \|B\|, edge bins doubled; U + i V, transformed
back, has twice the gradients of A and B by their samples. A double frame has bins
A_k + w^k B_k and, n further, A_k - w^k B_k with w = exp(-pi i / n). With their directions U and V,
U + V + i w^{-k} (U - V), transformed back, has twice the gradients of even and of odd samples.

After each frame the hop that no later frame reaches is added to memory, and the others move up by a
hop through shared memory. Reflected borders go to a buffer, and are added by the same program where
they belong. A frame that is silent must have no part of the rounding errors of its partner.
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
from .onchip.stretches import jit, points, reflected, signal_of

BLOCK: tl.constexpr = tl.constexpr(1024)  # samples of the waveform that are read at a time
TINY: tl.constexpr = tl.constexpr(torch.finfo(torch.float32).tiny)
# The same radices backwards, so that one code transforms there and back: half the instructions, and
# a quarter of the time to compile.
SPLITS = {
    256: Split((8, 4, 8), 32),
    512: Split((8, 8, 8), 32),
    1024: Split((8, 16, 8), 64),
    2048: Split((16, 8, 16), 128),
}
SIZES = {*SPLITS, *(2 * n for n in SPLITS)}  # of frames
REGISTERS = 168  # per thread: three programs of 128 on a multiprocessor, no spills
PROGRAMS = 1584  # warps wanted of a launch: 12 on each of 132 multiprocessors, all at once


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
def _directions(re, im, p_halves, DOUBLE: tl.constexpr):
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


@triton.jit
def _add(place, x, mask):
    tl.store(place, tl.load(place, mask=mask) + x, mask=mask)


@triton.jit
def _finish(x, at, start, gradient, borders, begin, end, hop, length):
    """Add to memory elements at < hop of a frame that begins at ``start``, if in the stretch."""
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
def _walk(
    differences,
    window,
    p_twiddles,
    p_halves,
    gradient,
    borders,
    begin,
    end,
    length,
    hop,
    width,
    scale,
    zero,
    RADICES: tl.constexpr,
    DOUBLE: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """Sum of the moduli of the frames that begin at begin <= p < end; their gradient there."""
    R1: tl.constexpr = RADICES[0]
    R2: tl.constexpr = RADICES[1]
    N: tl.constexpr = points(RADICES)
    HALF: tl.constexpr = N * (1 + DOUBLE) // 2  # of a frame
    begin = tl.where(begin == 0, -HALF, begin)
    end = tl.where(end == length, length + HALF, end)
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
            sounding = tl.where(not_silent(re), 1, 0) | tl.where(not_silent(im), 2, 0)
            sounding = tl.reduce(sounding, 0, either)
            a_sounds, b_sounds = sounding & 1 != 0, sounding & 2 != 0
        for inverse in range(1 + GRADIENT + zero):  # not to be unrolled
            powers = (
                p_twiddles  # of double frames made anew in each round, as addresses in each step
            )
            if DOUBLE:
                powers += inverse & zero
            re, im = fft(re, im, powers, R2, R1)
            if inverse == 0:
                re, im, a, b = _directions(re, im, table, DOUBLE)
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
                held += scale * x * tl.load(w + at)
                odd += scale * y * tl.load(w + 1 + at)
                _finish(held, at, start, gradient, borders, begin, end, hop, length)
                _finish(odd, at, start + 1, gradient, borders, begin, end, hop - 1, length)
                further = _interleaved(at, at + 1)
                both = _further(_interleaved(held, odd), further, hop + changing)
                held, odd = tl.split(tl.reshape(both, [N, 2]))
            else:
                held += tl.where(a_sounds, scale, 0.0) * x * tl.load(w + at)
                _finish(held, at, start, gradient, borders, begin, end, hop, length)
                held = _further(held, at, hop)
                held += tl.where(b_sounds, scale, 0.0) * y * tl.load(w + at)
                _finish(held, at, second, gradient, borders, begin, end, hop, length)
                held = _further(held, at, hop)
    return tl.sum(total, 0) / 4


@triton.jit
def _of(values, r):
    """values[r]."""
    chosen = values[0]
    for k in tl.static_range(1, len(values)):
        chosen = tl.where(r == k, values[k], chosen)
    return chosen


@triton.jit
def _walks(
    differences,
    windows,
    hops,
    widths,
    p_twiddles,
    p_halves,
    gradient,
    borders,
    partials,
    begin,
    end,
    length,
    elements,
    weight,
    zero,
    FROM: tl.constexpr,
    TO: tl.constexpr,
    SIZE: tl.constexpr,
    RADICES: tl.constexpr,
    DOUBLE: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """The walks of resolutions FROM <= r < TO, whose shares of the means are stored."""
    HALF: tl.constexpr = points(RADICES) * (1 + DOUBLE) // 2
    for r in range(FROM, TO):
        hop = _of(hops, r)
        count = elements * (HALF + 1) * (length // hop + 1)
        moduli = _walk(
            differences,
            windows + r * SIZE,
            p_twiddles,
            p_halves,
            gradient,
            borders,
            begin,
            end,
            length,
            hop,
            _of(widths, r),
            weight / (2 * count),
            zero,
            RADICES,
            DOUBLE,
            GRADIENT,
        )
        tl.store(partials + r, moduli / count)


@jit
def difference_kernel(
    estimates,  # [B, C, L], any row and channel stride
    actuals,  # [B, C, L], any row and channel stride
    differences,  # [signals, L + 2 border] float32, contiguous
    channels,
    length,
    border,
    blocks,  # of a signal
    estimate_batch,
    estimate_channel,
    actual_batch,
    actual_channel,
):
    """e - t, reflected at its ends."""
    program = tl.program_id(0)
    signal = (program // blocks).to(tl.int64)  # offsets made of it exceed 32 bits
    estimates = signal_of(estimates, estimate_batch, estimate_channel, signal, channels)
    actuals = signal_of(actuals, actual_batch, actual_channel, signal, channels)
    padded = length + 2 * border
    at = program % blocks * BLOCK + tl.arange(0, BLOCK)
    p = reflected(at - border, length)
    d = tl.load(estimates + p).to(tl.float32) - tl.load(actuals + p).to(tl.float32)
    tl.store(differences + signal * padded + at, d, mask=at < padded)


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

    p_means = partials + FIRST
    # In this order, for double frames leave no registers to what the others need.
    _walks(
        differences, windows, hops, widths, p_twiddles, p_halves, gradient, borders, p_means,
        begin, end, length, elements, weight, zero,
        DOUBLES, len(hops), SIZE, RADICES, False, GRADIENT,
    )  # fmt: skip
    _walks(
        differences, windows, hops, widths, p_twiddles, p_halves, gradient, borders, p_means,
        begin, end, length, elements, weight, zero,
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


def supports(res: Resolution, dtype: torch.dtype, length: int) -> bool:
    """Whether this route computes the resolution: any window, hops of at most half a transform.

    And samples that 32 bits can count, with the borders: of one signal, for signals are many.
    """
    known = res.n_fft in SIZES and dtype == torch.float32
    return known and 2 * res.hop_length <= res.n_fft and length < 2**31 - 2 * res.n_fft


@kept(at_most=1 << 22)
def windows(resolutions: tuple[Resolution, ...], device: torch.device) -> Tensor:
    """[R, size of the largest transform], each window in front."""
    rows = [hann(res.win_length, torch.float32, device) for res in resolutions]
    size = max(res.n_fft for res in resolutions)
    return torch.stack([torch.nn.functional.pad(row, (0, size - len(row))) for row in rows])


def launches(resolutions: tuple[Resolution, ...]) -> list[tuple[int, list[int]]]:
    """Transforms, and the places of the resolutions whose frames they do, those of 2 n first.

    The shortest transform that is left and its double go together.
    """
    left = sorted(range(len(resolutions)), key=lambda i: -resolutions[i].n_fft)
    found = []
    while left:
        n = min(resolutions[left[-1]].n_fft, max(SPLITS))
        some = [i for i in left if resolutions[i].n_fft in (n, 2 * n)]
        found.append((n, some))
        left = [i for i in left if i not in some]
    return found


def stretches_of(n: int, signals: int, length: int) -> tuple[int, int]:
    """Samples of a stretch, and stretches of a signal.

    What a longer stretch saves is frames that reach into two. The first and the last must have the
    samples that their borders show.
    """
    programs = PROGRAMS // ceil_div(SPLITS[n].threads, 32)
    span = min(max(2 * n, signals * length // programs), 32 * n)
    stretches = max(1, length // span)
    return length // stretches, stretches


def difference(estimates: Tensor, actuals: Tensor, border: int) -> Tensor:
    """e - t of waveforms [B, C, L], [signals, L + 2 border]."""
    batch, channels, length = estimates.shape
    padded = length + 2 * border
    blocks = ceil_div(padded, BLOCK.value)
    out = estimates.new_empty(batch * channels, padded, dtype=torch.float32)
    launch(
        difference_kernel,
        batch * channels * blocks,
        128,
        estimates=estimates,
        actuals=actuals,
        differences=out,
        channels=channels,
        length=length,
        border=border,
        blocks=blocks,
        **strides("estimate", estimates),
        **strides("actual", actuals),
    )
    return out


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
    device, signals = estimates.device, batch * channels
    new: Any = {"dtype": torch.float32, "device": device}
    gradient = torch.empty(estimates.shape, **new) if save else None
    border = max(res.pad for res in plan.resolutions)
    means = {}
    with on_device(estimates):
        differences = difference(readable(estimates), readable(actuals), border)
        for n, places in launches(plan.resolutions):
            first = not means
            some = tuple(plan.resolutions[i] for i in places)
            stretch_length, stretches = stretches_of(n, signals, length)
            partials = torch.empty(batch, channels * stretches, first + len(places), **new)
            _launch(
                signals * stretches,
                SPLITS[n].threads,
                differences=differences,
                windows=windows(some, device),
                hops=tuple(res.hop_length for res in some),
                widths=tuple(res.win_length for res in some),
                p_twiddles=twiddles(n, device),
                p_halves=twiddles(2 * n, device),
                gradient=gradient,
                borders=torch.zeros(signals, some[0].n_fft, **new) if save else None,
                partials=partials,
                channels=channels,
                length=length,
                border=border,
                stretch_length=stretch_length,
                stretches=stretches,
                zero=0,
                waveform_weight=plan.waveform_weight,
                weight=plan.weight,
                RADICES=SPLITS[n].radices,
                DOUBLES=sum(res.n_fft > n for res in some),
                FIRST=int(first),
                GRADIENT=save,
            )
            rows = partials.sum(1, dtype=sum_dtype(device)).unbind(1)
            means |= zip([-1] * first + places, rows, strict=True)
    return torch.stack([means[i] for i in sorted(means)]).float(), gradient
