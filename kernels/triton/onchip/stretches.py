r"""Who does what: a program walks along a stretch of one signal, pair of frames by pair of frames.

Drawn for hop = n/4, where a frame is four hops long and a pair of them, i, reaches over five:

    hops          |2i-2 |2i-1 | 2i  |2i+1 |2i+2 |      counted from sample 0
    frame A = 2i  |===========A===========|
    frame B = 2i + 1    |===========B===========|

*Forward*, the stretch first <= i < stop:

    pairs         first-2    first-1 | first      first+1    ...   stop-1     | of the next
                  read ahead         | owned                                  | program
    each          read       read    | read, FFT, sums, signs                 |

A pair reads its last two hops and holds the others from the pairs before, so n / (2 hop) pairs are
only read before the first. Each sample is read once by a stretch, and owned, which is counted when
it is not finite, by the stretch of the pair i = p // (2 hop).

*Backward*, the stretch first <= i < stop of steps of two hops of the gradient, from position -n/2:

    steps         first-2    first-1 | first      first+1    ...   stop-1     |
                  to have frames     | owned                                  |
    each          FFT, overlap-add   | FFT, overlap-add, finish two hops      |

After step i no later frame reaches hops 2i and 2i + 1: they are finished, added to what the
gradient is already or written with the waveform's. Positions outside of the signal are its borders:

    position      -n/2 ... -1 | 0 1 2 ...  samples  ... L-1 | L ... L + n/2 - 1
                  to a buffer |          finished           | to a buffer
                        `------> 1 ... n/2     L-1-n/2 ... L-2 <------'

The first stretch and the last fold their border back, so they are long enough to own both sides.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from ...plan import Resolution
from .. import common
from ..common import ceil_div
from ..fft import SPLITS
from ..launching import Launch

LONGEST = 16  # pairs in a forward stretch: their frames have one bit each in 32


def jit(function: Callable[..., None]) -> Any:
    """A kernel that is compiled once for all lengths, strides and addresses; constants in capitals.

    Of no address is it to know that it is aligned: loading one operand in vectors would change the
    layout of all that it meets. Nor can arguments be tuples, for of their elements Triton knows.
    """
    names = [name for name in inspect.signature(function).parameters if name.islower()]
    return triton.jit(function, do_not_specialize=names)


def prepare(kernel: Any, programs: int, res: Resolution, **constants: Any) -> Launch:
    """A launch with the resolution's threads and their registers."""
    sizes = common.config()
    long_hops = 2 * res.hop_length == res.n_fft
    registers = sizes.registers_of_long_hops if long_hops else sizes.registers
    if registers is not None:
        constants["maxnreg"] = registers
    return Launch(kernel, programs, SPLITS[res.n_fft].threads, **constants)


def forward_spans(res: Resolution, signals: int, frames: int) -> tuple[int, int, int]:
    """Pairs of frames of a signal, pairs to a stretch, stretches of a signal."""
    pairs = ceil_div(frames, 2)
    programs = ceil_div(32 * common.config().forward_warps, SPLITS[res.n_fft].threads)
    span = min(LONGEST, max(2, pairs * signals // programs))
    return pairs, span, ceil_div(pairs, span)


def backward_spans(res: Resolution, signals: int, length: int) -> tuple[int, int, int]:
    """Steps of two hops of a signal and its borders, steps to a stretch, stretches of a signal."""
    steps = ceil_div(length + res.n_fft, 2 * res.hop_length)
    programs = ceil_div(32 * common.config().backward_warps, SPLITS[res.n_fft].threads)
    # The first stretch and the last must have the samples where their border belongs.
    span = max(res.n_fft // (2 * res.hop_length) + 2, min(32, steps * signals // programs))
    return steps, span, max(1, steps // span)


@triton.constexpr_function
def points(radices):
    """n, of a transform of these radices."""
    return radices[0] * radices[1] * radices[2]


@triton.jit
def signal_of(x, batch_stride, channel_stride, signal, channels):
    """The start of a signal in [B, C, L]; ``signal`` in 64 bits, which the offsets need."""
    return x + signal // channels * batch_stride + signal % channels * channel_stride


@triton.jit
def forward_stretch(stretch, span, length, HOP: tl.constexpr):
    """The pairs first <= i < stop of a stretch, and a signal's frames."""
    frames = length // HOP + 1
    first = stretch * span
    return first, tl.minimum(first + span, (frames + 1) // 2), frames


@triton.jit
def forward_stretches(span, length, HOP: tl.constexpr):
    """How many a signal has."""
    return (length // HOP + 2 * span) // (2 * span)


@triton.jit
def reflected(p, length):
    """The sample that position p of the reflected signal shows; clamped where nothing uses it."""
    last = length - 1
    return tl.maximum(last - tl.abs(last - tl.abs(p)), 0)


@triton.jit
def zeros(COUNT: tl.constexpr, SIZE: tl.constexpr):
    held = ()
    for _ in tl.static_range(COUNT):
        held += (tl.zeros([SIZE], tl.float32),)
    return held


@triton.jit
def backward_stretches(span, length, N: tl.constexpr, HOP: tl.constexpr):
    """Steps of a signal and stretches that share them; the last also has the rest of the steps."""
    steps = (length + N + 2 * HOP - 1) // (2 * HOP)
    return steps, tl.maximum(steps // span, 1)
