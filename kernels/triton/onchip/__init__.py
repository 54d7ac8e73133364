"""One STFT resolution without a spectrum in memory: waveforms in, sums and signs out, and back.

A room for each thing: who does what (``stretches``), two frames in one transform (``pairs``), the
signs' words (``signs``), the way there (``forward``), its levels (``level``), the way back
(``backward``) and where that ends (``finish``).

A pair of frames consumes, or completes, two hops: that is why a hop must be a whole number of the
chunks in which ``fft`` holds a signal, and why a chunk is read or written once per stretch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...plan import Objective, Resolution
from ..common import new_partials
from ..fft import SPLITS
from . import backward, forward, level
from .finish import Base
from .stretches import backward_spans, forward_spans

__all__ = ["SAVED", "Base", "stft_gradient", "stft_statistics", "supports"]

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


def stft_statistics(
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
    batch, channels, length = estimates.shape
    signals, frames, kinds = batch * channels, res.frames(length), _kinds(term)
    pairs, span, stretches = forward_spans(res, kinds * signals, frames)
    partials = new_partials(estimates, signals, stretches * kinds, torch.float32)
    signs = edges = None
    if save:
        last = SPLITS[res.n_fft].radices[2]
        shape = (signals, pairs, last // 8, res.n_fft // last)
        signs = estimates.new_empty(shape, dtype=torch.int32)
        if term.has_level:
            edges = estimates.new_empty(signals, frames, 2, dtype=torch.float32)
    forward.statistics(estimates, actuals, res, signs, unknown, partials, span, kinds, sanitize)
    if term.has_level:
        level.energies(estimates, actuals, res, edges, partials, span, sanitize)
    kept = partials if save and sanitize else None
    return partials.view(batch, -1, partials.shape[-1]), (signs, edges, kept)


def stft_gradient(
    saved: tuple[Tensor | None, ...],
    coefficients: Tensor,
    estimates: Tensor,
    res: Resolution,
    term: Objective,
    unknown: Tensor | None,
    gradient: Tensor,
    base: Base | None = None,
) -> None:
    """Add the adjoint STFT of a_re sign Re D + i a_im sign Im D, and r dQ_est/2de, to ``gradient``.

    ``coefficients`` is [3, B]: a_re, a_im, r. ``gradient`` is [B, C, L], contiguous float32. With a
    ``base`` it is written: what is there is not read. Samples that are ``unknown`` get nothing
    (None: there are none).
    """
    signs, edges, partials = saved
    batch, channels, length = estimates.shape
    signals, frames, kinds = batch * channels, res.frames(length), _kinds(term)
    _, read_span, _ = forward_spans(res, kinds * signals, frames)
    _, span, stretches = backward_spans(res, signals, length)
    backward.gradient(
        signs,
        edges,
        partials,
        unknown,
        coefficients,
        base,
        estimates,
        res,
        gradient,
        (span, stretches, read_span),
        kinds,
        term.has_level,
    )
