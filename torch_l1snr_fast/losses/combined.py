"""The loss of both domains."""

from __future__ import annotations

import warnings
from typing import ClassVar

from torch import Tensor, nn

from .. import validation
from ..computation import Call, Components, module_loss, spectral_loss, weighted
from ..kernels.modes import variable
from ..kernels.plan import changed
from ..notices import caller
from ..validation import (
    Decibels,
    Flag,
    FrozenSizes,
    LearntShare,
    NonNegative,
    OptionalPositive,
    Parameters,
    Positive,
    Reduction,
    Share,
    Stems,
    Weight,
    Window,
)
from .base import Loss, fusible, same, settings
from .spectral import HOP_LENGTHS, N_FFTS, WIN_LENGTHS, STFTL1SNRDBLoss
from .waveform import BUILD_ANEW, SHARED, L1SNRDBLoss


@settings
class MultiL1SNRDBLoss(Loss):
    r"""Waveform and STFT losses together.

    .. math:: loss = weight [(1 - spec\_weight)\, time + spec\_weight\, spec]

    ``time`` is :class:`L1SNRDBLoss` and ``spec`` :class:`STFTL1SNRDBLoss`; both are computed in one
    pass, with one gradient.

    Args:
        name, weight, grad_scale, reduction: as in :class:`L1SNRLoss`, of the combination.
        spec_weight: share of the STFT domain, 0 to 1.
        l1_weight, lambda0, delta_lambda, l1snr_eps, dbrms_eps, lmin, ref_level: of both domains.
        use_time_regularization, use_spec_regularization: level matching in either domain.
        n_ffts, hop_lengths, win_lengths, window_fn, min_audio_length: of the STFT domain.
        spec_reg_coef, mps_cpu_fallback, spec_ref_level, check_finite: of the STFT domain.
        time_loss_params, spec_loss_params: settings that override those of one domain.
        time_loss_module: a module to take the place of :class:`L1SNRDBLoss`, whose own weight then
            counts too, and which the settings of the time domain do not reach (it warns of that).
        l1_scale_time, l1_scale_spec: ``l1_scale`` of either domain.
        stem_dimension: index, or list of indices, along dimension 1 of (batch, stems, ...,
            samples): the loss is that of these stems, the gradient of the others is zero.

    Shape: as :class:`STFTL1SNRDBLoss`. Components: those of both domains.

    Example:
        >>> loss = MultiL1SNRDBLoss("multi", spec_weight=0.6, use_spec_regularization=True)
        >>> actuals = 0.1 * torch.randn(2, 4, 2, 4096)  # (batch, sources, channels, samples)
        >>> estimates = (0.9 * actuals).requires_grad_()
        >>> loss(estimates, actuals).backward()
        >>> estimates.grad.shape
        torch.Size([2, 4, 2, 4096])
    """

    _fixed: ClassVar = BUILD_ANEW
    _parts: ClassVar = {
        "time_loss": {
            **SHARED,
            "use_regularization": "use_time_regularization",
            "l1_scale": "l1_scale_time",
        },
        "spec_loss": {
            **SHARED,
            **same("n_ffts", "hop_lengths", "win_lengths", "window_fn", "min_audio_length"),
            **same("spec_reg_coef", "mps_cpu_fallback", "spec_ref_level", "check_finite"),
            "use_regularization": "use_spec_regularization",
            "l1_scale": "l1_scale_spec",
        },
    }

    spec_weight: LearntShare
    l1_weight: Share
    use_time_regularization: Flag
    use_spec_regularization: Flag
    lambda0: NonNegative
    delta_lambda: NonNegative
    l1snr_eps: Positive
    dbrms_eps: Positive
    lmin: Decibels
    n_ffts: FrozenSizes
    hop_lengths: FrozenSizes
    win_lengths: FrozenSizes
    window_fn: Window
    min_audio_length: NonNegative
    spec_reg_coef: NonNegative
    mps_cpu_fallback: Flag
    ref_level: Positive
    spec_ref_level: OptionalPositive
    check_finite: Flag
    l1_scale_time: OptionalPositive
    l1_scale_spec: OptionalPositive
    stem_dimension: Stems

    def __init__(
        self,
        name: str,
        weight: Weight = 1.0,
        spec_weight: LearntShare = 0.5,
        l1_weight: Share = 0.0,
        use_time_regularization: Flag = True,
        use_spec_regularization: Flag = False,
        lambda0: NonNegative = 0.1,
        delta_lambda: NonNegative = 0.9,
        l1snr_eps: Positive = 1e-3,
        dbrms_eps: Positive = 1e-8,
        lmin: Decibels = -60.0,
        n_ffts: FrozenSizes = N_FFTS,
        hop_lengths: FrozenSizes = HOP_LENGTHS,
        win_lengths: FrozenSizes = WIN_LENGTHS,
        window_fn: Window = "hann",
        min_audio_length: NonNegative = 512,
        spec_reg_coef: NonNegative = 0.1,
        time_loss_params: Parameters | None = None,
        spec_loss_params: Parameters | None = None,
        mps_cpu_fallback: Flag = True,
        ref_level: Positive = 0.05,
        spec_ref_level: OptionalPositive = None,
        check_finite: Flag = True,
        time_loss_module: nn.Module | None = None,
        grad_scale: Positive = 1.0,
        *,
        l1_scale_time: OptionalPositive = None,
        l1_scale_spec: OptionalPositive = None,
        stem_dimension: Stems = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            name,
            weight=weight,
            spec_weight=spec_weight,
            l1_weight=l1_weight,
            use_time_regularization=use_time_regularization,
            use_spec_regularization=use_spec_regularization,
            lambda0=lambda0,
            delta_lambda=delta_lambda,
            l1snr_eps=l1snr_eps,
            dbrms_eps=dbrms_eps,
            lmin=lmin,
            n_ffts=n_ffts,
            hop_lengths=hop_lengths,
            win_lengths=win_lengths,
            window_fn=window_fn,
            min_audio_length=min_audio_length,
            spec_reg_coef=spec_reg_coef,
            mps_cpu_fallback=mps_cpu_fallback,
            ref_level=ref_level,
            spec_ref_level=spec_ref_level,
            check_finite=check_finite,
            grad_scale=grad_scale,
            l1_scale_time=l1_scale_time,
            l1_scale_spec=l1_scale_spec,
            stem_dimension=stem_dimension,
            reduction=reduction,
        )

        self.time_loss: nn.Module
        if time_loss_module is None:
            given = validation.parameters("time_loss_params", time_loss_params)
            time = {"name": f"{name}_time"} | self._settings_of("time_loss") | given
            self.time_loss = L1SNRDBLoss(**time)
        else:
            warn_of_injection(
                time_loss_module, use_time_regularization, time_loss_params, l1_weight
            )
            self.time_loss = time_loss_module
        given = validation.parameters("spec_loss_params", spec_loss_params)
        spec = {"name": f"{name}_spec"} | self._settings_of("spec_loss") | given
        self.spec_loss = STFTL1SNRDBLoss(**spec)

    @property
    def pure_l1_mode(self) -> bool:
        return self.l1_weight == 1.0

    def _compute(self, call: Call) -> tuple[Tensor, Components]:
        call = call.select(self.stem_dimension)
        time, spec = self.time_loss, self.spec_loss
        share = self.spec_weight
        if (
            fusible(time, L1SNRDBLoss, self)
            and fusible(spec, STFTL1SNRDBLoss, self)
            and not isinstance(share, Tensor)
        ):
            # Both domains in one pass.
            weight, share = self._inner_weight(), variable(share)
            waveform = time._objective(weight * (1 - share))
            spectrum = spec._spectrum(weight * share)
            return spectral_loss(changed(call, notices=spec._notices), spectrum, waveform)
        time_loss, components = module_loss("time_loss", time, call)
        spec_loss, spectral = module_loss("spec_loss", spec, call)
        loss = (1 - share) * time_loss + share * spec_loss
        return weighted(loss, self._inner_weight(), call.grad_scale), components | spectral


def warn_of_injection(
    module: object, use_regularization: bool, time_loss_params: object, l1_weight: float
) -> None:
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"time_loss_module must be a torch.nn.Module, got {type(module).__name__}. Pass an"
            " instance, e.g. L2SNRLoss('time')"
        )
    lost = []
    if use_regularization:
        lost.append(
            "its adaptive level-matching regularization is dropped (use_time_regularization=False"
            " agrees, and the regularizer can be part of the module)"
        )
    if time_loss_params is not None:
        lost.append("time_loss_params is ignored")
    if lost:
        warnings.warn(
            f"time_loss_module replaces the built-in time-domain loss: {'; '.join(lost)}. What it"
            " shares with the spectrogram branch (lambda0, delta_lambda, l1snr_eps, dbrms_eps,"
            " lmin, l1_weight, ref_level) reaches only that branch.",
            UserWarning,
            stacklevel=caller(),
        )
    if l1_weight == 1.0:
        warnings.warn(
            "l1_weight=1.0 puts the spectrogram branch in pure-L1 mode, but time_loss_module is"
            " used as given and does not honour it, although pure_l1_mode reads True.",
            UserWarning,
            stacklevel=caller(),
        )
