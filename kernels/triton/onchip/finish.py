"""Hops of the gradient that no later frame reaches: what they are added to, and where they go."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ... import plan
from ..common import COLUMNS, sign_place, signed
from ..unknown import is_known

NONFINITE: tl.constexpr = tl.constexpr(plan.NONFINITE)


class Base(NamedTuple):
    """What a resolution's gradient is added to, by kind (see the kernel's BASE).

    "signs" and "level" are the waveform's gradient, a sign(e - t) and the same + r e.
    """

    kind: str
    signs: Tensor | None = None  # as the waveform's statistics save them
    coefficients: Tensor | None = None  # [3, B]: a, unused, r


ADDED, ZERO = Base("added"), Base("zero")


@triton.jit
def _base(
    p_gradient, wave, start, j, mask,
    CHUNK: tl.constexpr, HOP: tl.constexpr, BASE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """What chunk j from ``start`` is added to: what is there, nothing, or the waveform's.

    Addresses are added up from what all threads have in common, which makes one for all chunks.
    """
    lane = tl.arange(0, CHUNK)
    if BASE == "added":
        return tl.load(p_gradient + start + j * CHUNK + lane, mask=mask)
    elif BASE == "zero":
        return tl.zeros([CHUNK], tl.float32)
    else:
        p_signs, p_e, a, r = wave
        # A sample's place is that of its hop and its place in the hop: they have no bit in common.
        word, shift = sign_place(start + j * CHUNK // HOP * HOP, LANES)
        lane_word, lane_shift = sign_place(j * CHUNK % HOP + lane, LANES)
        value = signed(tl.load(p_signs + word + lane_word, mask=mask), shift + lane_shift, a)
        if BASE == "level":
            value += r * tl.load(p_e + start + j * CHUNK + lane, mask=mask).to(tl.float32)
        return value


@triton.jit
def _known(repairs, p, mask, SIGNALS: tl.constexpr):
    """Whether samples are finite, by the notes of the forward stretches that have counted some."""
    p_unknown, p_counts, owned = repairs
    noted = tl.load(p_counts + p // owned * (SIGNALS * COLUMNS), mask=mask, other=0.0) > 0
    return is_known(p_unknown, p, mask & noted)


@triton.jit
def finish(
    done, p_gradient, wave, start,
    HOP: tl.constexpr, BASE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Hops inside of the signal, all loads before the stores, to wait for memory once."""
    CHUNK: tl.constexpr = done[0].shape[0]
    total = ()
    for j in tl.static_range(len(done)):
        total += (done[j] + _base(p_gradient, wave, start, j, None, CHUNK, HOP, BASE, LANES),)
    for j in tl.static_range(len(done)):
        tl.store(p_gradient + start + j * CHUNK + tl.arange(0, CHUNK), total[j])


@triton.jit
def finish_with_care(
    done, p_gradient, p_borders, wave, repairs, start, length, dirty,
    N: tl.constexpr, HOP: tl.constexpr, SIGNALS: tl.constexpr, BASE: tl.constexpr,
    SANITIZE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Hops that are at a border, or have samples that are not finite."""
    CHUNK: tl.constexpr = done[0].shape[0]
    for j in tl.static_range(len(done)):
        p = start + j * CHUNK + tl.arange(0, CHUNK)
        mask = (p >= 0) & (p < length)
        known = done[j]
        if SANITIZE:
            known = tl.where(_known(repairs, p, mask & dirty, SIGNALS), known, 0.0)
        known += _base(p_gradient, wave, start, j, mask, CHUNK, HOP, BASE, LANES)
        tl.store(p_gradient + p, known, mask=mask)
        border = tl.where(p < 0, -1 - p, N // 2 + p - length)
        outside = (p < 0) | ((p >= length) & (p < length + N // 2))
        tl.store(p_borders + border, done[j], mask=outside)


@triton.jit
def fold_border(
    p_gradient, p_borders, repairs, length, dirty,
    SIDE: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr,
    SIGNALS: tl.constexpr, SANITIZE: tl.constexpr,
):  # fmt: skip
    """Position -1 - b shows sample 1 + b, position L + b sample L - 2 - b."""
    tl.debug_barrier()  # after what other threads of this program have stored
    lane = tl.arange(0, CHUNK)
    for b in range(0, N // 2, CHUNK):
        y = tl.load(p_borders + SIDE * (N // 2) + b + lane)
        p = 1 + b + lane
        if SIDE == 1:
            p = length - 1 - p
        if SANITIZE:
            y = tl.where(_known(repairs, p, dirty, SIGNALS), y, 0.0)
        tl.store(p_gradient + p, tl.load(p_gradient + p) + y)


@triton.jit
def is_dirty(
    p_counts, owned, first, stop, stretches,
    N: tl.constexpr, HOP: tl.constexpr, SIGNALS: tl.constexpr,
):  # fmt: skip
    """Whether a forward stretch that owns samples of these steps has counted some."""
    begin = tl.maximum(first * (2 * HOP) - N // 2, 0) // owned
    end = tl.maximum(stop * (2 * HOP) - N // 2, 0) // owned + 1
    dirty = first < 0
    for s in range(begin, tl.minimum(end, stretches)):
        dirty = dirty | (tl.load(p_counts + s * (SIGNALS * COLUMNS)) > 0)
    return dirty
