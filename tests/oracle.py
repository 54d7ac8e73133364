"""The losses in float64 NumPy, written from their definitions.

The second opinion beside torch-l1-snr: nothing here imports the library or shares more with it than
the names of the settings. torch supplies its window functions and nothing else. Every function
returns one value per batch item; hand-computed cases are in test_oracle.py.
"""

from __future__ import annotations

import numpy as np
import torch

C = 10.0 / np.log(10.0)  # 10 log10(x) = C ln(x)
STFT_REF_RATIO = 0.19  # spec_ref_level / ref_level, torch-l1-snr's constant

Rows = np.ndarray
Components = dict[str, Rows]


def row_mean(x: np.ndarray) -> Rows:
    return x.reshape(len(x), -1).mean(axis=1)


def decibels(x: np.ndarray) -> np.ndarray:
    return 10.0 * np.log10(x)


def dbrms(x: np.ndarray, eps: float = 1e-8) -> Rows:
    """10 log10 of the mean power, with a floor added to the power."""
    return decibels(row_mean(np.abs(x) ** 2) + eps)


def adaptive_weight(
    l_est: Rows, l_ref: Rows, lmin: float, lambda0: float, delta_lambda: float
) -> Rows:
    """lambda of the level matching: raised where a sounding target is estimated too quietly."""
    share = np.clip(np.abs(l_est - l_ref) / np.maximum(l_ref - lmin, 1e-6), 0.0, 1.0)
    # torch-l1-snr multiplies a float32 indicator by delta_lambda, which so becomes a float32.
    return np.where(
        l_ref > np.maximum(l_est, lmin), lambda0 + np.float32(delta_lambda) * share, lambda0
    )


def window(name: str, length: int) -> np.ndarray:
    """torch's periodic window in float32, divided by its L2 norm in float64, stored as float32."""
    w = getattr(torch, f"{name}_window")(length).numpy().astype(np.float64)
    return (w / np.sqrt((w**2).sum())).astype(np.float32).astype(np.float64)


def stft(x: np.ndarray, n_fft: int, hop: int, win_length: int, name: str = "hann") -> np.ndarray:
    """[..., bins, frames] of centred frames, borders reflected, window centred in n_fft."""
    left = (n_fft - win_length) // 2
    w = np.pad(window(name, win_length), (left, n_fft - win_length - left))
    border = [(0, 0)] * (x.ndim - 1) + [(n_fft // 2, n_fft // 2)]
    padded = np.pad(x, border, mode="reflect")
    starts = range(0, padded.shape[-1] - n_fft + 1, hop)
    frames = np.stack([padded[..., i : i + n_fft] * w for i in starts], axis=-1)
    return np.fft.rfft(frames, axis=-2)


def usable(length: int, n_fft: int, hop: int) -> bool:
    """Whether the border can be reflected and there are two frames by torch-l1-snr's count."""
    return length >= n_fft // 2 + 1 and length // hop + 1 >= 2


def domain(
    pairs: list[tuple[np.ndarray, np.ndarray]],
    levels: tuple[np.ndarray, np.ndarray],
    scale: float,
    *,
    eps: float,
    l1_weight: float,
    regularize: bool = False,
    reg_coef: float = 1.0,
    lambda0: float = 0.1,
    delta_lambda: float = 0.9,
    lmin: float = -60.0,
    dbrms_eps: float = 1e-8,
) -> tuple[Rows, Components]:
    """Blend of D1, level matching and L1. ``pairs`` are (estimate, target), one per part."""
    errors = [row_mean(np.abs(e - t)) for e, t in pairs]
    l1 = sum(errors) / len(errors)
    if l1_weight == 1.0:
        return scale * l1, {"l1": l1}
    references = [row_mean(np.abs(t)) for _, t in pairs]
    d1 = sum(decibels((e + eps) / (r + eps)) for e, r in zip(errors, references, strict=True))
    rows = (1.0 - l1_weight) * d1 + l1_weight * scale * l1
    components = {"d1": d1, "l1": l1}
    if regularize:
        l_est, l_ref = (dbrms(x, dbrms_eps) for x in levels)
        weight = adaptive_weight(l_est, l_ref, lmin, lambda0, delta_lambda)
        level = weight * np.abs(l_est - l_ref)
        rows = rows + (1.0 - l1_weight) * reg_coef * level
        components |= {
            "level_matching": level,
            "lambda": weight,
            "dbrms_estimates": l_est,
            "dbrms_actuals": l_ref,
        }
    return rows, components


def named(prefix: str, components: Components) -> Components:
    return {f"{prefix}/{name}": value for name, value in components.items()}


def l1snr(
    e: np.ndarray,
    t: np.ndarray,
    *,
    weight: float = 1.0,
    eps: float = 1e-3,
    l1_weight: float = 0.0,
    ref_level: float = 0.05,
) -> tuple[Rows, Components]:
    scale = 1.0 if l1_weight == 1.0 else C / (ref_level + eps)
    rows, components = domain([(e, t)], (e, t), scale, eps=eps, l1_weight=l1_weight)
    return weight * rows, named("time", components)


def l2snr(
    e: np.ndarray, t: np.ndarray, *, weight: float = 1.0, eps: float = 1e-6, tau: float = 1e-3
) -> tuple[Rows, Components]:
    error, reference = row_mean((e - t) ** 2), row_mean(t**2)
    d2 = decibels((error + tau * reference + eps) / (reference + eps))
    return weight * d2, {"time/d2": d2}


def l1snrdb(
    e: np.ndarray,
    t: np.ndarray,
    *,
    weight: float = 1.0,
    l1snr_eps: float = 1e-3,
    use_regularization: bool = True,
    l1_weight: float = 0.0,
    ref_level: float = 0.05,
    l1_scale: float | None = None,
    prefix: str = "time",
    **level: float,
) -> tuple[Rows, Components]:
    """``level``: reg_coef, lambda0, delta_lambda, lmin, dbrms_eps."""
    if l1_scale is None:
        l1_scale = 1.0 if l1_weight == 1.0 else C / (ref_level + l1snr_eps)
    rows, components = domain(
        [(e, t)],
        (e, t),
        l1_scale,
        eps=l1snr_eps,
        l1_weight=l1_weight,
        regularize=use_regularization,
        **level,
    )
    return weight * rows, named(prefix, components)


def stft_l1snrdb(
    e: np.ndarray,
    t: np.ndarray,
    *,
    weight: float = 1.0,
    n_ffts: tuple[int, ...] = (512, 1024, 2048),
    hop_lengths: tuple[int, ...] = (128, 256, 512),
    win_lengths: tuple[int, ...] = (512, 1024, 2048),
    window_fn: str = "hann",
    min_audio_length: int = 512,
    use_regularization: bool = False,
    spec_reg_coef: float = 0.1,
    l1snr_eps: float = 1e-3,
    l1_weight: float = 0.0,
    ref_level: float = 0.05,
    spec_ref_level: float | None = None,
    l1_scale: float | None = None,
    **level: float,
) -> tuple[Rows, Components]:
    """``level``: lambda0, delta_lambda, lmin, dbrms_eps."""
    length = e.shape[-1]
    sizes = [
        sizes
        for sizes in zip(n_ffts, hop_lengths, win_lengths, strict=True)
        if length >= min_audio_length and usable(length, *sizes[:2])
    ]
    if not sizes:
        return l1snrdb(
            e,
            t,
            weight=weight,
            l1snr_eps=l1snr_eps,
            use_regularization=use_regularization,
            l1_weight=l1_weight,
            ref_level=ref_level,
            l1_scale=l1_scale,
            prefix="fallback",
            reg_coef=spec_reg_coef,
            **level,
        )
    if l1_scale is None:
        reference = STFT_REF_RATIO * ref_level if spec_ref_level is None else spec_ref_level
        l1_scale = 1.0 if l1_weight == 1.0 else 2.0 * C / (reference + l1snr_eps)
    rows, components = [], {}
    for n_fft, hop, win_length in sizes:
        spectra = [stft(x, n_fft, hop, win_length, window_fn) for x in (e, t)]
        row, parts = domain(
            [tuple(x.real for x in spectra), tuple(x.imag for x in spectra)],
            spectra,
            l1_scale,
            eps=l1snr_eps,
            l1_weight=l1_weight,
            regularize=use_regularization,
            reg_coef=spec_reg_coef,
            **level,
        )
        rows.append(row)
        components |= named(f"stft_{n_fft}_{hop}_{win_length}", parts)
    return weight * sum(rows) / len(rows), components


SHARED = ("lambda0", "delta_lambda", "l1snr_eps", "dbrms_eps", "lmin", "l1_weight", "ref_level")


def multi_l1snrdb(
    e: np.ndarray,
    t: np.ndarray,
    *,
    weight: float = 1.0,
    spec_weight: float = 0.5,
    use_time_regularization: bool = True,
    use_spec_regularization: bool = False,
    time_loss_params: dict | None = None,
    spec_loss_params: dict | None = None,
    l1_scale_time: float | None = None,
    l1_scale_spec: float | None = None,
    **settings: float,
) -> tuple[Rows, Components]:
    shared = {name: settings.pop(name) for name in SHARED if name in settings}
    time = {"use_regularization": use_time_regularization, "l1_scale": l1_scale_time} | shared
    spec = {"use_regularization": use_spec_regularization, "l1_scale": l1_scale_spec} | shared
    time_rows, time_parts = l1snrdb(e, t, **(time | (time_loss_params or {})))
    spec_rows, spec_parts = stft_l1snrdb(e, t, **(spec | settings | (spec_loss_params or {})))
    rows = (1.0 - spec_weight) * time_rows + spec_weight * spec_rows
    return weight * rows, time_parts | spec_parts


LOSSES = {
    "L1SNRLoss": l1snr,
    "L2SNRLoss": l2snr,
    "L1SNRDBLoss": l1snrdb,
    "STFTL1SNRDBLoss": stft_l1snrdb,
    "MultiL1SNRDBLoss": multi_l1snrdb,
}


def loss(
    kind: str, e: torch.Tensor, t: torch.Tensor, **settings: object
) -> tuple[Rows, Components]:
    """Per-item loss and components of any of the losses, from tensors of any dtype."""
    e, t = (x.detach().double().numpy() for x in (e, t))
    return LOSSES[kind](e, t, **settings)
