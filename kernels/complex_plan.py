"""What the loss of complex spectra asks of the kernels.

Beside ``plan.py``, whose losses need statistics of a whole row before they know a gradient. This
one does not: it is a sum of moduli, so value and gradient come of one pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .modes import kept
from .plan import Resolution


class ComplexPlan(NamedTuple):
    """waveform_weight mean|e - t| + weight sum over resolutions of mean|STFT(e) - STFT(t)|.

    Of each row: the means are over its channels and samples, or channels, bins and frames. The
    resolutions have Hann windows as they are: not divided by their norm.
    """

    waveform_weight: float
    weight: float
    resolutions: tuple[Resolution, ...]

    def terms(self, channels: int, length: int) -> list[tuple[float, int]]:
        """Each term's weight and its number of elements per row, the waveform's first."""
        spectra = [(self.weight, channels * r.bins * r.frames(length)) for r in self.resolutions]
        return [(self.waveform_weight, channels * length), *spectra]


@kept(at_most=1 << 22)
def hann(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.hann_window, rounded once."""
    window = torch.hann_window(length, dtype=torch.float64, device="cpu")
    return window.to(device=device, dtype=dtype)


def offset(res: Resolution) -> int:
    """Where in a frame of n_fft samples the window begins, as torch.stft has it."""
    return (res.n_fft - res.win_length) // 2
