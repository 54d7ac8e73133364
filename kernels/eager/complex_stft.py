r"""Complex spectra: mean moduli of D = STFT(e - t), and their gradient, in one pass over blocks.

With U_k = D_k / \|D_k\|, 0 where D_k is, the gradient of \sum_{k \le n/2} \|D_k\| by a windowed
frame is

.. math:: \mathrm{Re} \sum_{k \le n/2} U_k\, e^{2\pi i jk/n},

an inverse real FFT of U, which counts the bins 0 < k < n/2 twice: hence of U with the other bins
doubled, halved.

A spectrum's phases depend on where in the transform a frame lies, its moduli do not. So a window
shorter than the transform has its samples at the front, and the rest stays zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..complex_plan import ComplexPlan, hann, offset
from ..plan import Resolution
from .stft import fold, groups, reflect, spans, within
from .waveform import compute_dtype, sum_dtype
from .workspace import scratch


def overlap_add(out: Tensor, frames: Tensor, window: Tensor, hop: int) -> None:
    """Add window * frames [S, F, W], of which the first starts at the first sample, to ``out``."""
    width = len(window)
    apart = -(-width // hop)  # frames so far apart do not overlap: one in-place pass for them all
    for i in range(min(apart, frames.shape[1])):
        some = frames[:, i::apart, :width]
        place = out[:, i * hop :].unfold(-1, width, apart * hop)
        place[:, : some.shape[1]].addcmul_(some, window)


def normalize(spectrum: Tensor) -> Tensor:
    """Divide spectra [S, F, bins] by their moduli, in place; sums of these [S].

    The moduli are roots of sums of squares: torch.abs and torch.sgn, which guard against overflow,
    take thrice the time. Squares underflow, and the quotient fades to 0, below the root of the
    smallest normal number (1e-19 in float32).
    """
    re, im = spectrum.real, spectrum.imag
    modulus = torch.mul(re, re, out=scratch("modulus", *spectrum.shape, like=re))
    modulus.addcmul_(im, im).sqrt_()
    total = modulus.sum((1, 2))
    inverse = modulus.clamp_min_(torch.finfo(re.dtype).tiny ** 0.5).reciprocal_()
    re.mul_(inverse)
    im.mul_(inverse)
    return total


def transform(wave: Tensor, res: Resolution, scale: float, out: Tensor | None) -> Tensor:
    """Sums of moduli [S] of waves [S, L + 2 pad], and ``scale`` times their gradient added to out.

    Both begin with the first frame.
    """
    n_fft, hop, width, _ = res
    window = hann(width, wave.dtype, wave.device)
    first = offset(res)
    frames = wave[:, first:].unfold(-1, width, hop)[:, : res.frames(wave.shape[-1] - 2 * res.pad)]
    total = wave.new_zeros(len(wave), dtype=sum_dtype(wave.device))
    blocks = spans(len(wave), frames.shape[1], n_fft)
    padded = scratch("padded", len(wave), blocks[0].stop, n_fft, like=wave)
    padded[..., width:] = 0
    for span in blocks:
        padded = padded[:, : span.stop - span.start]
        torch.mul(frames[:, span], window, out=padded[..., :width])
        spectrum = torch.fft.rfft(padded)
        total += normalize(spectrum)
        if out is not None:
            spectrum[..., 0] *= 2
            if n_fft % 2 == 0:
                spectrum[..., -1] *= 2
            y = torch.fft.irfft(spectrum, n=n_fft, norm="forward")
            overlap_add(out[:, first + span.start * hop :], y, window * (scale / 2), hop)
    return total


def complex_stft(
    plan: ComplexPlan, estimates: Tensor, actuals: Tensor, save: bool
) -> tuple[Tensor, Tensor | None]:
    """Means of the moduli [terms, B], and the gradient of each row's loss [B, C, L] if ``save``."""
    batch, channels, length = estimates.shape
    dtype = compute_dtype(estimates, actuals)
    e, t = estimates.flatten(0, 1), actuals.flatten(0, 1)
    like = e.new_empty(0, dtype=dtype)
    pad = max(res.pad for res in plan.resolutions)
    terms = plan.terms(channels, length)
    scales = [weight / count for weight, count in terms]
    sums = like.new_empty(len(terms), len(e), dtype=sum_dtype(like.device))
    gradient = like.new_empty(estimates.shape) if save else None

    for group in groups(len(e), length, plan.resolutions):
        size = group.stop - group.start
        wave = scratch("waves", size, length + 2 * pad, like=like)
        error = wave[:, pad : pad + length]
        torch.sub(e[group].to(dtype), t[group].to(dtype), out=error)
        reflect(wave, pad)
        total = scratch("gradients", *wave.shape, like=like).zero_() if save else None
        for i, res in enumerate(plan.resolutions, 1):
            place = None if total is None else within(total, pad, res)
            sums[i, group] = transform(within(wave, pad, res), res, scales[i], place)
        side = scratch("errors", size, length, like=like)
        sums[0, group] = torch.abs(error, out=side).sum(-1)
        if gradient is not None and total is not None:
            folded = fold(total, length, pad)
            signs = torch.sign(error, out=side)
            torch.add(folded, signs, alpha=scales[0], out=gradient.view(len(e), length)[group])
    rows = sums.view(len(terms), batch, channels).sum(-1)
    means = [row / count for row, (_, count) in zip(rows, terms, strict=True)]
    return torch.stack(means).to(dtype), gradient
