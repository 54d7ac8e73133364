"""The losses as stateless functions, and the settings they share with the modules.

Every argument has the name, default and meaning that it has in the module of the same loss
(:class:`~torch_l1snr_fast.L1SNRLoss` and its kin), where formulas, units and sources are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import autograd, complex_stft, validation
from .kernels.complex_plan import ComplexPlan
from .kernels.eager.objective import C
from .kernels.eager.objective import dbrms as level
from .kernels.eager.waveform import compute_dtype
from .kernels.modes import variable
from .kernels.plan import PARTS, Objective, Plan, Resolution, changed
from .notices import Notices
from .reference import scale_gradient

Components = dict[str, Tensor]
Output = Tensor | tuple[Tensor, Components]

# Mean magnitude of a part of a unit-window STFT by the waveform's: torch-l1-snr's median over MUSDB
# stems, from which it derives spec_ref_level.
STFT_REF_RATIO = 0.19


class Spectrum(NamedTuple):
    """Settings of the STFT domain."""

    objective: Objective
    resolutions: tuple[Resolution, ...]
    min_audio_length: int
    check_finite: bool
    mps_cpu_fallback: bool
    fallback: Objective  # of the waveform, where the audio is too short for an STFT


def l1_scale_of(l1_scale: float | None, l1_weight: float, calibrated: float) -> float:
    """Factor of the mean absolute error: given, 1 for pure L1, or calibrated to D1's gradient."""
    if l1_scale is not None:
        return l1_scale
    return 1.0 if l1_weight == 1.0 else calibrated


def l1snr_objective(
    *, weight: float = 1.0, eps: float = 1e-3, l1_weight: float = 0.0, ref_level: float = 0.05
) -> Objective:
    """Checked settings of :class:`~torch_l1snr_fast.L1SNRLoss`."""
    validation.unit_interval(l1_weight=l1_weight)
    validation.positive(ref_level=ref_level)
    validation.non_negative(weight=weight, eps=eps)
    scale = l1_scale_of(None, l1_weight, C / (variable(ref_level) + variable(eps)))
    return Objective(weight=weight, eps=eps, l1_weight=l1_weight, l1_scale=scale)


def l2snr_objective(*, weight: float = 1.0, eps: float = 1e-6, tau: float = 1e-3) -> Objective:
    """Checked settings of :class:`~torch_l1snr_fast.L2SNRLoss`."""
    validation.non_negative(weight=weight, tau=tau)
    validation.positive(eps=eps)
    return Objective(weight=weight, power=2, eps=eps, tau=tau)


def l1snrdb_objective(
    *,
    weight: float = 1.0,
    lambda0: float = 0.1,
    delta_lambda: float = 0.9,
    l1snr_eps: float = 1e-3,
    dbrms_eps: float = 1e-8,
    lmin: float = -60.0,
    use_regularization: bool = True,
    l1_weight: float = 0.0,
    reg_coef: float = 1.0,
    ref_level: float = 0.05,
    l1_scale: float | None = None,
) -> Objective:
    """Checked settings of :class:`~torch_l1snr_fast.L1SNRDBLoss`."""
    validation.positive(ref_level=ref_level, l1snr_eps=l1snr_eps, dbrms_eps=dbrms_eps)
    validation.optional_positive(l1_scale=l1_scale)
    validation.non_negative(
        weight=weight, reg_coef=reg_coef, lambda0=lambda0, delta_lambda=delta_lambda
    )
    validation.decibels(lmin=lmin)
    validation.unit_interval(l1_weight=l1_weight)
    return Objective(
        weight=weight,
        eps=l1snr_eps,
        l1_weight=l1_weight,
        l1_scale=l1_scale_of(l1_scale, l1_weight, C / (variable(ref_level) + variable(l1snr_eps))),
        regularize=bool(use_regularization) and l1_weight != 1.0,
        reg_coef=reg_coef,
        lambda0=lambda0,
        delta_lambda=delta_lambda,
        lmin=lmin,
        dbrms_eps=dbrms_eps,
    )


def spectrum_settings(
    *,
    n_ffts: Sequence[int] = (512, 1024, 2048),
    hop_lengths: Sequence[int] = (128, 256, 512),
    win_lengths: Sequence[int] = (512, 1024, 2048),
    window_fn: str = "hann",
    min_audio_length: int = 512,
    use_regularization: bool = False,
    spec_reg_coef: float = 0.1,
    l1_weight: float = 0.0,
    mps_cpu_fallback: bool = True,
    ref_level: float = 0.05,
    spec_ref_level: float | None = None,
    check_finite: bool = True,
    l1_scale: float | None = None,
    l1snr_eps: float = 1e-3,
    **shared: Any,
) -> Spectrum:
    """Checked settings of :class:`~torch_l1snr_fast.STFTL1SNRDBLoss`.

    ``shared`` are those that mean the same in the time domain.
    """
    validation.optional_positive(spec_ref_level=spec_ref_level)
    validation.non_negative(spec_reg_coef=spec_reg_coef, min_audio_length=min_audio_length)
    validation.stft(n_ffts, hop_lengths, win_lengths, window_fn)
    fallback = l1snrdb_objective(
        use_regularization=use_regularization,
        reg_coef=spec_reg_coef,
        l1_weight=l1_weight,
        ref_level=ref_level,
        l1_scale=l1_scale,
        l1snr_eps=l1snr_eps,
        **shared,
    )
    level = STFT_REF_RATIO * variable(ref_level) if spec_ref_level is None else spec_ref_level
    scale = l1_scale_of(l1_scale, l1_weight, 2 * C / (variable(level) + variable(l1snr_eps)))
    return Spectrum(
        objective=changed(fallback, parts=2, l1_scale=scale),
        resolutions=tuple(
            Resolution(n, hop, win, window_fn)
            for n, hop, win in zip(n_ffts, hop_lengths, win_lengths, strict=True)
        ),
        min_audio_length=min_audio_length,
        check_finite=check_finite,
        mps_cpu_fallback=mps_cpu_fallback,
        fallback=fallback,
    )


def complex_stft_plan(
    *,
    weight: float = 1.0,
    waveform_weight: float = 1.0,
    win_lengths: Sequence[int] = (4096, 2048, 1024, 512, 256),
    n_fft: int = 2048,
    hop_lengths: int | Sequence[int] = 147,
) -> ComplexPlan:
    """Checked settings of :class:`~torch_l1snr_fast.MultiResolutionComplexSTFTLoss`."""
    validation.non_negative(weight=weight, waveform_weight=waveform_weight)
    if type(hop_lengths) is int and isinstance(win_lengths, (list, tuple)):
        hop_lengths = [hop_lengths] * len(win_lengths)
    validation.complex_stft(win_lengths, n_fft, hop_lengths)
    resolutions = tuple(
        Resolution(max(win, n_fft), hop, win)
        for win, hop in zip(win_lengths, hop_lengths, strict=True)
    )
    return ComplexPlan(waveform_weight, weight, resolutions)


def select_stems(x: Tensor, stems: list[int]) -> Tensor:
    """The stems as a view where they are evenly spaced (always, for up to two)."""
    steps = {b - a for a, b in pairwise(stems)} or {1}
    if len(steps) == 1:
        return x[:, stems[0] : stems[-1] + 1 : steps.pop()]
    return torch.stack([x.select(1, i) for i in stems], dim=1)


def usable_resolutions(spectrum: Spectrum, length: int, notices: Notices) -> tuple[Resolution, ...]:
    """The resolutions that audio of this length can have; says so once if some or all cannot."""
    every = spectrum.resolutions
    usable = tuple(res for res in every if res.usable(length))
    if length < spectrum.min_audio_length:
        usable = ()
        cause = f"input length {length} is below min_audio_length ({spectrum.min_audio_length})"
    elif not usable:
        cause = (
            f"input length {length} fits none of the resolutions n_ffts={[r.n_fft for r in every]}"
            f" with hop_lengths={[r.hop_length for r in every]}: one needs at least n_fft//2 + 1"
            " samples and one hop"
        )
    elif len(usable) < len(every):
        notices.once(
            "dropped",
            f"input length {length} is too short for the resolutions with"
            f" n_fft={[r.n_fft for r in every if r not in usable]}, which need n_fft//2 + 1 samples"
            f" and one hop. The loss averages over n_fft={[r.n_fft for r in usable]}, so it does"
            " not compare with the loss of longer audio. Warned once.",
        )
    if not usable:
        notices.once(
            "fallback",
            f"{cause}; falling back to the time-domain loss, which is another objective of about"
            " half the size. Warned once.",
        )
    return usable


class Call(NamedTuple):
    """What a call of any loss carries besides its settings."""

    estimates: Tensor
    actuals: Tensor
    reduction: str
    grad_scale: float
    notices: Notices
    components: bool

    @classmethod
    def checked(
        cls,
        estimates: Tensor,
        actuals: Tensor,
        reduction: str,
        grad_scale: float,
        notices: Notices,
        components: bool,
    ) -> Call:
        validation.waveforms(estimates, actuals)
        validation.reduction(reduction)
        validation.positive(grad_scale=grad_scale)
        return cls(estimates, actuals, reduction, grad_scale, notices, components)

    def select(self, stem_dimension: int | Sequence[int] | None) -> Call:
        """The call on some of the stems along dimension 1; the others get gradient zero."""
        validation.stems(stem_dimension)
        if stem_dimension is None:
            return self
        stems = validation.selected_stems(self.estimates, stem_dimension)
        return changed(
            self,
            estimates=select_stems(self.estimates, stems),
            actuals=select_stems(self.actuals, stems),
        )

    def result(self, loss: Tensor, components: Components) -> Output:
        return (loss, components) if self.components else loss


def run(call: Call, plan: Plan, names: list[str]) -> tuple[Tensor, Components]:
    """Loss of a plan, and the components of its terms under their names."""
    batch, length = call.estimates.shape[0], call.estimates.shape[-1]
    estimates, actuals = (
        x if x.ndim == 3 else x.reshape(batch, -1, length) for x in (call.estimates, call.actuals)
    )
    loss, parts = autograd.loss(estimates, actuals, plan, call.notices)
    components: Components = {}
    if call.components:
        terms = [term for term, _ in plan.terms(1, length)]
        parts = torch.as_tensor(parts, dtype=loss.dtype, device=loss.device)
        parts = parts if call.reduction == "none" else parts.mean(-1)
        for name, term, values in zip(names, terms, parts, strict=True):
            for part in reported(term):
                label = "d2" if part == "d1" and term.power == 2 else part
                components[f"{name}/{label}"] = values[PARTS.index(part)]
    return loss, components


def reported(term: Objective) -> tuple[str, ...]:
    """The parts that a term computes."""
    if term.power == 2:
        return ("d1",)
    if term.pure_l1:
        return ("l1",)
    return PARTS if term.regularize else ("d1", "l1")


def waveform_loss(
    call: Call, term: Objective, name: str = "time", sanitize: bool = False
) -> tuple[Tensor, Components]:
    """Loss of the waveform domain alone."""
    plan = Plan(term, None, (), call.reduction, call.grad_scale, sanitize_waveform=sanitize)
    return run(call, plan, [name])


def l1snrdb_waveform_loss(
    call: Call, term: Objective, name: str = "time", sanitize: bool = False
) -> tuple[Tensor, Components]:
    """As :func:`waveform_loss`; pure L1 keeps a half-precision dtype, as torch.nn.L1Loss does."""
    loss, components = waveform_loss(call, term, name, sanitize)
    if term.pure_l1:
        loss = loss.to(torch.promote_types(call.estimates.dtype, call.actuals.dtype))
    return loss, components


def stft_name(res: Resolution) -> str:
    """What the components of a resolution are called."""
    return f"stft_{res.n_fft}_{res.hop_length}_{res.win_length}"


def spectral_loss(
    call: Call, spectrum: Spectrum, waveform: Objective | None = None
) -> tuple[Tensor, Components]:
    """Loss of the STFT domain, with that of the waveform domain added if given, in one pass."""
    device = call.estimates.device
    usable = usable_resolutions(spectrum, call.estimates.shape[-1], call.notices)
    if not usable:
        loss, components = l1snrdb_waveform_loss(
            call, spectrum.fallback, "fallback", spectrum.check_finite
        )
        if waveform is not None:
            time, parts = l1snrdb_waveform_loss(call, waveform)
            loss, components = time + loss, parts | components
        return loss, components

    if device.type == "mps" and spectrum.mps_cpu_fallback:
        call.notices.once(
            "mps",
            "the STFT is computed on the CPU, because PyTorch's MPS backend has returned wrong STFT"
            " gradients for long audio. mps_cpu_fallback=False disables this.",
            UserWarning,
        )
        call = changed(call, estimates=call.estimates.cpu(), actuals=call.actuals.cpu())
    share = variable(spectrum.objective.weight) / len(usable)
    plan = Plan(
        waveform,
        changed(spectrum.objective, weight=share),
        usable,
        call.reduction,
        call.grad_scale,
        sanitize_spectrum=spectrum.check_finite,
    )
    names = ["time"] if waveform is not None else []
    names += [stft_name(res) for res in usable]
    loss, components = run(call, plan, names)
    return loss.to(device), components


def combined_loss(
    call: Call, time: Objective, spectrum: Spectrum, weight: float, spec_weight: float
) -> tuple[Tensor, Components]:
    """weight [(1 - spec_weight) time + spec_weight spectrum], both domains in one pass."""
    validation.non_negative(weight=weight)
    validation.unit_interval(spec_weight=spec_weight)
    weight, spec_weight = variable(weight), variable(spec_weight)

    def weighted(term: Objective, share: float) -> Objective:
        return changed(term, weight=term.weight * share * weight)

    spectrum = changed(
        spectrum,
        objective=weighted(spectrum.objective, spec_weight),
        fallback=weighted(spectrum.fallback, spec_weight),
    )
    return spectral_loss(call, spectrum, weighted(time, 1 - spec_weight))


def complex_stft_loss(call: Call, plan: ComplexPlan) -> tuple[Tensor, Components]:
    """Loss of complex spectra and of the waveform beside them."""
    batch, length = call.estimates.shape[0], call.estimates.shape[-1]
    longest = max(plan.resolutions)
    if length <= longest.pad:
        raise ValueError(
            f"estimates have {length} samples, too few for the reflected borders of"
            f" n_fft={longest.n_fft}, which need at least {longest.pad + 1}. Pass longer audio, or"
            " shorter win_lengths and n_fft"
        )
    rows, means = complex_stft.loss(
        call.estimates.reshape(batch, -1, length), call.actuals.reshape(batch, -1, length), plan
    )
    loss = rows if call.reduction == "none" else getattr(rows, call.reduction)()
    components: Components = {}
    if call.components:
        means = means if call.reduction == "none" else means.mean(-1)
        names = ["time", *map(stft_name, plan.resolutions)]
        components = {f"{name}/l1": x for name, x in zip(names, means, strict=True)}
    return scale_gradient(loss, call.grad_scale), components


def dbrms(x: Tensor, eps: float = 1e-8) -> Tensor:
    """RMS level in dB of each batch item: 10 log10(mean(x^2) + eps).

    Args:
        x: floating-point tensor (batch, ...).
        eps: added to the mean power, so that silence reads 10 log10(eps) = -80 dB.

    Returns:
        (batch,) levels in dB, in the dtype of ``x`` but computed in float32 or better.

    Raises:
        ValueError: if ``x`` has no batch dimension, no samples or no floating-point dtype.
    """
    if not isinstance(x, Tensor) or x.ndim < 1 or x.numel() == 0 or not x.is_floating_point():
        shown = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a non-empty floating-point tensor (batch, ...), got {shown}")
    mean_square = x.reshape(x.shape[0], -1).to(compute_dtype(x)).square().mean(-1)
    return level(mean_square, eps).to(x.dtype)


def _call(
    name: str,
    estimates: Tensor,
    actuals: Tensor,
    grad_scale: float,
    reduction: str,
    return_components: bool,
) -> Call:
    notices = Notices(name)
    return Call.checked(estimates, actuals, reduction, grad_scale, notices, return_components)


def l1snr_loss(
    estimates: Tensor,
    actuals: Tensor,
    *,
    grad_scale: float = 1.0,
    reduction: str = "mean",
    return_components: bool = False,
    **settings: Any,
) -> Output:
    """:class:`~torch_l1snr_fast.L1SNRLoss` as a function, with its settings by name."""
    call = _call("l1snr_loss", estimates, actuals, grad_scale, reduction, return_components)
    return call.result(*waveform_loss(call, l1snr_objective(**settings)))


def l2snr_loss(
    estimates: Tensor,
    actuals: Tensor,
    *,
    grad_scale: float = 1.0,
    reduction: str = "mean",
    return_components: bool = False,
    **settings: Any,
) -> Output:
    """:class:`~torch_l1snr_fast.L2SNRLoss` as a function, with its settings by name."""
    call = _call("l2snr_loss", estimates, actuals, grad_scale, reduction, return_components)
    return call.result(*waveform_loss(call, l2snr_objective(**settings)))


def l1snrdb_loss(
    estimates: Tensor,
    actuals: Tensor,
    *,
    grad_scale: float = 1.0,
    reduction: str = "mean",
    return_components: bool = False,
    **settings: Any,
) -> Output:
    """:class:`~torch_l1snr_fast.L1SNRDBLoss` as a function, with its settings by name."""
    call = _call("l1snrdb_loss", estimates, actuals, grad_scale, reduction, return_components)
    return call.result(*l1snrdb_waveform_loss(call, l1snrdb_objective(**settings)))


def stft_l1snrdb_loss(
    estimates: Tensor,
    actuals: Tensor,
    *,
    grad_scale: float = 1.0,
    reduction: str = "mean",
    return_components: bool = False,
    **settings: Any,
) -> Output:
    """:class:`~torch_l1snr_fast.STFTL1SNRDBLoss` as a function, with its settings by name.

    It warns at every call that has cause to, where the module warns once.
    """
    call = _call("stft_l1snrdb_loss", estimates, actuals, grad_scale, reduction, return_components)
    return call.result(*spectral_loss(call, spectrum_settings(**settings)))


def multi_l1snrdb_loss(
    estimates: Tensor,
    actuals: Tensor,
    *,
    weight: float = 1.0,
    spec_weight: float = 0.5,
    time_settings: dict[str, Any] | None = None,
    spec_settings: dict[str, Any] | None = None,
    stem_dimension: int | Sequence[int] | None = None,
    grad_scale: float = 1.0,
    reduction: str = "mean",
    return_components: bool = False,
) -> Output:
    """:class:`~torch_l1snr_fast.MultiL1SNRDBLoss` as a function.

    Args:
        time_settings: settings of :func:`l1snrdb_loss` for the time domain.
        spec_settings: settings of :func:`stft_l1snrdb_loss` for the STFT domain.
    """
    time = l1snrdb_objective(**(time_settings or {}))
    spectrum = spectrum_settings(**(spec_settings or {}))
    name = "multi_l1snrdb_loss"
    call = _call(name, estimates, actuals, grad_scale, reduction, return_components)
    call = call.select(stem_dimension)
    return call.result(*combined_loss(call, time, spectrum, weight, spec_weight))


def complex_stft_l1_loss(
    estimates: Tensor,
    actuals: Tensor,
    *,
    stem_dimension: int | Sequence[int] | None = None,
    grad_scale: float = 1.0,
    reduction: str = "mean",
    return_components: bool = False,
    **settings: Any,
) -> Output:
    """:class:`~torch_l1snr_fast.MultiResolutionComplexSTFTLoss` as a function.

    Its settings by name.
    """
    name = "complex_stft_l1_loss"
    call = _call(name, estimates, actuals, grad_scale, reduction, return_components)
    call = call.select(stem_dimension)
    return call.result(*complex_stft_loss(call, complex_stft_plan(**settings)))
