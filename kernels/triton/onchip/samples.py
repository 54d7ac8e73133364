"""A stretch's samples: read as the chunks that the next frames share, and counted.

``dirty`` is a stretch that is read again because its sums were not finite (see ``forward``): then
NaN is 0 and +-Inf is +-1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common import finite, sanitized
from ..fft import unpack
from .stretches import reflected

NOTED: tl.constexpr = tl.constexpr(256)  # samples counted at a time, and words of them written


@triton.jit
def chunks(samples):
    """Of t, or of e - t, from samples of t or of both."""
    x = samples[0].to(tl.float32)
    if len(samples) == 2:
        x -= samples[1].to(tl.float32)
    return unpack(x)


@triton.jit
def _load(
    waves, start, length, dirty,
    COUNT: tl.constexpr, CHUNK: tl.constexpr, SANITIZE: tl.constexpr, INSIDE: tl.constexpr,
    PREFETCH: tl.constexpr,
):  # fmt: skip
    """COUNT chunks, as ``read`` has them, from position ``start`` of the reflected signal."""
    p = tl.arange(0, COUNT)[None, :] * CHUNK + tl.arange(0, CHUNK)[:, None]  # [in chunk, chunk]
    if not INSIDE:
        p = reflected(start + p, length)
    samples = ()
    for k in tl.static_range(len(waves)):
        p_x = waves[k]
        if INSIDE:
            p_x += start
        x = tl.load(p_x + p)
        if not PREFETCH:  # which holds them in as few registers as they need
            x = x.to(tl.float32)
        if SANITIZE and not INSIDE:
            x = tl.where(dirty, sanitized(x.to(tl.float32)).to(x.dtype), x)
        samples += (x,)
    if PREFETCH:
        return samples
    else:
        return chunks(samples)


@triton.jit
def read(
    waves, i, length, dirty,
    N: tl.constexpr, HOP: tl.constexpr, CHUNK: tl.constexpr, SANITIZE: tl.constexpr,
    PREFETCH: tl.constexpr,
):  # fmt: skip
    """The chunks of e - t, or of t, that no pair before i reaches over.

    With PREFETCH they are samples of both, or of t, for a difference would wait for them.
    """
    COUNT: tl.constexpr = 2 * HOP // CHUNK
    start = i * (2 * HOP) + N // 2 - HOP
    if (start >= 0) & (start + 2 * HOP <= length) & ~dirty:
        new = _load(waves, start, length, dirty, COUNT, CHUNK, SANITIZE, True, PREFETCH)
    else:
        new = _load(waves, start, length, dirty, COUNT, CHUNK, SANITIZE, False, PREFETCH)
    return new


@triton.jit
def count_nonfinite(waves, first, stop):
    """Samples first <= p < stop of e and of t that are not finite."""
    p_e, p_t = waves
    count = tl.zeros([NOTED], tl.float32)
    at = tl.arange(0, NOTED)
    for p in range(first, stop, NOTED):
        e = tl.load(p_e + p + at, mask=p + at < stop, other=0.0)
        t = tl.load(p_t + p + at, mask=p + at < stop, other=0.0)
        count += tl.where(finite(e), 0.0, 1.0) + tl.where(finite(t), 0.0, 1.0)
    return tl.sum(count, 0)
