"""The loss of spectra."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from .. import validation
from ..computation import Call, Components, Spectrum, spectral_loss
from ..kernels.modes import variable
from ..kernels.plan import Objective, Resolution, changed
from ..validation import (
    Decibels,
    Flag,
    NonNegative,
    OptionalPositive,
    Positive,
    Reduction,
    Share,
    Sizes,
    Weight,
    Window,
)
from .base import Loss, fusible, late_part, same, settings
from .waveform import BUILD_ANEW, BUILT_IN_WEIGHT, SHARED, L1SNRDBLoss, scale_of_l1

# Lists are shared defaults of torch-l1-snr's signatures; every module copies them.
N_FFTS, HOP_LENGTHS, WIN_LENGTHS = [512, 1024, 2048], [128, 256, 512], [512, 1024, 2048]

# Mean magnitude of a part of a unit-window STFT by the waveform's: torch-l1-snr's median over MUSDB
# stems, from which it derives spec_ref_level.
STFT_REF_RATIO = 0.19


# Methods of torch-l1-snr's class, for which one pass over all has no use.
NEVER_CALLED = frozenset(
    {"_compute_complex_spec_l1snr_loss", "_compute_spec_level_matching", "_usable_resolutions"}
)


@settings
class STFTL1SNRDBLoss(Loss):
    r"""L1SNR of complex spectra over several STFT resolutions, with optional level matching and L1.

    For each resolution, with spectra of centred, reflect-padded frames under a window of unit L2
    norm, means over bins, frames and channels, and levels of the magnitudes,

    .. math::
        loss_r = (1 - w)\, [D_1(\mathrm{Re}) + D_1(\mathrm{Im}) + spec\_reg\_coef\, \lambda\,
                 |L_{est} - L_{ref}|]
                 + w\, s\, \tfrac12 (mean|\mathrm{Re}\, D| + mean|\mathrm{Im}\, D|)

    where D is the spectrum of the error, s = (20 / ln 10) / (spec_ref_level + l1snr_eps); λ is that
    of :class:`L1SNRDBLoss`. The loss is weight times the average over the resolutions that the
    audio is long enough for (samples > n_fft/2 and samples >= hop_length); if it is shorter than
    min_audio_length or fits none, the loss is that of :class:`L1SNRDBLoss` with
    reg_coef = spec_reg_coef. Both cases warn once. (arXiv:2501.16171; the coefficients are
    torch-l1-snr's.)

    Args:
        name, weight, lambda0, delta_lambda, l1snr_eps, dbrms_eps, lmin, use_regularization: as in
            :class:`L1SNRDBLoss`.
        l1_weight, ref_level, grad_scale, l1_scale, reduction: as in :class:`L1SNRDBLoss`.
        n_ffts, hop_lengths, win_lengths: of each resolution, in samples. Windows shorter than n_fft
            are centred in it.
        window_fn: hann, hamming, blackman, bartlett or kaiser.
        min_audio_length: samples below which the waveform loss is used instead.
        spec_reg_coef: factor of the level matching.
        mps_cpu_fallback: compute on the CPU for MPS tensors, whose STFT gradients were unreliable.
        spec_ref_level: typical mean magnitude of the target's spectra; None takes 0.19 ref_level.
        check_finite: replace NaN by 0 and +-Inf by +-1 in both inputs, with gradient 0 there, and
            warn once (on a GPU at a later call, so that nothing waits). False lets them show.

    Shape: (batch, samples), (batch, channels, samples), (batch, sources, channels, samples).
    Components: ``"stft_{n_fft}_{hop}_{win}/"`` + the names of :class:`L1SNRDBLoss`.

    Raises:
        ValueError, RuntimeError: as :class:`L1SNRLoss`. An error inside a resolution is raised.

    Example:
        >>> loss = STFTL1SNRDBLoss("stft", n_ffts=[16], hop_lengths=[4], win_lengths=[16])
        >>> loss(torch.zeros(2, 600), torch.zeros(2, 600))
        tensor(0.)
        >>> loss.n_ffts
        [16]
    """

    _fixed: ClassVar = {
        **BUILD_ANEW,
        "l1_loss": "it does not compute. Give MultiL1SNRDBLoss a time_loss_module, or sum losses",
        "spectrogram_transforms": "there are none. Set n_ffts, hop_lengths, win_lengths, window_fn",
    }
    _parts: ClassVar = {
        "fallback_time_loss": {
            **SHARED,
            **same("use_regularization", "l1_scale"),
            "reg_coef": "spec_reg_coef",
        }
    }

    lambda0: NonNegative
    delta_lambda: NonNegative
    l1snr_eps: Positive
    dbrms_eps: Positive
    lmin: Decibels
    n_ffts: Sizes
    hop_lengths: Sizes
    win_lengths: Sizes
    window_fn: Window
    min_audio_length: NonNegative
    use_regularization: Flag
    spec_reg_coef: NonNegative
    l1_weight: Share
    mps_cpu_fallback: Flag
    ref_level: Positive
    spec_ref_level: OptionalPositive
    check_finite: Flag
    l1_scale: OptionalPositive

    def __init__(
        self,
        name: str,
        weight: Weight = 1.0,
        lambda0: NonNegative = 0.1,
        delta_lambda: NonNegative = 0.9,
        l1snr_eps: Positive = 1e-3,
        dbrms_eps: Positive = 1e-8,
        lmin: Decibels = -60.0,
        n_ffts: Sizes = N_FFTS,
        hop_lengths: Sizes = HOP_LENGTHS,
        win_lengths: Sizes = WIN_LENGTHS,
        window_fn: Window = "hann",
        min_audio_length: NonNegative = 512,
        use_regularization: Flag = False,
        spec_reg_coef: NonNegative = 0.1,
        l1_weight: Share = 0.0,
        mps_cpu_fallback: Flag = True,
        ref_level: Positive = 0.05,
        spec_ref_level: OptionalPositive = None,
        check_finite: Flag = True,
        grad_scale: Positive = 1.0,
        *,
        l1_scale: OptionalPositive = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            name,
            weight=weight,
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
            use_regularization=use_regularization,
            spec_reg_coef=spec_reg_coef,
            l1_weight=l1_weight,
            mps_cpu_fallback=mps_cpu_fallback,
            ref_level=ref_level,
            spec_ref_level=spec_ref_level,
            check_finite=check_finite,
            grad_scale=grad_scale,
            l1_scale=l1_scale,
            reduction=reduction,
        )
        self._resolutions()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in NEVER_CALLED & vars(cls).keys():
            raise TypeError(
                f"{cls.__name__} overrides {name}, which is torch-l1-snr's and would never be"
                " called here. Override forward instead"
            )

    @late_part
    def fallback_time_loss(self) -> nn.Module:
        """The loss that audio too short for an STFT gets, before ``weight``."""
        given = self._settings_of("fallback_time_loss")
        return L1SNRDBLoss(f"{self.name}_fallback_time", **given)

    @property
    def window_fn_name(self) -> str:
        """torch-l1-snr's name of the attribute."""
        return self.window_fn

    @window_fn_name.setter
    def window_fn_name(self, value: str) -> None:
        self.window_fn = value

    @property
    def pure_l1_mode(self) -> bool:
        return self.l1_weight == 1.0

    @property
    def l1_loss(self) -> nn.L1Loss | None:
        """torch.nn.L1Loss at l1_weight = 1, otherwise None; it tells, but does not compute."""
        return nn.L1Loss() if self.pure_l1_mode else None

    def _resolutions(self) -> tuple[Resolution, ...]:
        return validation.resolutions(
            self.n_ffts, self.hop_lengths, self.win_lengths, self.window_fn
        )

    def _spectrum(self, share: float = 1.0) -> Spectrum:
        if self.use_regularization and L1SNRDBLoss.compute_adaptive_weight is not BUILT_IN_WEIGHT:
            raise RuntimeError(
                "compute_adaptive_weight of L1SNRDBLoss was replaced, which does not reach the"
                f" spectra of {self.name}. Override it in a subclass of L1SNRDBLoss, given as"
                " time_loss_module, or switch the level matching of spectra off"
            )
        eps, l1_weight = self.l1snr_eps, self.l1_weight
        level = self.spec_ref_level
        if level is None:
            level = STFT_REF_RATIO * variable(self.ref_level)
        objective = Objective(
            weight=share * self._inner_weight(),
            parts=2,
            eps=eps,
            l1_weight=l1_weight,
            l1_scale=scale_of_l1(self.l1_scale, l1_weight, level, eps, parts=2),
            regularize=self.use_regularization and l1_weight < 1.0,
            reg_coef=self.spec_reg_coef,
            lambda0=self.lambda0,
            delta_lambda=self.delta_lambda,
            lmin=self.lmin,
            dbrms_eps=self.dbrms_eps,
        )
        fallback: Objective | nn.Module | None = self._modules.get("fallback_time_loss")
        if fallback is None:
            scale = scale_of_l1(self.l1_scale, l1_weight, self.ref_level, eps)
            fallback = changed(objective, parts=1, l1_scale=scale)
        elif fusible(fallback, L1SNRDBLoss, self):
            fallback = fallback._objective(objective.weight)
        return Spectrum(
            objective,
            self._resolutions(),
            self.min_audio_length,
            self.check_finite,
            self.mps_cpu_fallback,
            fallback,
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        # The windows, which checkpoints of torch-l1-snr before 0.2 hold, follow from the settings.
        windows = f"{prefix}spectrogram_transforms."
        unexpected_keys[:] = [key for key in unexpected_keys if not key.startswith(windows)]

    def _compute(self, call: Call) -> tuple[Tensor, Components]:
        return spectral_loss(call, self._spectrum())
