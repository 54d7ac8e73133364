"""One STFT resolution by torch.fft, for any transform and any dtype.

Frames and spectra go through memory, in slabs that bound how much of them exists at a time:

    statistics   frame -> rfft -> sums and signs
    gradient     signs -> spectra -> ifft -> overlap-add
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..plan import NONFINITE, Objective, Resolution
from . import common
from .common import COLUMNS, PLANES, block_count, ceil_div, split
from .frames import Slab, frame, overlap_add
from .launching import Launch, Waves, prepared
from .spectrum import sign_words, spectrum_gradient, spectrum_statistics

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


class Part(NamedTuple):
    """A slab's launches, the shape of its frames, and where it writes."""

    frame: Launch
    spectrum: Launch
    framed: tuple[int, int, int, int]
    edges: tuple[slice, slice]
    tallies: tuple[slice, slice]  # of the partial sums, the frames'
    sums: tuple[slice, slice]  # the spectra's
    signs: tuple[slice, slice]


@prepared
def _statistics(
    given: Waves, res: Resolution, term: Objective, save: bool, sanitize: bool
) -> tuple[list[Part], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The slabs, and the shapes of sums, signs and edge bins."""
    length = given.shape[-1]
    signals, count = given.signals, res.frames(length)
    transforms = 1 if term.pure_l1 else 2
    block = PLANES.value * common.config().lanes

    # A frame and its spectrum exist together, of e - t and of t.
    todo = slabs(signals, count, 2 * transforms * res.n_fft * given.dtype.itemsize)
    _, together, _, span = todo[0]
    tallies = split(together, span, res.n_fft)
    sums = split(together, block_count(span * 2 * res.bins), block)
    tallied = tallies[0] if term.has_level or sanitize else 0
    rows = tallied + sums[0]
    partials = (signals, ceil_div(count, span) * rows, COLUMNS.value)
    stride = partials[1] * partials[2]

    def part(slab: Slab) -> Part:
        own, frames = slab.span
        row = slab.first_frame // span * rows
        word = slab.first_frame * 2 * res.bins // block * common.config().lanes
        return Part(
            frame(given, res, slab, term, save, sanitize, tallies, stride),
            spectrum_statistics(given, res, slab, term, save, sums, stride),
            framed=(transforms, slab.signals, slab.frames, res.n_fft),
            edges=(own, frames),
            tallies=(own, slice(row, row + tallied)),
            sums=(own, slice(row + tallied, row + rows)),
            signs=(own, slice(word, None)),
        )

    signs = (signals, sign_words(res, length))
    return [part(slab) for slab in todo], partials, signs, (signals, count, 2)


@prepared
def _gradient(
    given: Waves, res: Resolution, term: Objective, sanitize: bool
) -> list[tuple[Launch, Launch, tuple[int, int, int]]]:
    """Of each slab its launches, and the shape of the spectra."""
    n, level = res.n_fft, term.has_level
    return [
        (
            spectrum_gradient(given, res, slab, level),
            overlap_add(given, res, slab, level, sanitize),
            (slab.pairs, n, 2),
        )
        for slab in slabs(given.signals, res.frames(given.shape[-1]), 2 * n * given.dtype.itemsize)
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
    parts, *shapes = _statistics(given, res, term, save, sanitize)
    partials = estimates.new_empty(shapes[0], dtype=given.dtype)
    signs = estimates.new_empty(shapes[1], dtype=torch.int32) if save else None
    edges = partials.new_empty(shapes[2]) if save and term.has_level else None

    def one(part: Part) -> None:
        framed = partials.new_empty(part.framed)
        part.frame(
            estimates=estimates,
            actuals=actuals,
            framed=framed,
            partials=partials[part.tallies],
            edges=None if edges is None else edges[part.edges],
        )
        part.spectrum(
            spectra=torch.view_as_real(torch.fft.rfft(framed)),
            partials=partials[part.sums],
            signs=None if signs is None else signs[part.signs],
        )

    for part in parts:
        one(part)  # whose frames and spectra are gone before the next one's
    if sanitize and res.hop_length > res.pad:
        partials[:, 0, NONFINITE] += nonfinite_outside_of_frames(estimates, actuals, res)
    return partials.view(given.shape[0], -1, COLUMNS.value), (signs, edges)


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

    def one(spectrum: Launch, overlap: Launch, shape: tuple[int, int, int]) -> None:
        spectra = gradient.new_empty(shape)
        spectrum(spectra=spectra, signs=signs, edges=edges, coefficients=coefficients)
        framed = torch.fft.ifft(torch.view_as_complex(spectra), norm="forward")
        overlap(
            framed=torch.view_as_real(framed),
            estimates=estimates,
            coefficients=coefficients,
            unknown=unknown,
            gradient=gradient,
        )

    for part in _gradient(given, res, term, unknown is not None):
        one(*part)
