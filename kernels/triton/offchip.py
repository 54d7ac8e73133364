"""One STFT resolution by torch.fft, for any transform and any dtype.

Frames and spectra go through memory, in slabs that bound how much of them exists at a time:

    statistics   frame -> rfft -> sums and signs
    gradient     signs -> spectra -> ifft -> overlap-add
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan import NONFINITE, Objective, Resolution
from . import common
from .common import PLANES, block_count, ceil_div, new_partials, split
from .frames import Slab, frame, overlap_add
from .launching import Waves
from .spectrum import spectrum_gradient, spectrum_statistics

SAVED = 2  # tensors that stft_statistics saves: the signs and the edge bins


def slabs(signals: int, frames: int, frame_bytes: int) -> list[Slab]:
    """Frames in equal groups of whole signals, or in spans of one signal where that is too long."""
    room = common.config().transient // frame_bytes
    # A span's codes are whole blocks, because a frame has an even number of them.
    step = PLANES.value * common.config().lanes // 2
    if frames > max(room, step):
        step *= max(1, room // step)
        return [
            Slab(signal, 1, first, min(step, frames - first))
            for signal in range(signals)
            for first in range(0, frames, step)
        ]
    together = max(1, room // frames)
    together = ceil_div(signals, ceil_div(signals, together))
    return [
        Slab(first, min(together, signals - first), 0, frames)
        for first in range(0, signals, together)
    ]


def stft_statistics(
    given: Waves,
    estimates: Tensor,
    actuals: Tensor,
    res: Resolution,
    term: Objective,
    save: bool,
    sanitize: bool,
    unknown: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Partial sums [B, chunks, COLUMNS] of one resolution; saved: signs of D, edge bins of E.

    Which samples are ``unknown`` is found out before, not here.
    """
    batch, _, length = given.shape
    signals, count = given.signals, res.frames(length)
    dtype, level = given.dtype, term.has_level
    transforms = 1 if term.pure_l1 else 2
    block = PLANES.value * common.config().lanes

    # A frame and its spectrum exist together, of e - t and of t.
    todo = slabs(signals, count, 2 * transforms * res.n_fft * dtype.itemsize)
    _, together, _, span = todo[0]
    tallies = split(together, span, res.n_fft)
    sums = split(together, block_count(span * 2 * res.bins), block)
    tallied = tallies[0] if level or sanitize else 0
    rows = tallied + sums[0]
    partials = new_partials(estimates, signals, ceil_div(count, span) * rows, dtype)
    signs = edges = None
    if save:
        words = block_count(count * 2 * res.bins) * common.config().lanes
        signs = estimates.new_empty(signals, words, dtype=torch.int32)
        if level:
            edges = estimates.new_empty(signals, count, 2, dtype=dtype)

    def one(slab: Slab) -> None:
        own, frames = slab.span
        row = slab.first_frame // span * rows
        part = partials[own, row : row + rows]
        framed = partials.new_empty(transforms, slab.signals, slab.frames, res.n_fft)
        frame(
            estimates,
            actuals,
            res,
            slab,
            framed,
            partials=part[:, :tallied],
            edges=None if edges is None else edges[own, frames],
            chunks=tallies,
            level=level,
            sanitize=sanitize,
        )
        spectra = torch.view_as_real(torch.fft.rfft(framed))
        word = slab.first_frame * 2 * res.bins // block * common.config().lanes
        spectrum_statistics(
            spectra,
            partials=part[:, tallied:],
            signs=None if signs is None else signs[own, word:],
            chunks=sums,
        )

    for slab in todo:
        one(slab)  # whose frames and spectra are gone before the next slab's
    if sanitize and res.hop_length > res.pad:
        partials[:, 0, NONFINITE] += nonfinite_outside_of_frames(estimates, actuals, res)
    return partials.view(batch, -1, partials.shape[-1]), (signs, edges)


def nonfinite_outside_of_frames(estimates: Tensor, actuals: Tensor, res: Resolution) -> Tensor:
    """How many per signal: of samples between frames and behind the last, if hops are so long."""
    at = torch.arange(res.pad, res.pad + estimates.shape[-1], device=estimates.device)
    frame = (at // res.hop_length).clamp(max=res.frames(estimates.shape[-1]) - 1)
    outside = at - frame * res.hop_length >= res.n_fft
    bad_e, bad_t = (~x.isfinite() & outside for x in (estimates, actuals))
    return (bad_e.sum(-1) + bad_t.sum(-1)).flatten()


def stft_gradient(
    given: Waves,
    saved: tuple[Tensor | None, ...],
    coefficients: Tensor,
    estimates: Tensor,
    res: Resolution,
    term: Objective,
    unknown: Tensor | None,
    gradient: Tensor,
) -> None:
    """Add the adjoint STFT of a_re sign Re D + i a_im sign Im D, and r dQ_est/2de, to ``gradient``.

    ``coefficients`` is [3, B]: a_re, a_im, r. ``gradient`` is [B, C, L], contiguous, in the dtype
    of the computation; samples that are ``unknown`` get nothing (None: there are none).
    """
    signs, edges = saved
    assert signs is not None
    _, channels, length = given.shape
    n = res.n_fft

    def one(slab: Slab) -> None:
        spectra = gradient.new_empty(slab.pairs, n, 2)
        spectrum_gradient(signs, edges, coefficients, channels, res, slab, spectra)
        framed = torch.fft.ifft(torch.view_as_complex(spectra), norm="forward")
        overlap_add(
            torch.view_as_real(framed),
            estimates,
            coefficients,
            res,
            slab,
            gradient,
            level=term.has_level,
            unknown=unknown,
        )

    for slab in slabs(given.signals, res.frames(length), 2 * n * gradient.dtype.itemsize):
        one(slab)
