"""e - t, reflected at its ends: what follows reads frames as they lie in memory, of one dtype."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..common import ceil_div
from ..launching import Launch, Waves, prepared, waves
from ..onchip.stretches import jit, reflected, signal_of

BLOCK: tl.constexpr = tl.constexpr(1024)  # samples of the waveform that are read at a time


@jit
def difference_kernel(
    estimates,  # [B, C, L], any row and channel stride
    actuals,  # [B, C, L], any row and channel stride
    differences,  # [signals, L + 2 border] float32, contiguous
    channels,
    length,
    border,
    blocks,  # of a signal
    estimate_batch,
    estimate_channel,
    actual_batch,
    actual_channel,
):
    """e - t, reflected at its ends."""
    program = tl.program_id(0)
    signal = (program // blocks).to(tl.int64)  # offsets made of it exceed 32 bits
    estimates = signal_of(estimates, estimate_batch, estimate_channel, signal, channels)
    actuals = signal_of(actuals, actual_batch, actual_channel, signal, channels)
    padded = length + 2 * border
    at = program % blocks * BLOCK + tl.arange(0, BLOCK)
    p = reflected(at - border, length)
    d = tl.load(estimates + p).to(tl.float32) - tl.load(actuals + p).to(tl.float32)
    tl.store(differences + signal * padded + at, d, mask=at < padded)


@prepared
def _difference(given: Waves, border: int) -> tuple[Launch, tuple[int, int]]:
    """The launch, and the shape of what it writes."""
    _, channels, length = given.shape
    padded = length + 2 * border
    blocks = ceil_div(padded, BLOCK.value)
    launch = Launch(
        difference_kernel,
        programs=given.signals * blocks,
        threads=128,
        **given.strides("estimate", "actual"),
        channels=channels,
        length=length,
        border=border,
        blocks=blocks,
    )
    return launch, (given.signals, padded)


def difference(estimates: Tensor, actuals: Tensor, border: int) -> Tensor:
    """e - t of waveforms [B, C, L], [signals, L + 2 border]."""
    launch, shape = _difference(waves(estimates, actuals), border)
    differences = estimates.new_empty(shape, dtype=torch.float32)
    launch(estimates=estimates, actuals=actuals, differences=differences)
    return differences
