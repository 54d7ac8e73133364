"""Which route computes an STFT resolution: on-chip where that is possible, else through torch.fft.

A route is a module with ``stft_statistics``, ``stft_gradient`` and ``SAVED``, the number of tensors
that the one saves for the other. Waveforms reach it with neighbouring samples (last stride 1) and
what launches are prepared for (``Waves``), and it counts the samples that it sanitizes in the
NONFINITE column.
"""

from __future__ import annotations

from types import ModuleType

import torch

from ..plan import Resolution
from . import offchip, onchip


def stft_route(res: Resolution, dtype: torch.dtype, length: int) -> ModuleType:
    """The module for a resolution that is computed in ``dtype``, of signals of that length."""
    return onchip if onchip.supports(res, dtype, length) else offchip
