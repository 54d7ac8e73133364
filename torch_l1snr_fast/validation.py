"""Checks of arguments. Each error names the argument, the value and the remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .kernels.plan import WINDOWS

REDUCTIONS = ("mean", "sum", "none")


def _number(name: str, value: object, wanted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return value


def non_negative(**values: object) -> None:
    for name, value in values.items():
        number = _number(name, value, "a non-negative number")
        if not 0.0 <= number < math.inf:
            raise ValueError(
                f"{name} must be non-negative and finite, got {value}. A negative factor would"
                " reward what the loss is meant to punish; 0 switches the term off."
            )


def positive(**values: object) -> None:
    for name, value in values.items():
        number = _number(name, value, "a positive number")
        if not 0.0 < number < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def optional_positive(**values: object) -> None:
    positive(**{name: value for name, value in values.items() if value is not None})


def unit_interval(**values: object) -> None:
    for name, value in values.items():
        number = _number(name, value, "a number between 0.0 and 1.0 inclusive")
        if not 0.0 <= number <= 1.0:
            raise ValueError(f"{name} must be between 0.0 and 1.0 inclusive, got {value}")


def decibels(**values: object) -> None:
    for name, value in values.items():
        if math.isnan(_number(name, value, "a level in dB")):
            raise ValueError(f"{name} must be a level in dB, got {value}")


def reduction(value: object) -> None:
    if value not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {value!r}")


def sizes(**lists: object) -> None:
    """Lists of positive ints, one for each resolution."""
    for name, values in lists.items():
        if not isinstance(values, (list, tuple)):
            raise ValueError(
                f"{name} must be a list or tuple of ints, one per resolution (for a single one,"
                f" {name}=[...]), got {values!r}"
            )
        if not values:
            raise ValueError(f"{name} is empty, which leaves no STFT resolution to compute")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"every entry of {name} must be an int, got {value!r}")
            if value <= 0:
                raise ValueError(f"every entry of {name} must be positive, got {value}")


def stft(
    n_ffts: Sequence[int], hop_lengths: Sequence[int], win_lengths: Sequence[int], window_fn: str
) -> None:
    sizes(n_ffts=n_ffts, hop_lengths=hop_lengths, win_lengths=win_lengths)
    if not len(n_ffts) == len(hop_lengths) == len(win_lengths):
        raise ValueError(
            "n_ffts, hop_lengths and win_lengths must have the same length, got"
            f" {len(n_ffts)}, {len(hop_lengths)} and {len(win_lengths)}"
        )
    for n_fft, win_length in zip(n_ffts, win_lengths, strict=True):
        if win_length > n_fft:
            raise ValueError(f"win_length ({win_length}) must not exceed its n_fft ({n_fft})")
    if window_fn not in WINDOWS:
        raise ValueError(f"window_fn must be one of {', '.join(WINDOWS)}, got {window_fn!r}")


def complex_stft(win_lengths: Sequence[int], n_fft: int, hop_lengths: Sequence[int]) -> None:
    if isinstance(n_fft, bool) or not isinstance(n_fft, int) or n_fft <= 0:
        raise ValueError(f"n_fft must be a positive int, got {n_fft!r}")
    sizes(win_lengths=win_lengths, hop_lengths=hop_lengths)
    if len(hop_lengths) != len(win_lengths):
        raise ValueError(
            "hop_lengths must be one int, or as many as win_lengths, got"
            f" {len(hop_lengths)} for {len(win_lengths)}"
        )


def stems(stem_dimension: object) -> None:
    """An index along dimension 1, or a list of different ones; None for all."""
    indices = stem_dimension if isinstance(stem_dimension, (list, tuple)) else [stem_dimension]
    if stem_dimension is None:
        return
    if not indices or not all(isinstance(i, int) and not isinstance(i, bool) for i in indices):
        raise ValueError(
            "stem_dimension must be an int or a non-empty list of ints, the stems along dimension 1"
            f" to compute the loss on, got {stem_dimension!r}"
        )


def waveforms(estimates: Tensor, actuals: Tensor) -> None:
    for name, x in (("estimates", estimates), ("actuals", actuals)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if estimates.shape != actuals.shape:
        raise ValueError(
            "estimates and actuals must have the same shape, got"
            f" {tuple(estimates.shape)} and {tuple(actuals.shape)}"
        )
    for name, x in (("estimates", estimates), ("actuals", actuals)):
        if x.ndim < 2:
            raise ValueError(
                f"{name} must have at least 2 dimensions, batch first and time last, got shape"
                f" {tuple(x.shape)}. Add a batch dimension: {name}.unsqueeze(0)"
            )
        if x.numel() == 0:
            raise ValueError(
                f"{name} is empty (shape {tuple(x.shape)}): there is nothing to average"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"{name} must be a floating-point tensor, got {x.dtype}. Convert PCM first, e.g."
                f" {name}.float() / 32768"
            )
    if estimates.device != actuals.device:
        raise RuntimeError(
            "estimates and actuals must be on the same device, got"
            f" {estimates.device} and {actuals.device}. Move one: actuals.to(estimates.device)"
        )


def selected_stems(x: Tensor, stem_dimension: int | Sequence[int]) -> list[int]:
    """The stems asked for, as sorted indices from 0."""
    if x.ndim < 3:
        raise ValueError(
            "stem_dimension selects along dimension 1 of (batch, stems, ..., samples), got shape"
            f" {tuple(x.shape)}"
        )
    count = x.shape[1]
    asked = [stem_dimension] if isinstance(stem_dimension, int) else list(stem_dimension)
    for index in asked:
        if not -count <= index < count:
            raise ValueError(f"stem_dimension {index} is out of range for {count} stems")
    stems = sorted({index % count for index in asked})
    if len(stems) < len(asked):
        raise ValueError(f"stem_dimension names a stem twice: {stem_dimension!r}")
    return stems


def per_example(name: str, loss: Tensor, batch: int, reduction: str) -> Tensor:
    """The loss of an injected module must have the shape that the reduction promises."""
    wanted = (batch,) if reduction == "none" else ()
    if not isinstance(loss, torch.Tensor) or tuple(loss.shape) != wanted:
        got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ValueError(
            f"{name} must return a tensor of shape {wanted} for reduction={reduction!r}, got {got}"
        )
    return loss
