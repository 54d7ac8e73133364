"""Which samples of the estimates are not finite, a bit each: the backward does not read them again.

int32 [signals, ceil(L / 32)]: bit p % 32 of word p // 32 is set where sample p is not finite. The
on-chip route writes only the words of a stretch in which it has found one, and reads only those.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common
from .common import ceil_div, finite, jit, place
from .launching import Launch, Waves, prepared

BITS: tl.constexpr = tl.constexpr(32)


@triton.jit
def store_unknown(p_e, p_unknown, first, stop, WORDS: tl.constexpr):
    """Write so many words of a signal's samples from ``first``, which is a word's, up to ``stop``.

    A thread reads the samples of its word one by one: nothing moves between threads.
    """
    start = first + tl.arange(0, WORDS) * BITS
    words = tl.zeros([WORDS], tl.int32)
    for bit in range(BITS):
        e = tl.load(p_e + start + bit, mask=start + bit < stop, other=0.0)
        words |= (finite(e) == 0).to(tl.int32) << bit
    tl.store(p_unknown + start // BITS, words, mask=start < stop)


@triton.jit
def is_known(p_unknown, p, mask):
    """Whether the samples at ``p`` of a signal are finite; so they count where ``mask`` is not."""
    return (tl.load(p_unknown + p // BITS, mask=mask, other=0) >> (p % BITS)) & 1 == 0


@jit
def unknown_kernel(
    estimates,  # [B, C, L], any row and channel stride
    unknown,  # [B C, words], written
    estimate_batch,
    estimate_channel,
    channels,
    length,
    words,  # per signal
    blocks,  # per signal, one program each
    LANES: tl.constexpr,  # words of a block
):
    block, signal, row, channel = place(blocks, 0, channels)
    p_e = estimates + (row * estimate_batch + channel * estimate_channel)
    first = block * (LANES * BITS)
    store_unknown(p_e, unknown + signal * words, first, length, LANES)


def unknown_words(length: int) -> int:
    """Of a signal."""
    return ceil_div(length, BITS.value)


@prepared
def _find(given: Waves) -> Launch:
    _, channels, length = given.shape
    words, lanes = unknown_words(length), common.config().lanes
    blocks = ceil_div(words, lanes)
    return Launch(
        unknown_kernel,
        programs=given.signals * blocks,
        threads=lanes,
        **given.strides("estimate"),
        channels=channels,
        length=length,
        words=words,
        blocks=blocks,
        LANES=lanes,
    )


def new_unknown(given: Waves, estimates: Tensor) -> Tensor:
    shape = given.signals, unknown_words(given.shape[-1])
    return estimates.new_empty(shape, dtype=torch.int32)


def find_unknown(given: Waves, estimates: Tensor, unknown: Tensor) -> None:
    """Write all of the words."""
    _find(given)(estimates=estimates, unknown=unknown)
