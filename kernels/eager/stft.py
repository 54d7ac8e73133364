r"""STFT domain: sums and signs of the spectra, and the adjoint that turns signs into a gradient.

Signals are transformed in blocks of frames that stay in cache, D = STFT(e - t) and T = STFT(t) in
one batched FFT. Of a spectrum only the three-state signs of D are kept, in int8.

The level of a spectrum needs no magnitudes. For a windowed frame x of even length n,

.. math:: \sum_{k \le n/2} |X_k|^2 = (n \sum x^2 + X_0^2 + X_{n/2}^2) / 2

(odd n has no X_{n/2}); and summed over frames, x^2 is the waveform squared under weights: the
overlap-added squared window, its borders folded back.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from ..plan import COLUMNS, ERR_RE, Q_EST, Q_REF, REF_RE, Objective, Resolution
from .waveform import compute_dtype, sum_dtype
from .workspace import scratch

BLOCK = 1 << 19  # samples in the frames of a block, over both signals


def groups(signals: int, frames: int, n_fft: int) -> Iterator[tuple[slice, list[slice]]]:
    """Signals that are handled together, and the blocks of frames within them."""
    together = max(1, BLOCK // (frames * n_fft))
    step = max(1, BLOCK // n_fft)
    spans = [slice(f, min(f + step, frames)) for f in range(0, frames, step)]
    for s in range(0, signals, together):
        yield slice(s, min(s + together, signals)), spans


def reflect(x: Tensor, pad: int) -> None:
    """Fill the borders of padded signals [..., L + 2 pad] by reflection."""
    if pad:
        x[..., :pad] = x[..., pad + 1 : 2 * pad + 1].flip(-1)
        x[..., -pad:] = x[..., -2 * pad - 1 : -pad - 1].flip(-1)


def fold(x: Tensor, length: int, pad: int) -> Tensor:
    """Adjoint of the reflect padding: the borders are added back where they came from."""
    inner = x[:, pad : pad + length]
    if pad:
        inner[:, 1 : pad + 1] += x[:, :pad].flip(-1)
        inner[:, length - 1 - pad : length - 1] += x[:, pad + length :].flip(-1)
    return inner


def overlap_add(out: Tensor, frames: Tensor, window: Tensor, hop: int, first: int) -> None:
    """Add window * frames [S, F, n], of which the first is frame ``first``, to ``out`` [S, L]."""
    count, n = frames.shape[-2:]
    for j in range(0, n, hop):
        piece = frames[..., j : j + hop]
        # Pieces no longer than a hop do not overlap, so each is one in-place pass.
        place = out[:, j:].unfold(-1, piece.shape[-1], hop)[:, first : first + count]
        place.addcmul_(piece, window[j : j + hop])


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # an inference tensor could not be used in training later
def frame_weights(res: Resolution, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sum over frames of the squared window on each sample, [L]; never to be written."""
    window = res.window(dtype, device)
    out = window.new_zeros(1, length + 2 * res.pad)
    frames = window.expand(1, res.frames(length), res.n_fft)
    overlap_add(out, frames, window, res.hop_length, 0)
    return fold(out, length, res.pad)[0].contiguous()


def edge_bins(spectrum: Tensor, res: Resolution) -> Tensor:
    """Real parts of the bins at 0 and (even n_fft) n_fft / 2: [..., 1 or 2]."""
    real = spectrum[..., 0]
    return real[..., :: res.n_fft // 2] if res.n_fft % 2 == 0 else real[..., :1]


def stft_statistics(
    estimates: Tensor, actuals: Tensor, res: Resolution, term: Objective, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Partial sums [B, chunks, COLUMNS] of one resolution, the signs of D and E's edge bins."""
    batch, channels, length = estimates.shape
    dtype = compute_dtype(estimates, actuals)
    e, t = estimates.flatten(0, 1), actuals.flatten(0, 1)
    wide = sum_dtype(e.device)
    frames, n, bins = res.frames(length), res.n_fft, res.bins
    window = res.window(dtype, e.device)
    weights = frame_weights(res, length, dtype, window.device) if term.regularize else None

    plan = list(groups(batch * channels, frames, n))
    partials = e.new_zeros(batch * channels, len(plan[0][1]), COLUMNS, dtype=wide)
    signs = e.new_empty(batch * channels, frames, bins, 2, dtype=torch.int8) if save else None
    edges = []  # of E and of T
    if term.regularize:
        edges = [e.new_empty(batch * channels, frames, 2 - n % 2, dtype=dtype) for _ in range(2)]

    for group, spans in plan:
        target = t[group].to(dtype)
        shape = (1 if term.pure_l1 else 2, target.shape[0])
        waves = scratch("waves", *shape, length + 2 * res.pad, like=window)
        inner = waves[..., res.pad : res.pad + length]
        torch.sub(e[group].to(dtype), target, out=inner[0])
        if not term.pure_l1:
            inner[1] = target
        reflect(waves, res.pad)
        framed = waves.unfold(-1, n, res.hop_length)
        if weights is not None:
            power = scratch("frames", *target.shape, like=window)
            for column, x in ((Q_EST, e[group].to(dtype)), (Q_REF, target)):
                energy = torch.mul(x, x, out=power).mul_(weights).sum(-1)
                partials[group, 0, column] = (n / 2) * energy
        for i, span in enumerate(spans):
            frame = framed[:, :, span]
            windowed = torch.mul(frame, window, out=scratch("frames", *frame.shape, like=window))
            spectrum = torch.view_as_real(torch.fft.rfft(windowed))
            if signs is not None:
                error = spectrum[0]
                signs[group, span] = torch.sign(
                    error, out=scratch("spectrum", *error.shape, like=window)
                )
            if edges:
                at_edges = edge_bins(spectrum, res)
                torch.add(at_edges[0], at_edges[1], out=edges[0][group, span])
                edges[1][group, span] = at_edges[1]
            # Frames first: that sum runs along memory.
            sums = spectrum.abs_().sum(2).to(wide).sum(2)
            partials[group, i, ERR_RE:REF_RE] = sums[0]
            if not term.pure_l1:
                partials[group, i, REF_RE:Q_EST] = sums[1]
    for column, bins_at_edges in zip((Q_EST, Q_REF), edges, strict=False):
        partials[:, 0, column] += bins_at_edges.to(wide).square().sum((1, 2)) / 2
    return partials.view(batch, -1, COLUMNS), signs, edges[0] if save and edges else None


def stft_gradient(
    signs: Tensor,
    edges: Tensor | None,
    estimates: Tensor,
    coefficients: Tensor,
    res: Resolution,
    gradient: Tensor,
) -> None:
    """Add the adjoint STFT of a_re sign Re D + i a_im sign Im D, and r dQ_est/2de, to ``gradient``.

    ``coefficients`` is [3, B]: a_re, a_im, r. ``gradient`` is [B, C, L], contiguous.
    """
    batch, channels, length = estimates.shape
    dtype, n, frames = gradient.dtype, res.n_fft, res.frames(length)
    window = res.window(dtype, gradient.device)
    out = gradient.view(batch * channels, length)
    per_signal = coefficients.to(dtype).repeat_interleave(channels, dim=1)
    # The inverse real FFT counts every bin but those at 0 and n/2 twice.
    halves = window.new_full((res.bins, 1), 0.5)
    edge_bins(halves[None], res).fill_(1.0)
    scale = (per_signal[:2].mT[:, None, None, :] * halves).contiguous()
    r = per_signal[2] / 2
    if edges is not None:
        e = estimates.flatten(0, 1)
        weights = frame_weights(res, length, dtype, window.device)

    for group, spans in groups(batch * channels, frames, n):
        count = out[group].shape[0]
        wave = scratch("waves", count, length + 2 * res.pad, like=window).zero_()
        for span in spans:
            kept = signs[group, span]
            spectrum = scratch("spectrum", *kept.shape, like=window).copy_(kept)
            spectrum.mul_(scale[group])
            if edges is not None:
                edge_bins(spectrum, res).addcmul_(edges[group, span], r[group, None, None])
            y = torch.fft.irfft(torch.view_as_complex(spectrum), n=n, norm="forward")
            overlap_add(wave, y, window, res.hop_length, span.start)
        out[group] += fold(wave, length, res.pad)
        if edges is not None:
            weighted = scratch("frames", count, length, like=window)
            torch.mul(e[group].to(dtype), weights, out=weighted)
            out[group].addcmul_(weighted, r[group, None], value=n)
