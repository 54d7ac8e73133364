"""What a loss asks of the kernels: plain, hashable settings that every backend understands.

A *row* is one batch item. Waveforms reach the kernels as ``[B, C, L]``: B rows of C signals of
L samples. A *term* of the loss is the waveform domain or one STFT resolution.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .modes import kept

WINDOWS = ("hann", "hamming", "blackman", "bartlett", "kaiser")

# Columns of the statistics of a row. The waveform uses ERR and REF of the first part alone.
ERR_RE, ERR_IM, REF_RE, REF_IM, Q_EST, Q_REF, NONFINITE = range(7)
COLUMNS = 7

# Rows of the parts that the objective reports for a term, in their order.
PARTS = ("d1", "level_matching", "l1", "lambda", "dbrms_estimates", "dbrms_actuals")


Settings = TypeVar("Settings", bound=tuple[Any, ...])


def changed(settings: Settings, **changes: Any) -> Settings:
    """``settings._replace(**changes)``, which torch.compile of PyTorch 2.8 cannot trace."""
    fields = type(settings)._fields  # type: ignore[attr-defined]
    return type(settings)(**dict(zip(fields, settings, strict=True)) | changes)


class Resolution(NamedTuple):
    """One STFT: centred frames, reflected borders, window of unit L2 norm."""

    n_fft: int
    hop_length: int
    win_length: int
    window_fn: str = "hann"

    @property
    def bins(self) -> int:
        return self.n_fft // 2 + 1

    @property
    def pad(self) -> int:
        """Samples reflected at either border."""
        return self.n_fft // 2

    def frames(self, length: int) -> int:
        return (length + 2 * self.pad - self.n_fft) // self.hop_length + 1

    def usable(self, length: int) -> bool:
        """Whether the border can be reflected and at least two hops fit (upstream's rule)."""
        return length > self.pad and length >= self.hop_length

    def covers(self, length: int) -> bool:
        """Whether every sample lies in a frame."""
        end = (self.frames(length) - 1) * self.hop_length + self.n_fft
        return self.hop_length <= self.n_fft and end >= self.pad + length

    def window(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The window, centred in n_fft and divided by its L2 norm; cached, never to be written."""
        return window(self.n_fft, self.win_length, self.window_fn, dtype, device)


@kept(at_most=1 << 24)  # hundreds: a CUDA graph may still point to them
def window(
    n_fft: int, win_length: int, name: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    # float32 window, float64 norm, float32 result: torch-l1-snr's rounding, for its values.
    plain = getattr(torch, f"{name}_window")(win_length, dtype=torch.float32, device="cpu")
    exact = plain.double()
    normed = (exact / exact.square().sum().sqrt()).float()
    left = (n_fft - win_length) // 2
    padded = torch.nn.functional.pad(normed, (left, n_fft - win_length - left))
    return padded.to(device=device, dtype=dtype)


class Objective(NamedTuple):
    """Settings of one domain's objective; the formulas are in ``eager/objective.py``."""

    weight: float = 1.0  # of this term in the total
    parts: int = 1  # 1: waveform; 2: real and imaginary parts of a spectrum
    power: int = 1  # of the error in the sums: 1 for L1, 2 for energy
    eps: float = 1e-3  # added to the mean error and to the mean reference
    tau: float = 0.0  # share of the reference added to the error (L2SNR's relative floor)
    l1_weight: float = 0.0
    l1_scale: float = 1.0  # of the mean absolute error in the blend
    regularize: bool = False
    reg_coef: float = 1.0
    lambda0: float = 0.1
    delta_lambda: float = 0.9
    lmin: float = -60.0
    dbrms_eps: float = 1e-8

    @property
    def pure_l1(self) -> bool:
        """At exactly 1 the loss is the scaled mean error and nothing else is computed."""
        return self.l1_weight == 1.0

    @property
    def has_level(self) -> bool:
        """Whether the level matching takes part; pure L1 switches it off."""
        return self.regularize and not self.pure_l1

    @property
    def kind(self) -> Objective:
        """What kernels other than the objective's are made for, whatever the numbers."""
        return Objective(
            parts=self.parts,
            power=self.power,
            l1_weight=float(self.pure_l1),
            regularize=self.regularize,
        )


Term = tuple[Objective, int]  # and its number of elements per row


class Plan(NamedTuple):
    """Everything one call computes."""

    waveform: Objective | None
    spectrum: Objective | None  # its weight counts for each of the resolutions
    resolutions: tuple[Resolution, ...] = ()
    reduction: str = "mean"
    grad_scale: float = 1.0
    # NaN becomes 0 and +-Inf +-1 before the term is computed, with gradient 0 there.
    sanitize_waveform: bool = False
    sanitize_spectrum: bool = False

    @property
    def has_level(self) -> bool:
        """Whether a term matches levels, whose gradient needs the estimates themselves."""
        return any(x is not None and x.has_level for x in (self.waveform, self.spectrum))

    def terms(self, channels: int, length: int) -> list[Term]:
        """Each term's objective and its number of elements per row."""
        terms = []
        if self.waveform is not None:
            terms.append((self.waveform, channels * length))
        if self.spectrum is not None:
            for res in self.resolutions:
                terms.append((self.spectrum, channels * res.bins * res.frames(length)))
        return terms


# A tensor, or nested lists of Python's numbers where eager/few.py is at work.
Table = Any


class Statistics(NamedTuple):
    """What one read of the data leaves: sums per term, and what the gradient needs later."""

    # Per term [B, chunks, COLUMNS]; a row's statistics sum over chunks. In eager, as its own
    # ``objective`` takes them: those of the waveform are fewer, and the last is a count.
    partials: tuple[Table, ...]
    saved: tuple[Tensor | None, ...]  # the backend's own, passed back to its ``gradient``


class Evaluation(NamedTuple):
    """What the objective makes of the statistics of all terms."""

    loss: Tensor  # scalar, or [B] for reduction "none"
    coefficients: Tensor  # [terms, 3, B]: a_re (or a), a_im, r of each row's gradient
    parts: Table  # [terms, len(PARTS), B], before weighting
    nonfinite: Tensor | int  # scalar: samples that were sanitised
