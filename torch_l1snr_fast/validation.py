"""Checks of settings and of input. Each error names the argument, the value and the remedy.

The check of a setting stands in its type, in the signature of the loss that has it: ``weight:
NonNegative``. It is a function of the setting's name and value that returns the value to keep.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeGuard

import torch
from torch import Tensor

from .kernels.plan import WINDOWS, Resolution

REDUCTIONS = ("mean", "sum", "none")


# The types that settings have nearly always are asked for first: isinstance of an abstract class
# takes as long as the rest of a check.


def is_int(value: Any) -> TypeGuard[int]:
    if type(value) is int:
        return True
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    if type(value) in (list, tuple):
        return True
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def number(name: str, value: object, wanted: str) -> float:
    """A plain int or float, also from NumPy's scalars."""
    if type(value) is float or type(value) is int:
        return value
    if is_int(value):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    remedy = f". Take its value: {name}.item()" if isinstance(value, Tensor) else ""
    raise ValueError(f"{name} must be {wanted}, got {value!r}{remedy}")


def non_negative(name: str, value: object) -> float:
    found = number(name, value, "a non-negative number")
    if not 0.0 <= found < math.inf:
        raise ValueError(
            f"{name} must be non-negative and finite, got {value}. A negative factor would"
            " reward what the loss is meant to punish; 0 switches the term off."
        )
    return found


def weight(name: str, value: object) -> float | Tensor:
    """A factor that may be learnt: then it is a tensor, whose range is its owner's business."""
    if not isinstance(value, Tensor):
        return non_negative(name, value)
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"{name} as a tensor must be one floating-point number, got {value.dtype}"
            f" {tuple(value.shape)}. For a weight per example, multiply the losses of"
            ' reduction="none"'
        )
    return value


def positive(name: str, value: object) -> float:
    found = number(name, value, "a positive number")
    if not 0.0 < found < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return found


def optional_positive(name: str, value: object) -> float | None:
    return None if value is None else positive(name, value)


def share(name: str, value: object) -> float:
    found = number(name, value, "a number between 0.0 and 1.0 inclusive")
    if not 0.0 <= found <= 1.0:
        raise ValueError(f"{name} must be between 0.0 and 1.0 inclusive, got {value}")
    return found


def learnt_share(name: str, value: object) -> float | Tensor:
    return weight(name, value) if isinstance(value, Tensor) else share(name, value)


def decibels(name: str, value: object) -> float:
    found = number(name, value, "a level in dB")
    if math.isnan(found):
        raise ValueError(f"{name} must be a level in dB, got {value}")
    return found


def flag(name: str, value: object) -> bool:
    return bool(value)


def reduction(name: str, value: object) -> str:
    if value not in REDUCTIONS:
        raise ValueError(f"{name} must be one of {', '.join(REDUCTIONS)}, got {value!r}")
    return str(value)


def window(name: str, value: object) -> str:
    if value not in WINDOWS:
        raise ValueError(f"{name} must be one of {', '.join(WINDOWS)}, got {value!r}")
    return str(value)


def sizes(name: str, values: Any) -> list[int]:
    """A list of its own, so that neither the caller's nor a default is shared."""
    if not is_list(values):
        raise ValueError(
            f"{name} must be a list or tuple of ints, one per resolution (for a single one,"
            f" {name}=[...]), got {values!r}"
        )
    if not values:
        raise ValueError(f"{name} is empty, which leaves no STFT resolution to compute")
    found = []
    for value in values:
        if type(value) is not int and not is_int(value):
            raise ValueError(f"every entry of {name} must be an int, got {value!r}")
        if value <= 0:
            raise ValueError(f"every entry of {name} must be positive, got {value}")
        found.append(int(value))
    return found


def frozen_sizes(name: str, values: Any) -> tuple[int, ...]:
    return tuple(sizes(name, values))


def size(name: str, value: Any) -> int:
    if not is_int(value) or value <= 0:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return int(value)


def size_or_sizes(name: str, value: Any) -> int | list[int]:
    return sizes(name, [value])[0] if is_int(value) else sizes(name, value)


def stems(name: str, value: Any) -> int | list[int] | None:
    """An index along dimension 1, or a list of different ones; None for all."""
    if value is None:
        return None
    indices = value if is_list(value) else [value]
    if not indices or not all(is_int(i) for i in indices):
        raise ValueError(
            f"{name} must be an int or a non-empty list of ints, the stems along dimension 1"
            f" to compute the loss on, got {value!r}"
        )
    return [int(i) for i in indices] if is_list(value) else int(value)


NonNegative = Annotated[float, non_negative]
Positive = Annotated[float, positive]
OptionalPositive = Annotated[float | None, optional_positive]
Share = Annotated[float, share]
# Factors outside of all formulas, which may be learnt.
Weight = Annotated[float | Tensor, weight]
LearntShare = Annotated[float | Tensor, learnt_share]
Decibels = Annotated[float, decibels]
Flag = Annotated[bool, flag]
Reduction = Annotated[str, reduction]
Window = Annotated[str, window]
Sizes = Annotated[Sequence[int], sizes]
FrozenSizes = Annotated[Sequence[int], frozen_sizes]  # where a change in place would be unseen
Parameters = Mapping[str, Any] | Iterable[tuple[str, Any]]  # of another loss, by name
Size = Annotated[int, size]
SizeOrSizes = Annotated[int | Sequence[int], size_or_sizes]
Stems = Annotated[int | Sequence[int] | None, stems]


def resolutions(
    n_ffts: Sequence[int], hop_lengths: Sequence[int], win_lengths: Sequence[int], window_fn: str
) -> tuple[Resolution, ...]:
    """The resolutions of three lists, which may have changed since they were checked one by one."""
    n_ffts = sizes("n_ffts", n_ffts)
    hop_lengths = sizes("hop_lengths", hop_lengths)
    win_lengths = sizes("win_lengths", win_lengths)
    if not len(n_ffts) == len(hop_lengths) == len(win_lengths):
        raise ValueError(
            "n_ffts, hop_lengths and win_lengths must all have the same length, got"
            f" {len(n_ffts)}, {len(hop_lengths)} and {len(win_lengths)}"
        )
    found = []
    for n_fft, hop_length, win_length in zip(n_ffts, hop_lengths, win_lengths, strict=True):
        if win_length > n_fft:
            raise ValueError(f"win_length ({win_length}) must not exceed the FFT size ({n_fft})")
        found.append(Resolution(n_fft, hop_length, win_length, window_fn))
    return tuple(found)


def complex_resolutions(
    win_lengths: Sequence[int], n_fft: int, hop_lengths: int | Sequence[int]
) -> tuple[Resolution, ...]:
    """The resolutions of windows in transforms of n_fft samples, or of their own if longer."""
    wins, hops = sizes("win_lengths", win_lengths), size_or_sizes("hop_lengths", hop_lengths)
    hops = [hops] * len(wins) if isinstance(hops, int) else hops
    if len(hops) != len(wins):
        raise ValueError(
            "hop_lengths must be one int, or as many as win_lengths, got"
            f" {len(hops)} for {len(wins)}"
        )
    return tuple(Resolution(max(w, n_fft), hop, w) for w, hop in zip(wins, hops, strict=True))


def parameters(name: str, value: Any) -> dict[str, Any]:
    """Settings by name, from any mapping or from pairs."""
    try:
        return dict(value or ())
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be a dict of settings (or pairs of name and value), got {value!r}"
        ) from None


def waveforms(estimates: Tensor, actuals: Tensor) -> None:
    for name, x in (("estimates", estimates), ("actuals", actuals)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if estimates.shape != actuals.shape:
        raise ValueError(
            "estimates and actuals must have the same shape, got"
            f" {tuple(estimates.shape)} and {tuple(actuals.shape)}"
        )
    if estimates.ndim < 2:
        raise ValueError(
            "estimates must be batch-first with at least 2 dimensions, time last, got shape"
            f" {tuple(estimates.shape)}, and so must actuals; add a batch dimension:"
            " estimates.unsqueeze(0)"
        )
    if estimates.numel() == 0:
        raise ValueError(
            f"estimates is empty (shape {tuple(estimates.shape)}), and so is actuals: there is"
            " nothing to average"
        )
    for name, x in (("estimates", estimates), ("actuals", actuals)):
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


def selected_stems(x: Tensor, stem_dimension: int | Iterable[int]) -> list[int]:
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
    found = sorted({index % count for index in asked})
    if len(found) < len(asked):
        raise ValueError(f"stem_dimension names a stem twice: {stem_dimension!r}")
    return found


def per_example(name: str, loss: Tensor, batch: int, reduction: str) -> Tensor:
    """The loss of an injected module must have the shape that the reduction promises."""
    wanted = (batch,) if reduction == "none" else ()
    if not isinstance(loss, torch.Tensor) or tuple(loss.shape) != wanted:
        got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ValueError(
            f"{name} must return a tensor of shape {wanted} for reduction={reduction!r}, got {got}"
        )
    return loss
