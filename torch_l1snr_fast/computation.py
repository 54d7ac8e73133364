"""One call of a loss: from waveforms and settings to a plan, its value and its components."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol, overload

import torch
from torch import Tensor, nn

from . import autograd, complex_stft, validation
from .kernels.complex_plan import ComplexPlan
from .kernels.eager import sanitized
from .kernels.modes import variable
from .kernels.plan import PARTS, Objective, Plan, Resolution, changed
from .notices import Notices
from .reference import scale_gradient

Components = dict[str, Tensor]
Output = Tensor | tuple[Tensor, Components]


class LossCall(Protocol):
    """How a loss is called, as a module or as a function, and what it returns."""

    @overload
    def __call__(
        self,
        estimates: Tensor,
        actuals: Tensor,
        *args: Any,
        return_components: Literal[False] = False,
        **kwargs: Any,
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        estimates: Tensor,
        actuals: Tensor,
        *args: Any,
        return_components: Literal[True],
        **kwargs: Any,
    ) -> tuple[Tensor, Components]: ...

    @overload
    def __call__(
        self,
        estimates: Tensor,
        actuals: Tensor,
        *args: Any,
        return_components: bool,
        **kwargs: Any,
    ) -> Output: ...

    def __call__(self, estimates: Tensor, actuals: Tensor, *args: Any, **kwargs: Any) -> Output: ...


class Call(NamedTuple):
    """What a call of any loss carries besides the settings of its domains."""

    estimates: Tensor
    actuals: Tensor
    grad_scale: float
    reduction: str
    notices: Notices
    components: bool
    # Further arguments of the loss, for modules that take the place of its parts.
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012 (never written)

    def select(self, stem_dimension: Any) -> Call:
        """The call on some of the stems along dimension 1; the others get gradient zero."""
        asked = validation.stems("stem_dimension", stem_dimension)
        if asked is None:
            return self
        stems = validation.selected_stems(self.estimates, asked)
        return changed(
            self,
            estimates=select_stems(self.estimates, stems),
            actuals=select_stems(self.actuals, stems),
        )


class Spectrum(NamedTuple):
    """Settings of the STFT domain."""

    objective: Objective
    resolutions: tuple[Resolution, ...]
    min_audio_length: float
    check_finite: bool
    mps_cpu_fallback: bool
    # Of the waveform, where the audio is too short for an STFT: an objective, or a module's.
    fallback: Objective | nn.Module


def select_stems(x: Tensor, stems: list[int]) -> Tensor:
    """The stems as a view where they are evenly spaced (always, for up to two)."""
    steps = {b - a for a, b in pairwise(stems)} or {1}
    if len(steps) == 1:
        return x[:, stems[0] : stems[-1] + 1 : steps.pop()]
    return torch.stack([x.select(1, i) for i in stems], dim=1)


def length_of(length: int) -> str:
    """For messages: torch.compile may know a length as a symbol alone, which is no text."""
    return "the input" if torch.compiler.is_compiling() else f"input length {length}"


def usable_resolutions(spectrum: Spectrum, length: int, notices: Notices) -> tuple[Resolution, ...]:
    """The resolutions that audio of this length can have; says so once if some or all cannot."""
    every = spectrum.resolutions
    usable = tuple(res for res in every if res.usable(length))
    audio = length_of(length)
    if length < spectrum.min_audio_length:
        usable = ()
        cause = f"{audio} is below min_audio_length ({spectrum.min_audio_length})"
    elif not usable:
        needed = min(max(r.pad + 1, r.hop_length) for r in every)
        cause = (
            f"{audio} fits none of the resolutions n_ffts={[r.n_fft for r in every]} with"
            f" hop_lengths={[r.hop_length for r in every]}, which need at least {needed} samples"
            " (n_fft//2 + 1 and one hop); min_audio_length is not the constraint here"
        )
    elif len(usable) < len(every):
        notices.once(
            "dropped",
            f"{audio} is too short for the resolution(s) with"
            f" n_fft={[r.n_fft for r in every if r not in usable]}, each of which needs at least"
            " n_fft//2 + 1 samples and one hop. The loss is the average over the usable ones, with"
            f" n_fft={[r.n_fft for r in usable]}, and not comparable with that of longer audio."
            " Warned once per loss instance.",
        )
    if not usable:
        notices.once(
            "fallback",
            f"{cause}. The STFT loss is falling back to a time-domain loss, which is a different"
            " objective of about half the size. Warned once per loss instance.",
        )
    return usable


def run(call: Call, plan: Plan, names: list[str]) -> tuple[Tensor, Components]:
    """Loss of a plan, and the components of its terms under their names."""
    estimates, actuals = call.estimates, call.actuals
    if estimates.ndim != 3:
        shape = estimates.shape[0], -1, estimates.shape[-1]
        estimates, actuals = estimates.reshape(shape), actuals.reshape(shape)
    loss, parts = autograd.loss(estimates, actuals, plan, call.notices)
    components: Components = {}
    if call.components:
        terms = [term for term, _ in plan.terms(1, estimates.shape[-1])]
        parts = torch.as_tensor(parts, dtype=loss.dtype, device=loss.device)
        for name, term, values in zip(names, terms, parts, strict=True):
            for part in reported(term):
                label = "d2" if part == "d1" and term.power == 2 else part
                components |= report(call, name, {label: values[PARTS.index(part)]})
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


def fallback_loss(call: Call, spectrum: Spectrum) -> tuple[Tensor, Components]:
    """Loss of the STFT domain for audio that is too short for it."""
    if isinstance(spectrum.fallback, Objective):
        return l1snrdb_waveform_loss(call, spectrum.fallback, "fallback", spectrum.check_finite)
    if spectrum.check_finite:
        e, t = call.estimates, call.actuals
        call.notices.sanitized((~e.isfinite()).sum() + (~t.isfinite()).sum())
        call = changed(call, estimates=sanitized(e), actuals=sanitized(t))
    loss, components = module_loss("fallback_time_loss", spectrum.fallback, call)
    return weighted(loss, spectrum.objective.weight, call.grad_scale), components


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
        loss, components = fallback_loss(call, spectrum)
        if waveform is not None:
            time, parts = l1snrdb_waveform_loss(call, waveform)
            loss, components = time + loss, parts | components
        return loss, components

    if device.type == "mps" and spectrum.mps_cpu_fallback:
        call.notices.once(
            "mps",
            "the STFT loss goes through CPU kernels: PyTorch's MPS backend has returned wrong"
            " gradients of torch.stft for long audio. mps_cpu_fallback=False disables this.",
            UserWarning,
        )
        call = changed(call, estimates=call.estimates.cpu(), actuals=call.actuals.cpu())
    average = changed(spectrum.objective, weight=variable(spectrum.objective.weight) / len(usable))
    plan = Plan(
        waveform,
        average,
        usable,
        call.reduction,
        call.grad_scale,
        sanitize_spectrum=spectrum.check_finite,
    )
    names = ["time"] if waveform is not None else []
    names += [stft_name(res) for res in usable]
    loss, components = run(call, plan, names)
    return loss.to(device), components


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
    components: Components = {}
    if call.components:
        for name, mean in zip(["time", *map(stft_name, plan.resolutions)], means, strict=True):
            components |= report(call, name, {"l1": mean})
    return scale_gradient(reduced(rows, call.reduction), call.grad_scale), components


def weighted(loss: Tensor, weight: float | Tensor, grad_scale: float) -> Tensor:
    """What a loss computed in parts gets afterwards; a fused one has it inside."""
    return scale_gradient(loss * weight, grad_scale)


def reduced(rows: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return rows
    return rows.mean() if reduction == "mean" else rows.sum()


def report(call: Call, name: str, parts: Components) -> Components:
    """Parts of a loss under its name, averaged unless they are asked for one by one."""
    kind = "none" if call.reduction == "none" else "mean"
    return {f"{name}/{part}": reduced(rows.detach(), kind) for part, rows in parts.items()}


def module_loss(name: str, module: Any, call: Call) -> tuple[Tensor, Components]:
    """Loss of a part called as a module, and its components, if it has any and they are asked."""
    components: Components = {}
    asked = call.components and getattr(module, "reports_components", False)
    more = {"return_components": True} if asked else {}
    loss = module(call.estimates, call.actuals, *call.args, **call.kwargs, **more)
    if asked:
        loss, components = loss
    return validation.per_example(name, loss, len(call.estimates), call.reduction), components
