"""Losses of waveforms."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ..computation import (
    Call,
    Components,
    l1snrdb_waveform_loss,
    module_loss,
    reduced,
    report,
    waveform_loss,
    weighted,
)
from ..kernels.eager.objective import C, adaptive_weight
from ..kernels.eager.waveform import compute_dtype
from ..kernels.modes import variable
from ..kernels.plan import Objective, changed
from ..levels import dbrms
from ..validation import (
    Decibels,
    Flag,
    NonNegative,
    OptionalPositive,
    Positive,
    Reduction,
    Share,
    Weight,
)
from .base import Loss, fusible, hooks_on_all, late_part, same, settings, unhooked

BUILD_ANEW = dict.fromkeys(
    ("l1_weight", "pure_l1_mode"),
    "pure L1 is another computation. Build a new loss with the l1_weight you want",
)


def scale_of_l1(
    given: float | None, share: float, level: float, eps: float, parts: int = 1
) -> float:
    """Factor of the mean absolute error: given, 1 for pure L1, or calibrated to D1's gradient."""
    if given is not None:
        return given
    return parts * C / (variable(level) + variable(eps)) if 0.0 < share < 1.0 else 1.0


@settings
class L1SNRLoss(Loss):
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
        >>> round(loss(torch.full((1, 4), 0.101), torch.full((1, 4), 0.1)).item(), 2)
        -17.03
    """

    _fixed: ClassVar = BUILD_ANEW

    eps: NonNegative
    l1_weight: Share
    ref_level: Positive

    def __init__(
        self,
        name: str,
        weight: Weight = 1.0,
        eps: NonNegative = 1e-3,
        l1_weight: Share = 0.0,
        ref_level: Positive = 0.05,
        grad_scale: Positive = 1.0,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            name,
            weight=weight,
            eps=eps,
            l1_weight=l1_weight,
            ref_level=ref_level,
            grad_scale=grad_scale,
            reduction=reduction,
        )

    def _objective(self) -> Objective:
        return Objective(
            weight=self._inner_weight(),
            eps=self.eps,
            l1_weight=self.l1_weight,
            l1_scale=scale_of_l1(None, self.l1_weight, self.ref_level, self.eps),
        )

    def _compute(self, call: Call) -> tuple[Tensor, Components]:
        return waveform_loss(call, self._objective())


@settings
class L2SNRLoss(Loss):
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

    Example:
        >>> loss = L2SNRLoss("l2snr", tau=0.0)
        >>> round(loss(torch.full((1, 4), 0.11), torch.full((1, 4), 0.1)).item(), 2)
        -19.96
    """

    eps: Positive
    tau: NonNegative

    def __init__(
        self,
        name: str,
        weight: Weight = 1.0,
        eps: Positive = 1e-6,
        tau: NonNegative = 1e-3,
        grad_scale: Positive = 1.0,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            name,
            weight=weight,
            eps=eps,
            tau=tau,
            grad_scale=grad_scale,
            reduction=reduction,
        )

    def _compute(self, call: Call) -> tuple[Tensor, Components]:
        term = Objective(weight=self._inner_weight(), power=2, eps=self.eps, tau=self.tau)
        return waveform_loss(call, term)


@settings
class L1SNRDBLoss(Loss):
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

    Example:
        >>> actuals = torch.full((1, 100), 0.1)
        >>> loss, parts = L1SNRDBLoss("l1snrdb")(0.5 * actuals, actuals, return_components=True)
        >>> round(parts["time/d1"].item(), 2), round(parts["time/level_matching"].item(), 2)
        (-2.97, 1.42)
        >>> round(loss.item(), 2)
        -1.55
    """

    _fixed: ClassVar = BUILD_ANEW
    _parts: ClassVar = {
        "l1snr_loss": {"eps": "l1snr_eps", **same("l1_weight", "ref_level", "reduction")}
    }

    lambda0: NonNegative
    delta_lambda: NonNegative
    l1snr_eps: Positive
    dbrms_eps: Positive
    lmin: Decibels
    use_regularization: Flag
    l1_weight: Share
    reg_coef: NonNegative
    ref_level: Positive
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
        use_regularization: Flag = True,
        l1_weight: Share = 0.0,
        reg_coef: NonNegative = 1.0,
        ref_level: Positive = 0.05,
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
            use_regularization=use_regularization,
            l1_weight=l1_weight,
            reg_coef=reg_coef,
            ref_level=ref_level,
            grad_scale=grad_scale,
            l1_scale=l1_scale,
            reduction=reduction,
        )

    @late_part
    def l1snr_loss(self) -> nn.Module | None:
        """The part without level matching as a loss of its own; None at l1_weight = 1."""
        if self.l1_weight == 1.0:
            return None
        return L1SNRLoss("l1_snr", **self._settings_of("l1snr_loss"))

    @late_part
    def l1_loss(self) -> nn.Module | None:
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

    def _objective(self, share: float = 1.0) -> Objective:
        """Of all of it, where it is computed in one pass; ``share`` is its part in a whole."""
        inner = self._modules.get("l1snr_loss")
        eps, ref_level = self.l1snr_eps, self.ref_level
        if isinstance(inner, L1SNRLoss):
            eps, ref_level = inner.eps, inner.ref_level
        l1_weight = self.l1_weight if self._modules.get("l1_loss") is None else 1.0
        return Objective(
            weight=share * self._inner_weight(),
            eps=eps,
            l1_weight=l1_weight,
            l1_scale=scale_of_l1(self.l1_scale, l1_weight, ref_level, eps),
            regularize=self.use_regularization and l1_weight < 1.0,
            reg_coef=self.reg_coef,
            lambda0=self.lambda0,
            delta_lambda=self.delta_lambda,
            lmin=self.lmin,
            dbrms_eps=self.dbrms_eps,
        )

    def _fused(self) -> bool:
        pure = self._modules.get("l1_loss")
        if pure is not None:
            return type(pure) is nn.L1Loss and pure.reduction == "mean" and unhooked(pure)
        inner = self._modules.get("l1snr_loss")
        plain = (inner is None and not hooks_on_all()) or (
            fusible(inner, L1SNRLoss, self)
            and (inner.weight, inner.l1_weight) == (1.0, self.l1_weight)
        )
        return plain and self.compute_adaptive_weight is BUILT_IN_WEIGHT

    def _compute(self, call: Call) -> tuple[Tensor, Components]:
        if self._fused():
            return l1snrdb_waveform_loss(call, self._objective())
        if self.l1_loss is not None:
            flat = [x.flatten(1) for x in (call.estimates, call.actuals)]
            flattened = changed(call, estimates=flat[0], actuals=flat[1])
            loss, components = module_loss("l1_loss", self.l1_loss, flattened)
            if self.l1_scale is not None:
                loss = loss * self.l1_scale
        else:
            loss, components = module_loss("l1snr_loss", self.l1snr_loss, call)
            if self.use_regularization:
                parts = self._level_matching(call.estimates, call.actuals)
                factor = (1 - self.l1_weight) * self.reg_coef
                loss = loss + factor * reduced(parts["level_matching"], call.reduction)
                components |= report(call, "time", parts)
        return weighted(loss, self._inner_weight(), call.grad_scale), components

    def _level_matching(self, estimates: Tensor, actuals: Tensor) -> Components:
        """The level matching alone, of each batch item, beside a part that computes the rest."""
        dtype = compute_dtype(estimates, actuals)
        l_est, l_ref = (dbrms(x.to(dtype), self.dbrms_eps) for x in (estimates, actuals))
        distance = (l_est - l_ref).abs()
        lam = self.compute_adaptive_weight(
            l_est, l_ref, self.lmin, self.lambda0, self.delta_lambda, distance
        )
        levels = {"dbrms_estimates": l_est, "dbrms_actuals": l_ref}
        return {"level_matching": lam * distance, "lambda": lam, **levels}


BUILT_IN_WEIGHT = L1SNRDBLoss.compute_adaptive_weight

# Settings that mean the same in every domain.
SHARED = same(
    "lambda0",
    "delta_lambda",
    "l1snr_eps",
    "dbrms_eps",
    "lmin",
    "l1_weight",
    "ref_level",
    "reduction",
)
