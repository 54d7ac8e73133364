"""One STFT resolution without a spectrum in memory: waveforms in, sums and signs out, and back.

A room for each thing: who does what (``stretches``), its samples (``samples``), two frames in one
transform (``pairs``), the signs' words (``signs``), the way there (``forward``), its levels
(``level``), the way back (``backward``) and where that ends (``finish``).

A pair of frames consumes, or completes, two hops: that is why a hop must be a whole number of the
chunks in which ``fft`` holds a signal, and why a chunk is read or written once per stretch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...plan import Objective, Resolution
from ..common import COLUMNS
from ..fft import SPLITS
from ..launching import Launch, Waves, prepared
from . import backward, forward, level
from .finish import ADDED, ZERO, Base
from .stretches import backward_spans, forward_spans

__all__ = ["ADDED", "SAVED", "ZERO", "Base", "stft_gradient", "stft_statistics", "supports"]

SAVED = 3  # tensors that stft_statistics saves: signs, edge bins, partial sums


def supports(res: Resolution, dtype: torch.dtype, length: int) -> bool:
    """Whether this route computes the resolution: hops of whole chunks, two or more to a frame.

    And samples that 32 bits can count, with the borders: of one signal, for signals are many.
    """
    if res.n_fft not in SPLITS or dtype == torch.float64 or length >= 2**31 - 2 * res.n_fft:
        return False
    chunk = res.n_fft // SPLITS[res.n_fft].radices[0]
    hop = res.hop_length
    return res.n_fft % hop == 0 and hop % chunk == 0 and 2 * hop <= res.n_fft


def _kinds(term: Objective) -> int:
    """Spectra that are summed: D, and T where the loss relates the one to the other."""
    return 1 if term.pure_l1 else 2


@prepared
def _statistics(
    given: Waves, res: Resolution, term: Objective, save: bool, sanitize: bool
) -> tuple[Launch, Launch | None, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The launches (the levels' is one or none), and the shapes of sums, signs and edge bins."""
    batch, channels, length = given.shape
    frames, kinds = res.frames(length), _kinds(term)
    pairs, span, stretches = forward_spans(res, kinds * given.signals, frames)
    sums = (batch, channels * stretches * kinds, COLUMNS.value)
    last = SPLITS[res.n_fft].radices[2]
    signs = (given.signals, pairs, last // 8, res.n_fft // last)
    programs = given.signals * stretches * kinds
    spectra = forward.statistics(given, res, programs, span, kinds, save, sanitize)
    levels = level.energies(given, res, programs, span, save, sanitize) if term.has_level else None
    return spectra, levels, sums, signs, (given.signals, frames, 2)


@prepared
def _gradient(
    given: Waves, res: Resolution, term: Objective, sanitize: bool, base: str
) -> tuple[Launch, tuple[int, ...]]:
    """The launch, and the shape of the borders."""
    kinds, (_, _, length) = _kinds(term), given.shape
    _, read_span, _ = forward_spans(res, kinds * given.signals, res.frames(length))
    _, span, stretches = backward_spans(res, given.signals, length)
    spans = (span, stretches, read_span)
    launch = backward.gradient(given, res, spans, kinds, term.has_level, sanitize, base)
    return launch, (given.signals, res.n_fft)


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

    Of stretches with samples that are not finite, ``unknown`` is written (with both save and
    sanitize).
    """
    spectra, levels, *shapes = _statistics(given, res, term, save, sanitize)
    partials = estimates.new_empty(shapes[0], dtype=torch.float32)
    signs = estimates.new_empty(shapes[1], dtype=torch.int32) if save else None
    spectra(estimates=estimates, actuals=actuals, signs=signs, unknown=unknown, partials=partials)
    edges = None
    if levels is not None:
        edges = estimates.new_empty(shapes[2], dtype=torch.float32) if save else None
        levels(estimates=estimates, actuals=actuals, edges=edges, partials=partials)
    return partials, (signs, edges, partials if save and sanitize else None)


def stft_gradient(
    given: Waves,
    saved: tuple[Tensor | None, ...],
    coefficients: Tensor,
    estimates: Tensor,
    res: Resolution,
    term: Objective,
    unknown: Tensor | None,
    gradient: Tensor,
    base: Base = ADDED,
) -> None:
    """Add the adjoint STFT of a_re sign Re D + i a_im sign Im D, and r dQ_est/2de, to ``gradient``.

    ``coefficients`` is [3, B]: a_re, a_im, r. ``gradient`` is [B, C, L], contiguous float32. With
    another ``base`` it is written: what is there is not read. Samples that are ``unknown`` get
    nothing (None: there are none).
    """
    signs, edges, partials = saved
    launch, borders = _gradient(given, res, term, unknown is not None, base.kind)
    launch(
        signs=signs,
        edges=edges,
        partials=partials,
        unknown=unknown,
        coefficients=coefficients,
        wave_signs=base.signs,
        wave_coefficients=base.coefficients,
        estimates=estimates,
        borders=gradient.new_empty(borders),
        gradient=gradient,
    )
