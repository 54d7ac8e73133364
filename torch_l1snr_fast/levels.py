"""The level of a signal."""

from __future__ import annotations

from torch import Tensor

from .kernels.eager.objective import dbrms as level
from .kernels.eager.waveform import compute_dtype


def dbrms(x: Tensor, eps: float = 1e-8) -> Tensor:
    """RMS level in dB of each batch item: 10 log10(mean(x^2) + eps).

    Args:
        x: floating-point tensor (batch, ...).
        eps: added to the mean power, so that silence reads 10 log10(eps) = -80 dB.

    Returns:
        (batch,) levels in dB, in the dtype of ``x`` but computed in float32 or better.

    Raises:
        ValueError: if ``x`` has no batch dimension, no samples or no floating-point dtype.

    Example:
        >>> dbrms(torch.tensor([[0.1, -0.1], [0.0, 0.0]]))
        tensor([-20.0000, -80.0000])
    """
    if not isinstance(x, Tensor) or x.ndim < 1 or x.numel() == 0 or not x.is_floating_point():
        shown = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a non-empty floating-point tensor (batch, ...), got {shown}")
    mean_square = x.reshape(x.shape[0], -1).to(compute_dtype(x)).square().mean(-1)
    return level(mean_square, eps).to(x.dtype)
