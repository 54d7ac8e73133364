"""The losses as modules, with the names, arguments and defaults of torch-l1-snr 0.2.1."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from . import functional, validation
from .functional import Call, Components, Output
from .kernels.eager.objective import adaptive_weight
from .kernels.plan import Objective, changed
from .notices import Notices
from .reference import scale_gradient

# Lists are shared defaults of torch-l1-snr's signatures; every module copies them.
N_FFTS, HOP_LENGTHS, WIN_LENGTHS = [512, 1024, 2048], [128, 256, 512], [512, 1024, 2048]

_PLAIN = {bool, int, float, str, list}  # types of settings, which are no parameters


class _Loss(nn.Module):
    """What every loss has: a name, a weight, a gradient scale, a reduction and its warnings."""

    def __init__(self, name: str, weight: float, grad_scale: float, reduction: str) -> None:
        super().__init__()
        validation.non_negative(weight=weight)
        validation.positive(grad_scale=grad_scale)
        validation.reduction(reduction)
        self.name = name
        self.weight = weight
        self.grad_scale = grad_scale
        self.reduction = reduction
        self._notices = Notices(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Without nn.Module's search for parameters, most of the time that building a loss takes.

        Trainers build losses at every step.
        """
        if type(value) in _PLAIN and name not in self.__dict__.get("_modules", ()):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _call(self, estimates: Tensor, actuals: Tensor, return_components: bool) -> Call:
        return Call.checked(
            estimates,
            actuals,
            self.reduction,
            self.grad_scale,
            self._notices,
            return_components,
        )


class _L1Weighted(_Loss):
    """A loss whose l1_weight cannot change, because pure L1 is another computation."""

    def __init__(
        self, name: str, weight: float, grad_scale: float, reduction: str, l1_weight: float
    ) -> None:
        super().__init__(name, weight, grad_scale, reduction)
        validation.unit_interval(l1_weight=l1_weight)
        self._l1_weight = l1_weight

    @property
    def l1_weight(self) -> float:
        """Share of the L1 term, 0 to 1. Read-only: build a new loss to change it."""
        return self._l1_weight

    @l1_weight.setter
    def l1_weight(self, value: float) -> None:
        raise AttributeError(
            f"l1_weight is read-only (it is {self._l1_weight}, assigned {value!r}): build a new"
            " loss with the l1_weight you want"
        )


class L1SNRLoss(_L1Weighted):
    r"""L1 signal-to-noise ratio of waveforms.

    With the mean absolute error and reference of each batch item over all its samples,

    .. math::
        D_1 = 10 \log_{10} \frac{mean|\hat y - y| + \epsilon}{mean|y| + \epsilon}, \qquad
        loss = weight [(1 - w) D_1 + w\, s\, mean|\hat y - y|]

    with w = ``l1_weight`` and s = (10 / ln 10) / (ref_level + eps), which balances the gradients of
    both terms. At w = 1 the loss is weight mean|ŷ - y| (s = 1). D1 as in arXiv:2309.02539, with the
    means of its authors' code.

    Args:
        name: of the loss, used in its warnings.
        weight: factor of the loss.
        eps: added to both mean amplitudes; the floor of a silent target.
        l1_weight: w, from 0 (D1 alone) to 1 (L1 alone). Read-only afterwards.
        ref_level: typical mean amplitude of the targets (0.05 for music stems); used for 0 < w < 1.
        grad_scale: factor of the gradient; the value stays the same to the bit. It fits these large
            gradients to a clipping threshold.
        reduction: of the batch: ``"mean"``, ``"sum"`` or ``"none"`` (one loss per batch item).

    Shape:
        estimates, actuals: (batch, samples), (batch, channels, samples), (batch, sources, channels,
        samples) or any other batch-first shape. Returns a scalar, or (batch,) for ``"none"``;
        float32, or float64 for float64 input.

    ``forward(estimates, actuals, return_components=True)`` returns (loss, components): detached
    parts before weighting, by name (``"time/d1"`` in dB, ``"time/l1"``).

    Raises:
        ValueError: shapes that differ, a missing batch dimension, empty or non-floating tensors, or
            a setting out of its range.
        RuntimeError: estimates and actuals on different devices.

    Example:
        >>> loss = L1SNRLoss("l1snr")
        >>> loss(torch.full((1, 4), 0.2), torch.full((1, 4), 0.1))
        tensor(0.)
    """

    def __init__(
        self,
        name: str,
        weight: float = 1.0,
        eps: float = 1e-3,
        l1_weight: float = 0.0,
        ref_level: float = 0.05,
        grad_scale: float = 1.0,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__(name, weight, grad_scale, reduction, l1_weight)
        self.eps = eps
        self.ref_level = ref_level
        self._objective()

    def _objective(self) -> Objective:
        return functional.l1snr_objective(
            weight=self.weight,
            eps=self.eps,
            l1_weight=self.l1_weight,
            ref_level=self.ref_level,
        )

    def forward(
        self,
        estimates: Tensor,
        actuals: Tensor,
        *args: Any,
        return_components: bool = False,
        **kwargs: Any,
    ) -> Output:
        call = self._call(estimates, actuals, return_components)
        return call.result(*functional.waveform_loss(call, self._objective()))


class L2SNRLoss(_Loss):
    r"""Energy signal-to-noise ratio of waveforms with a relative floor.

    .. math::
        D_2 = 10 \log_{10} \frac{mean (\hat y - y)^2 + \tau\, mean\, y^2 + \epsilon}
                               {mean\, y^2 + \epsilon}, \qquad loss = weight\, D_2

    It reads about twice the decibels of :class:`L1SNRLoss`, being a ratio of powers.

    Args:
        name, weight, grad_scale, reduction: as in :class:`L1SNRLoss`.
        eps: absolute floor of the error energy, which keeps a silent target finite.
        tau: floor relative to the target's energy; bounds the loss from below by 10 log10(tau) dB.

    Shape and errors: as in :class:`L1SNRLoss`; the component is ``"time/d2"``.
    """

    def __init__(
        self,
        name: str,
        weight: float = 1.0,
        eps: float = 1e-6,
        tau: float = 1e-3,
        grad_scale: float = 1.0,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__(name, weight, grad_scale, reduction)
        self.eps = eps
        self.tau = tau
        self._objective()

    def _objective(self) -> Objective:
        return functional.l2snr_objective(weight=self.weight, eps=self.eps, tau=self.tau)

    def forward(
        self,
        estimates: Tensor,
        actuals: Tensor,
        *args: Any,
        return_components: bool = False,
        **kwargs: Any,
    ) -> Output:
        call = self._call(estimates, actuals, return_components)
        return call.result(*functional.waveform_loss(call, self._objective()))


class L1SNRDBLoss(_L1Weighted):
    r"""L1SNR of waveforms with adaptive level matching and an optional L1 term.

    With the level L = 10 log10(mean y² + dbrms_eps) in dBRMS of estimate and target,

    .. math::
        loss &= weight [(1 - w)(D_1 + reg\_coef\, \lambda\, |L_{est} - L_{ref}|)
                + w\, s\, mean|\hat y - y|] \\
        \lambda &= \lambda_0 + \eta\, \Delta\lambda\,
                clip(|L_{est} - L_{ref}| / (L_{ref} - L_{min}), 0, 1), \quad
        \eta = [L_{ref} > \max(L_{est}, L_{min})]

    lambda is a constant for the gradient. D1, w and s are those of :class:`L1SNRLoss`. At w = 1 the
    loss is weight s mean|ŷ - y| with s = 1 unless ``l1_scale`` is given, and nothing else is
    computed. The form is that of arXiv:2501.16171; the values of lambda0, delta_lambda and lmin are
    torch-l1-snr's.

    Args:
        name, weight, l1_weight, ref_level, grad_scale, reduction: as in :class:`L1SNRLoss`.
        lambda0: least weight of the level matching.
        delta_lambda: what is added to it where a sounding target is estimated too quietly.
        l1snr_eps: eps of D1, added to mean amplitudes.
        dbrms_eps: added to mean powers; silence reads 10 log10(dbrms_eps) = -80 dB.
        lmin: level in dB from which a target counts as sounding.
        use_regularization: whether to add the level matching.
        reg_coef: factor of the level matching.
        l1_scale: factor s of the L1 term; None calibrates it by ``ref_level``.

    Shape and errors: as in :class:`L1SNRLoss`. Half-precision input gives a float32 loss, except at
    l1_weight = 1. Components: ``"time/"`` + d1, level_matching (λ|L_est - L_ref|, dB), l1, lambda,
    dbrms_estimates, dbrms_actuals (dB).
    """

    def __init__(
        self,
        name: str,
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
        grad_scale: float = 1.0,
        *,
        l1_scale: float | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(name, weight, grad_scale, reduction, l1_weight)
        self.lambda0 = lambda0
        self.delta_lambda = delta_lambda
        self.l1snr_eps = l1snr_eps
        self.dbrms_eps = dbrms_eps
        self.lmin = lmin
        self.use_regularization = use_regularization
        self.reg_coef = reg_coef
        self.ref_level = ref_level
        self.l1_scale = l1_scale
        self._objective()

    @property
    def l1snr_loss(self) -> L1SNRLoss | None:
        """The part without level matching as a loss of its own; None at l1_weight = 1."""
        if self.l1_weight == 1.0:
            return None
        return L1SNRLoss(
            "l1_snr", eps=self.l1snr_eps, l1_weight=self.l1_weight, ref_level=self.ref_level
        )

    @property
    def l1_loss(self) -> nn.L1Loss | None:
        """torch.nn.L1Loss at l1_weight = 1, otherwise None."""
        return nn.L1Loss() if self.l1_weight == 1.0 else None

    @staticmethod
    def compute_adaptive_weight(
        L_pred: Tensor,  # noqa: N803 (torch-l1-snr's names)
        L_true: Tensor,  # noqa: N803
        L_min: float,  # noqa: N803
        lambda0: float,
        delta_lambda: float,
        R: Tensor,  # noqa: N803
    ) -> Tensor:
        """lambda of each batch item from levels in dBRMS, detached."""
        return adaptive_weight(L_pred, L_true, L_min, lambda0, delta_lambda, R)

    def _objective(self) -> Objective:
        return functional.l1snrdb_objective(
            weight=self.weight,
            lambda0=self.lambda0,
            delta_lambda=self.delta_lambda,
            l1snr_eps=self.l1snr_eps,
            dbrms_eps=self.dbrms_eps,
            lmin=self.lmin,
            use_regularization=self.use_regularization,
            l1_weight=self.l1_weight,
            reg_coef=self.reg_coef,
            ref_level=self.ref_level,
            l1_scale=self.l1_scale,
        )

    def forward(
        self,
        estimates: Tensor,
        actuals: Tensor,
        *args: Any,
        return_components: bool = False,
        **kwargs: Any,
    ) -> Output:
        call = self._call(estimates, actuals, return_components)
        return call.result(*functional.l1snrdb_waveform_loss(call, self._objective()))


class STFTL1SNRDBLoss(_L1Weighted):
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
    """

    def __init__(
        self,
        name: str,
        weight: float = 1.0,
        lambda0: float = 0.1,
        delta_lambda: float = 0.9,
        l1snr_eps: float = 1e-3,
        dbrms_eps: float = 1e-8,
        lmin: float = -60.0,
        n_ffts: Sequence[int] = N_FFTS,
        hop_lengths: Sequence[int] = HOP_LENGTHS,
        win_lengths: Sequence[int] = WIN_LENGTHS,
        window_fn: str = "hann",
        min_audio_length: int = 512,
        use_regularization: bool = False,
        spec_reg_coef: float = 0.1,
        l1_weight: float = 0.0,
        mps_cpu_fallback: bool = True,
        ref_level: float = 0.05,
        spec_ref_level: float | None = None,
        check_finite: bool = True,
        grad_scale: float = 1.0,
        *,
        l1_scale: float | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(name, weight, grad_scale, reduction, l1_weight)
        validation.stft(n_ffts, hop_lengths, win_lengths, window_fn)
        self.lambda0 = lambda0
        self.delta_lambda = delta_lambda
        self.l1snr_eps = l1snr_eps
        self.dbrms_eps = dbrms_eps
        self.lmin = lmin
        self.n_ffts = list(n_ffts)
        self.hop_lengths = list(hop_lengths)
        self.win_lengths = list(win_lengths)
        self.window_fn_name = window_fn
        self.min_audio_length = min_audio_length
        self.use_regularization = use_regularization
        self.spec_reg_coef = spec_reg_coef
        self.mps_cpu_fallback = mps_cpu_fallback
        self.ref_level = ref_level
        self.spec_ref_level = spec_ref_level
        self.check_finite = check_finite
        self.l1_scale = l1_scale
        self._settings()

    @property
    def pure_l1_mode(self) -> bool:
        return self.l1_weight == 1.0

    @property
    def l1_loss(self) -> nn.L1Loss | None:
        """torch.nn.L1Loss at l1_weight = 1, otherwise None."""
        return nn.L1Loss() if self.pure_l1_mode else None

    @property
    def fallback_time_loss(self) -> L1SNRDBLoss:
        """The loss that audio too short for an STFT gets, before ``weight``."""
        return L1SNRDBLoss(
            f"{self.name}_fallback_time",
            lambda0=self.lambda0,
            delta_lambda=self.delta_lambda,
            l1snr_eps=self.l1snr_eps,
            dbrms_eps=self.dbrms_eps,
            lmin=self.lmin,
            use_regularization=self.use_regularization,
            l1_weight=self.l1_weight,
            reg_coef=self.spec_reg_coef,
            ref_level=self.ref_level,
            l1_scale=self.l1_scale,
            reduction=self.reduction,
        )

    def _settings(self) -> functional.Spectrum:
        return functional.spectrum_settings(
            weight=self.weight,
            lambda0=self.lambda0,
            delta_lambda=self.delta_lambda,
            l1snr_eps=self.l1snr_eps,
            dbrms_eps=self.dbrms_eps,
            lmin=self.lmin,
            n_ffts=self.n_ffts,
            hop_lengths=self.hop_lengths,
            win_lengths=self.win_lengths,
            window_fn=self.window_fn_name,
            min_audio_length=self.min_audio_length,
            use_regularization=self.use_regularization,
            spec_reg_coef=self.spec_reg_coef,
            l1_weight=self.l1_weight,
            mps_cpu_fallback=self.mps_cpu_fallback,
            ref_level=self.ref_level,
            spec_ref_level=self.spec_ref_level,
            check_finite=self.check_finite,
            l1_scale=self.l1_scale,
        )

    def forward(
        self,
        estimates: Tensor,
        actuals: Tensor,
        *args: Any,
        return_components: bool = False,
        **kwargs: Any,
    ) -> Output:
        call = self._call(estimates, actuals, return_components)
        return call.result(*functional.spectral_loss(call, self._settings()))


class MultiL1SNRDBLoss(_L1Weighted):
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
    """

    def __init__(
        self,
        name: str,
        weight: float = 1.0,
        spec_weight: float = 0.5,
        l1_weight: float = 0.0,
        use_time_regularization: bool = True,
        use_spec_regularization: bool = False,
        lambda0: float = 0.1,
        delta_lambda: float = 0.9,
        l1snr_eps: float = 1e-3,
        dbrms_eps: float = 1e-8,
        lmin: float = -60.0,
        n_ffts: Sequence[int] = N_FFTS,
        hop_lengths: Sequence[int] = HOP_LENGTHS,
        win_lengths: Sequence[int] = WIN_LENGTHS,
        window_fn: str = "hann",
        min_audio_length: int = 512,
        spec_reg_coef: float = 0.1,
        time_loss_params: dict[str, Any] | None = None,
        spec_loss_params: dict[str, Any] | None = None,
        mps_cpu_fallback: bool = True,
        ref_level: float = 0.05,
        spec_ref_level: float | None = None,
        check_finite: bool = True,
        time_loss_module: nn.Module | None = None,
        grad_scale: float = 1.0,
        *,
        l1_scale_time: float | None = None,
        l1_scale_spec: float | None = None,
        stem_dimension: int | Sequence[int] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(name, weight, grad_scale, reduction, l1_weight)
        validation.unit_interval(spec_weight=spec_weight)
        validation.positive(ref_level=ref_level)
        validation.optional_positive(spec_ref_level=spec_ref_level)
        validation.stems(stem_dimension)
        self.spec_weight = spec_weight
        self.use_time_regularization = use_time_regularization
        self.use_spec_regularization = use_spec_regularization
        self.ref_level = ref_level
        self.spec_ref_level = spec_ref_level
        if isinstance(stem_dimension, Sequence):
            stem_dimension = list(stem_dimension)
        self.stem_dimension = stem_dimension

        shared: dict[str, Any] = {
            "lambda0": lambda0,
            "delta_lambda": delta_lambda,
            "l1snr_eps": l1snr_eps,
            "dbrms_eps": dbrms_eps,
            "lmin": lmin,
            "l1_weight": l1_weight,
            "ref_level": ref_level,
            "reduction": reduction,
        }
        self.time_loss: nn.Module
        if time_loss_module is None:
            time: dict[str, Any] = {
                "name": f"{name}_time",
                "use_regularization": use_time_regularization,
                "l1_scale": l1_scale_time,
            }
            self.time_loss = L1SNRDBLoss(**shared | time | (time_loss_params or {}))
        else:
            _warn_of_injection(
                time_loss_module, use_time_regularization, time_loss_params, l1_weight
            )
            self.time_loss = time_loss_module
        spec: dict[str, Any] = {
            "name": f"{name}_spec",
            "n_ffts": n_ffts,
            "hop_lengths": hop_lengths,
            "win_lengths": win_lengths,
            "window_fn": window_fn,
            "min_audio_length": min_audio_length,
            "use_regularization": use_spec_regularization,
            "spec_reg_coef": spec_reg_coef,
            "mps_cpu_fallback": mps_cpu_fallback,
            "spec_ref_level": spec_ref_level,
            "check_finite": check_finite,
            "l1_scale": l1_scale_spec,
        }
        self.spec_loss = STFTL1SNRDBLoss(**shared | spec | (spec_loss_params or {}))

    @property
    def pure_l1_mode(self) -> bool:
        return self.l1_weight == 1.0

    def forward(
        self,
        estimates: Tensor,
        actuals: Tensor,
        *args: Any,
        return_components: bool = False,
        **kwargs: Any,
    ) -> Output:
        call = self._call(estimates, actuals, return_components).select(self.stem_dimension)
        time, spec = self.time_loss, self.spec_loss
        if (
            isinstance(time, L1SNRDBLoss)
            and isinstance(spec, STFTL1SNRDBLoss)
            and _plain(time, self)
            and _plain(spec, self)
        ):
            call = changed(call, notices=spec._notices)
            return call.result(
                *functional.combined_loss(
                    call, time._objective(), spec._settings(), self.weight, self.spec_weight
                )
            )
        time_loss, components = _part("time_loss", time, call, args, kwargs)
        spec_loss, spectral = _part("spec_loss", spec, call, args, kwargs)
        loss = (1 - self.spec_weight) * time_loss + self.spec_weight * spec_loss
        return call.result(
            scale_gradient(loss * self.weight, self.grad_scale), components | spectral
        )


def _plain(part: _Loss, whole: MultiL1SNRDBLoss) -> bool:
    """Whether a part can be computed in the fused pass: ours, unhooked, with nothing of its own."""
    return (
        type(part) in (L1SNRDBLoss, STFTL1SNRDBLoss)
        and part.grad_scale == 1.0
        and part.reduction == whole.reduction
        and not (part._forward_hooks or part._forward_pre_hooks)
        and not (part._backward_hooks or part._backward_pre_hooks)
    )


def _part(
    name: str, module: nn.Module, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Components]:
    """Loss and components of one part, called as a module."""
    components: Components = {}
    if isinstance(module, _Loss) and call.components:
        kwargs = kwargs | {"return_components": True}
        loss, components = module(call.estimates, call.actuals, *args, **kwargs)
    else:
        loss = module(call.estimates, call.actuals, *args, **kwargs)
    return validation.per_example(name, loss, len(call.estimates), call.reduction), components


def _warn_of_injection(
    module: object, use_regularization: bool, time_loss_params: object, l1_weight: float
) -> None:
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"time_loss_module must be a torch.nn.Module, got {type(module).__name__}. Pass an"
            " instance, e.g. L2SNRLoss('time')"
        )
    lost = []
    if use_regularization:
        lost.append("its adaptive level matching is dropped (use_time_regularization=False agrees)")
    if time_loss_params is not None:
        lost.append("time_loss_params is ignored")
    if lost:
        warnings.warn(
            f"time_loss_module replaces the built-in time-domain loss: {'; '.join(lost)}. lambda0,"
            " delta_lambda, l1snr_eps, dbrms_eps, lmin, l1_weight and ref_level reach the STFT"
            " domain alone.",
            UserWarning,
            stacklevel=3,
        )
    if l1_weight == 1.0:
        warnings.warn(
            "l1_weight=1.0 makes the STFT domain pure L1, but time_loss_module is used as it is and"
            " does not honour it, although pure_l1_mode reads True.",
            UserWarning,
            stacklevel=3,
        )
