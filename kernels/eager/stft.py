r"""STFT domain: sums and signs of the spectra, and the adjoint that turns signs into a gradient.

Signals are transformed in blocks of frames that stay in cache, D = STFT(e - t) and T = STFT(t) in
one batched FFT. Of a spectrum only the three-state signs of D are kept, in int8.

The level of a spectrum needs no magnitudes. For a windowed frame x of even length n,

.. math:: \sum_{k \le n/2} |X_k|^2 = (n \sum x^2 + X_0^2 + X_{n/2}^2) / 2

(odd n has no X_{n/2}); and summed over frames, x^2 is the waveform squared under weights: the
overlap-added squared window, its borders folded back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..modes import kept
from ..plan import COLUMNS, ERR_RE, Q_EST, Q_REF, Objective, Resolution
from .waveform import compute_dtype, sum_dtype
from .workspace import scratch

BLOCK = 1 << 19  # samples in the frames of a block, of D or of T


def groups(signals: int, length: int, resolutions: Sequence[Resolution]) -> list[slice]:
    """Signals that are handled together: as many as fit a block, at least one."""
    together = max(1, BLOCK // max(res.frames(length) * res.n_fft for res in resolutions))
    return [slice(s, min(s + together, signals)) for s in range(0, signals, together)]


def spans(signals: int, frames: int, n_fft: int) -> list[slice]:
    """The frames of a group in blocks of equal size."""
    count = min(frames, max(1, round(signals * frames * n_fft / BLOCK)))
    step = -(-frames // count)
    return [slice(f, min(f + step, frames)) for f in range(0, frames, step)]


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


def within(x: Tensor, pad: int, res: Resolution) -> Tensor:
    """Signals with the borders that ``res`` needs, of those with borders of ``pad``."""
    return x[..., pad - res.pad : x.shape[-1] - pad + res.pad]


def overlap_add(out: Tensor, frames: Tensor, window: Tensor, hop: int, first: int) -> None:
    """Add window * frames [S, F, n], of which the first is frame ``first``, to ``out`` [S, L]."""
    count = frames.shape[1]
    pieces = zip(torch.split(frames, hop, dim=-1), torch.split(window, hop), strict=True)
    for i, (piece, weight) in enumerate(pieces):
        # Pieces no longer than a hop do not overlap, so each is one in-place pass.
        place = out[:, i * hop :].unfold(-1, len(weight), hop)[:, first : first + count]
        place.addcmul_(piece, weight)


@kept(at_most=1 << 23)  # those of training's crops; of a whole song they are made anew
def level_weights(
    resolutions: tuple[Resolution, ...], length: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What x^2 counts in sum |X|^2, but for the edge bins: [R, L]; never to be written."""
    rows = []
    for res in resolutions:
        window = res.window(dtype, device)
        out = window.new_zeros(1, length + 2 * res.pad)
        frames = window.expand(1, res.frames(length), res.n_fft)
        overlap_add(out, frames, window, res.hop_length, 0)
        rows.append(fold(out, length, res.pad)[0] * (res.n_fft / 2))
    return torch.stack(rows)


def edge_bins(spectrum: Tensor, res: Resolution) -> Tensor:
    """Real parts of the bins at 0 and (even n_fft) n_fft / 2: [..., 1 or 2]."""
    real = spectrum[..., 0]
    return real[..., :: res.n_fft // 2] if res.n_fft % 2 == 0 else real[..., :1]


class Spectra:
    """D and T of all signals at one resolution: their sums, and what the gradient needs."""

    def __init__(
        self,
        res: Resolution,
        length: int,
        signals: int,
        together: int,
        term: Objective,
        save: bool,
        like: Tensor,
    ) -> None:
        frames, self.sides = res.frames(length), 1 if term.pure_l1 else 2
        self.res, self.window = res, res.window(like.dtype, like.device)
        self.blocks = spans(together, frames, res.n_fft)
        # Frames are summed in as many shares as have threads of their own, if worth it.
        self.shares = max(1, min(torch.get_num_threads() // together, self.blocks[0].stop // 16))
        shape = (signals, len(self.blocks), self.shares + 1, self.sides, res.bins, 2)
        self.sums = like.new_empty(shape)
        self.energy = like.new_empty(signals, 2)  # of E and T, but for the edge bins
        self.signs: Tensor | None = None
        self.edges: Tensor | None = None
        if save:
            self.signs = like.new_empty(signals, frames, res.bins, 2, dtype=torch.int8)
        if term.has_level:
            self.edges = like.new_empty(signals, frames, self.sides, 2 - res.n_fft % 2)

    def transform(self, group: slice, waves: Tensor) -> None:
        """From padded waves [D and T, S, L + 2 pad]: sums over frames, signs of D, edge bins."""
        # A frame's D and T side by side: in every pass a thread then writes only what it alone has
        # read, for a line of memory that two cores have read is slow to write.
        framed = waves.unfold(-1, self.res.n_fft, self.res.hop_length).permute(1, 2, 0, 3)
        for i, span in enumerate(self.blocks):
            frame = framed[:, span]
            windowed = scratch("frames", *frame.shape, like=self.window)
            torch.mul(frame, self.window, out=windowed)
            spectrum = torch.view_as_real(torch.fft.rfft(windowed))
            if self.signs is not None:
                error = spectrum[:, :, 0]
                sign = scratch("spectrum", *error.shape, like=self.window)
                self.signs[group, span] = torch.sign(error, out=sign)
            if self.edges is not None:
                self.edges[group, span] = edge_bins(spectrum, self.res)
            self.add(spectrum.abs_(), self.sums[group, i])

    def add(self, magnitudes: Tensor, sums: Tensor) -> None:
        """Sums over the frames of each thread, and over those left over."""
        step = magnitudes.shape[1] // self.shares
        whole = step * self.shares
        shared = torch.unflatten(magnitudes[:, :whole], 1, (self.shares, step))
        # D and T in the same order, which makes equal ones (an estimate of silence) cancel.
        for side in range(self.sides):
            torch.sum(shared[:, :, :, side], 2, out=sums[:, :-1, side])
            torch.sum(magnitudes[:, whole:, side], 1, out=sums[:, -1, side])

    def weigh(self, group: slice, side: int, squares: Tensor, weights: Tensor) -> None:
        """From squares [S, L] of e (0) or t (1): the energy of E or T."""
        weighted = scratch("weighted", *squares.shape, like=self.window)
        self.energy[group, side] = torch.mul(squares, weights, out=weighted).sum(-1)

    def results(self, batch: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Partial sums [B, chunks, COLUMNS], the signs of D and E's edge bins."""
        wide = sum_dtype(self.sums.device)
        sums = self.sums.to(wide).sum(2).sum(3).flatten(2)
        partials = sums.new_zeros(*sums.shape[:2], COLUMNS)
        partials[..., ERR_RE : ERR_RE + sums.shape[-1]] = sums
        edges = None
        if self.edges is not None:
            edges = self.edges.sum(2)  # E = D + T
            both = torch.stack((edges, self.edges[:, :, 1]), dim=-1)
            at_edges = both.to(wide).square().sum((1, 2)) / 2
            partials[:, 0, Q_EST : Q_REF + 1] = self.energy.to(wide) + at_edges
        kept = edges if self.signs is not None else None
        return partials.view(batch, -1, COLUMNS), self.signs, kept


def stft_statistics(
    estimates: Tensor,
    actuals: Tensor,
    resolutions: tuple[Resolution, ...],
    term: Objective,
    save: bool,
) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Of each resolution the partial sums [B, chunks, COLUMNS], D's signs and E's edge bins."""
    batch, _, length = estimates.shape
    dtype = compute_dtype(estimates, actuals)
    e, t = estimates.flatten(0, 1), actuals.flatten(0, 1)
    like = e.new_empty(0, dtype=dtype)
    plan, pad = groups(len(e), length, resolutions), max(res.pad for res in resolutions)
    found = [Spectra(r, length, len(e), plan[0].stop, term, save, like) for r in resolutions]

    if term.has_level:
        weights = level_weights(resolutions, length, dtype, found[0].window.device)

    for group in plan:
        estimate, target = e[group].to(dtype), t[group].to(dtype)
        if term.has_level:
            for side, x in enumerate((estimate, target)):
                squares = torch.mul(x, x, out=scratch("squares", *x.shape, like=like))
                for spectra, row in zip(found, weights, strict=True):
                    spectra.weigh(group, side, squares, row)
        waves = scratch("waves", found[0].sides, len(target), length + 2 * pad, like=like)
        inner = waves[..., pad : pad + length]
        torch.sub(estimate, target, out=inner[0])
        if not term.pure_l1:
            inner[1] = target
        reflect(waves, pad)
        for spectra in found:
            spectra.transform(group, within(waves, pad, spectra.res))
    return [spectra.results(batch) for spectra in found]


def stft_gradient(
    kept: Sequence[tuple[Tensor | None, Tensor | None]],
    estimates: Tensor,
    coefficients: Tensor,
    resolutions: tuple[Resolution, ...],
    gradient: Tensor,
) -> None:
    """Add the adjoint STFT of a_re sign Re D + i a_im sign Im D, and r dQ_est/2de, to ``gradient``.

    ``kept`` are the signs and edge bins of each resolution, ``coefficients`` [R, 3, B] its a_re,
    a_im and r. ``gradient`` is [B, C, L], contiguous.
    """
    batch, channels, length = estimates.shape
    dtype = gradient.dtype
    e, out = estimates.flatten(0, 1), gradient.view(batch * channels, length)
    per_signal = coefficients.to(dtype).repeat_interleave(channels, dim=-1)
    plan, pad = groups(len(e), length, resolutions), max(res.pad for res in resolutions)
    rates = per_signal[:, 2]
    regularize = kept[0][1] is not None
    if regularize:
        weights = level_weights(resolutions, length, dtype, out.device)
    scales, blocks = [], []
    for res, part in zip(resolutions, per_signal, strict=True):
        # The inverse real FFT counts every bin but those at 0 and n/2 twice.
        halves = part.new_full((res.bins, 1), 0.5)
        edge_bins(halves[None], res).fill_(1.0)
        scales.append((part[:2].mT[:, None, None, :] * halves).contiguous())
        blocks.append(spans(plan[0].stop, res.frames(length), res.n_fft))

    for group in plan:
        wave = scratch("waves", group.stop - group.start, length + 2 * pad, like=out).zero_()
        for res, (signs, edges), scale, rate, parts in zip(
            resolutions, kept, scales, rates, blocks, strict=True
        ):
            assert signs is not None
            window, place = res.window(dtype, out.device), within(wave, pad, res)
            for span in parts:
                sign = signs[group, span]
                spectrum = scratch("spectrum", *sign.shape, like=out).copy_(sign)
                spectrum.mul_(scale[group])
                if edges is not None:
                    r = rate[group, None, None]
                    edge_bins(spectrum, res).addcmul_(edges[group, span], r, value=0.5)
                y = torch.fft.irfft(torch.view_as_complex(spectrum), n=res.n_fft, norm="forward")
                overlap_add(place, y, window, res.hop_length, span.start)
        out[group] += fold(wave, length, pad)
        if regularize:
            per_sample = scratch("weighted", len(wave), length, like=out)
            torch.mm(rates[:, group].mT, weights, out=per_sample)
            out[group].addcmul_(e[group].to(dtype), per_sample)
