"""Signals, losses and comparisons that the tests share."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor, nn

import torch_l1snr_fast as package

try:
    import torch_l1_snr as upstream
except (ImportError, OSError, RuntimeError) as error:  # no torchaudio, or one of another CUDA
    upstream = None
    WITHOUT_UPSTREAM = f"torch-l1-snr does not import: {error}"
else:
    WITHOUT_UPSTREAM = ""

needs_upstream = pytest.mark.skipif(upstream is None, reason=WITHOUT_UPSTREAM)

KINDS = tuple(oracle.LOSSES)
WAVEFORM = KINDS[:3]
SPECTRAL = KINDS[3:]
HALVES = (torch.bfloat16, torch.float16)
# Tests are of CPU tensors, which Triton serves on the machine alone (on_machine.py).
BACKENDS = ("eager", "reference") if torch.cuda.is_available() else ("eager", "reference", "triton")

# One power of two, one whose hop does not divide it, one with a window shorter than the transform.
SMALL = {
    "n_ffts": [64, 32, 50],
    "hop_lengths": [16, 12, 20],
    "win_lengths": [64, 32, 40],
    "min_audio_length": 40,
}
LENGTH = 301  # prime-ish: the last frames of SMALL end at different samples
# Every term at work.
LEVELLED: dict[str, dict[str, Any]] = {
    "L1SNRLoss": {"l1_weight": 0.3},
    "L2SNRLoss": {},
    "L1SNRDBLoss": {"l1_weight": 0.3},
    "STFTL1SNRDBLoss": {"l1_weight": 0.3, "use_regularization": True},
    "MultiL1SNRDBLoss": {"l1_weight": 0.3, "use_spec_regularization": True},
}
# Windows of hann start at 0; with hamming every sample of every frame counts.
HAMMING = {"window_fn": "hamming"}
ALL_ON = {k: v | (HAMMING if k in SPECTRAL else {}) for k, v in LEVELLED.items()}

# What the losses are compared with torch-l1-snr for, by kind.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "L1SNRLoss": [
        {},
        {"eps": 1e-6, "weight": 2.5},
        {"l1_weight": 0.3},
        {"l1_weight": 0.3, "ref_level": 0.2, "eps": 1e-2},
        {"l1_weight": 1.0, "weight": 0.5},
        {"l1_weight": 1e-9},
        {"l1_weight": 1.0 - 1e-9},
        {"grad_scale": 0.1},
        {"eps": 0.0},
        {"weight": 0.0},
        {"weight": 2, "l1_weight": 1},
    ],
    "L2SNRLoss": [
        {},
        {"eps": 1e-3, "weight": 2.5},
        {"tau": 0.0},
        {"tau": 0.5, "grad_scale": 3.0},
    ],
    "L1SNRDBLoss": [
        {},
        {"use_regularization": False},
        {"l1snr_eps": 1e-6, "dbrms_eps": 1e-3, "weight": 2.5},
        {"lambda0": 0.0, "delta_lambda": 3.3},
        {"lambda0": 2.0, "delta_lambda": 0.0},
        {"lmin": -10.0},
        {"lmin": -200.0},
        {"l1_weight": 0.3, "ref_level": 0.01},
        {"l1_weight": 0.7, "use_regularization": False, "l1snr_eps": 1e-2},
        {"l1_weight": 1.0},
        {"l1_weight": 1.0 - 1e-9, "reg_coef": 1e3},
        {"reg_coef": 0.2, "grad_scale": 0.01},
    ],
    "STFTL1SNRDBLoss": [
        {},
        {"use_regularization": True},
        {"use_regularization": True, "spec_reg_coef": 2.0, "lambda0": 0.5, "delta_lambda": 1.7},
        {"use_regularization": True, "l1_weight": 0.4, "dbrms_eps": 1e-4, "lmin": -20.0},
        {"l1_weight": 0.3, "ref_level": 0.2},
        {"l1_weight": 0.3, "spec_ref_level": 0.2, "weight": 0.7},
        {"l1_weight": 1.0, "use_regularization": True},
        {"l1snr_eps": 1e-6, "check_finite": False, "grad_scale": 0.1},
        {"window_fn": "hamming"},
        {"window_fn": "blackman", "use_regularization": True},
        {"window_fn": "bartlett"},
        {"window_fn": "kaiser"},
        {"n_ffts": (37,), "hop_lengths": (11,), "win_lengths": (31,), "use_regularization": True},
        {"n_ffts": [24], "hop_lengths": [50], "win_lengths": [24], "use_regularization": True},
        {"n_ffts": [2, 3, 1], "hop_lengths": [1, 2, 1], "win_lengths": [2, 3, 1]},
        {"n_ffts": [64] * 2, "hop_lengths": [16] * 2, "win_lengths": [64] * 2},
    ],
    "MultiL1SNRDBLoss": [
        {},
        {"use_spec_regularization": True},
        {"use_time_regularization": False, "spec_weight": 0.2, "weight": 2.5},
        {"spec_weight": 0.0},
        {"spec_weight": 1.0, "use_spec_regularization": True, "spec_reg_coef": 1.5},
        {
            "l1_weight": 0.4,
            "ref_level": 0.1,
            "spec_ref_level": 0.07,
            "use_spec_regularization": True,
        },
        {"l1_weight": 1.0},
        {"lambda0": 0.3, "delta_lambda": 0.1, "lmin": -30.0, "dbrms_eps": 1e-5, "l1snr_eps": 1e-2},
        {
            "time_loss_params": {"lambda0": 0.7, "weight": 3.0},
            "spec_loss_params": {"l1_weight": 0.5},
        },
        {"time_loss_params": {"l1_weight": 1.0}, "spec_loss_params": {"weight": 0.25}},
        {
            "time_loss_params": {},
            "spec_loss_params": {"n_ffts": [40], "win_lengths": [40], "hop_lengths": [9]},
        },
        {"grad_scale": 0.1, "check_finite": False, "window_fn": "hamming"},
        {
            "time_loss_params": {"grad_scale": 0.5},
            "spec_loss_params": {"grad_scale": 4.0},
            "grad_scale": 0.3,
        },
    ],
}


def settings_of(kind: str, **settings: Any) -> dict[str, Any]:
    """Settings with small transforms where the loss has any."""
    return (SMALL if kind in SPECTRAL else {}) | settings


def build(kind: str, module: ModuleType = package, **settings: Any) -> nn.Module:
    return getattr(module, kind)("loss", **settings_of(kind, **settings))


def expected(kind: str, e: Tensor, t: Tensor, **settings: Any) -> tuple[np.ndarray, dict]:
    return oracle.loss(kind, e, t, **settings_of(kind, **settings))


def signals(
    *shape: int, seed: int = 0, error: float = 0.3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Estimate and target. Rows differ in level and error, so that none can stand for another."""
    generator = torch.Generator().manual_seed(seed)
    t, noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    rows = (-1,) + (1,) * (len(shape) - 1)
    level = torch.logspace(-1.5, -0.5, shape[0], dtype=torch.float64).reshape(rows)
    spread = torch.linspace(0.5, 1.5, shape[0], dtype=torch.float64).reshape(rows)
    t = t * level
    e = t + error * spread * level * noise
    return e.to(dtype), t.to(dtype)


def leaves(*shape: int, target: bool = False, seed: int = 3) -> tuple[Tensor, Tensor]:
    e, t = signals(*shape, seed=seed)
    return e.requires_grad_(), t.requires_grad_(target)


BAD = {
    "nan estimate": (torch.nan, "e"),
    "inf estimate": (torch.inf, "e"),
    "-inf estimate": (-torch.inf, "e"),
    "nan target": (torch.nan, "t"),
    "inf target": (torch.inf, "t"),
    "nan in both": (torch.nan, "et"),
}


def spoiled(bad: tuple[float, str], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two rows, of which the first has bad samples, one of them at the border."""
    e, t = signals(2, 2, LENGTH, dtype=dtype)
    for x, side in ((e, "e"), (t, "t")):
        if side in bad[1]:
            x[0, 1, 100] = x[0, 0, 0] = bad[0]
    return e, t


def incoming(value: Tensor, seed: int = 5) -> Tensor:
    """A random gradient for a loss: never ones, whose mistakes can cancel."""
    generator = torch.Generator().manual_seed(seed)
    g = 0.5 + torch.rand(value.shape, generator=generator, dtype=torch.float64)
    return (g * torch.where(g > 1.0, 1.0, -1.0)).to(value.dtype)


def value_and_grad(loss: Any, e: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient for a random incoming gradient."""
    e = e.detach().clone().requires_grad_()
    value = loss(e, t)
    value.backward(incoming(value))
    return value.detach(), e.grad


def relative(got: Tensor, want: Tensor) -> float:
    """Norm of the difference relative to the norm wanted (absolute where that is zero)."""
    got, want = got.detach().double(), want.detach().double()
    norm = want.norm()
    return float((got - want).norm() / (norm if norm > 0 else 1.0))


def assert_close(got: Tensor, want: Tensor | np.ndarray | float, bound: float) -> None:
    """Every element within ``bound`` of what is wanted."""
    got, want = got.detach().double(), torch.as_tensor(want, dtype=torch.float64).detach()
    assert got.shape == want.shape, (got.shape, want.shape)
    worst = float((got - want).abs().max())
    assert worst <= bound, f"off by {worst:.3g}, more than {bound:.3g}"


def assert_gradient(got: Tensor, want: Tensor, bound: float) -> None:
    assert got.shape == want.shape, (got.shape, want.shape)
    error = relative(got, want)
    assert error <= bound, f"relative error of the gradient {error:.3g}, more than {bound:.3g}"


def crest(x: np.ndarray) -> float:
    """Largest rms / mean magnitude over rows; 1 where all is silent."""
    flat = np.abs(x.reshape(len(x), -1))
    mean = flat.mean(1)
    rms = np.sqrt((flat**2).mean(1))
    return float((rms[mean > 0] / mean[mean > 0]).max(initial=1.0))


def without_grad_scale(options: dict[str, Any]) -> dict[str, Any]:
    """The oracle's settings: it knows no gradients."""
    options = {k: v for k, v in options.items() if k not in ("grad_scale", "check_finite")}
    for name in ("time_loss_params", "spec_loss_params"):
        if name in options:
            options[name] = {k: v for k, v in options[name].items() if k != "grad_scale"}
    return options


def float32_bound(kind: str, e: Tensor, t: Tensor, **settings: Any) -> float:
    """How far a float32 loss may lie from the exact loss of the same float32 samples, in its unit.

    With u = 2^-24: a sum of M positive terms, added pairwise, has relative error u log2 M. A bin of
    an n-point FFT is off by at most about u (log2 n + 2) of its frame's rms (+2: e - t and the
    window), so a mean of magnitudes is off by that times rms / mean magnitude. A logarithm turns a
    relative error delta of its argument into C delta; adding eps only lowers delta. Of these there
    are the error's and the reference's mean in each part's D1, and both levels, of which the level
    matching is at most (lambda0 + 2 delta_lambda) times steeper; L1 is as wrong as its mean.
    The result is rounded once more.
    """
    settings = settings_of(kind, **settings)
    unit = 2.0**-24
    x = [v.double().numpy() for v in (e - t, t, e)]
    elements = x[0][0].size
    delta = math.log2(elements) + 2
    parts = 1
    if kind in SPECTRAL:
        parts = 2
        name = settings.get("window_fn", "hann")
        for sizes in zip(
            *(settings[k] for k in ("n_ffts", "hop_lengths", "win_lengths")), strict=True
        ):
            if x[0].shape[-1] > sizes[0] // 2:
                spectra = [oracle.stft(v, *sizes, name) for v in x]
                ratio = max(crest(part) for s in spectra for part in (s.real, s.imag))
                bins = math.log2(spectra[0][0].size)
                delta = max(delta, bins + (math.log2(sizes[0]) + 2) * ratio)
    steep = settings.get("lambda0", 0.1) + 2 * settings.get("delta_lambda", 0.9)
    rows, _ = oracle.loss(kind, e, t, **settings)
    steepest = 2 * parts + 2 * steep * max(1.0, settings.get("reg_coef", 1.0))
    linear = max(float(np.abs(rows).max()), 0.0) if settings.get("l1_weight", 0.0) > 0 else 0.0
    size = settings.get("weight", 1.0) * oracle.C * steepest + linear
    return unit * (delta * size + 2 * float(np.abs(rows).max()))


@contextlib.contextmanager
def recorded() -> Iterator[list[warnings.WarningMessage]]:
    """All warnings given inside, with none suppressed for having been seen before."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def categories(caught: list[warnings.WarningMessage]) -> list[type[Warning]]:
    return [w.category for w in caught]
