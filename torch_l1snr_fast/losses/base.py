"""What every loss has: settings that are checked when they are set, parts, a call.

A setting stands in one place: the signature of its loss, with its name, type, range and default.
:meth:`Loss.__init__` checks it and keeps it as an attribute of the same name, which the class
declares; whoever sets it later comes by :meth:`Loss.__setattr__`, which checks it too and hands it
down to the parts made with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    TypeGuard,
    TypeVar,
    cast,
    get_args,
    get_origin,
)

from torch import Tensor, nn
from torch._guards import TracingContext
from torch.nn.modules.module import _has_any_global_hook

from .. import validation
from ..computation import Call, Components, LossCall, Output, weighted
from ..kernels.modes import variable
from ..notices import Notices
from ..validation import Positive, Reduction, Weight

# Of torch-l1-snr 0.2.1: attributes of other names, and what a loss has warned of.
OLD_NAMES = {"_l1_weight": "l1_weight", "window_fn_name": "window_fn"}
OLD_ONLY = ("_min_lengths", "_resolved_spec_ref_level", "_allfailed_warned")
OLD_NOTICES = {
    "_nan_warned": "nonfinite",
    "_fallback_warned": "fallback",
    "_dropped_warned": "dropped",
    "_mps_warned": "mps",
}

Kind = TypeVar("Kind", bound="type[Loss]")
Part = TypeVar("Part", bound="Loss")


class late_part:
    """A part that is not made before someone looks at it: trainers build losses at every step."""

    def __init__(self, make: Callable[[Any], nn.Module | None]) -> None:
        self.make = make
        self.name = make.__name__
        self.__doc__ = make.__doc__

    def __get__(self, loss: Any, kind: type) -> Any:
        if loss is None:
            return self
        if self.name not in loss._modules:
            part = self.make(loss)
            if part is None:
                return None
            loss._modules[self.name] = part
        return loss._modules[self.name]

    def __set__(self, loss: Any, value: nn.Module | None) -> None:
        loss._modules[self.name] = value


class Loss(nn.Module):
    """Base of the losses."""

    reports_components: ClassVar = True  # forward takes return_components
    _settings: ClassVar[dict[str, Callable[[str, Any], Any]]] = {}  # their checks
    _learnable: ClassVar[list[str]] = []  # those that may be tensors
    # Of each part that is a loss, its settings by the whole's that they are made from.
    _parts: ClassVar[dict[str, dict[str, str]]] = {}
    # The same by the whole's settings: the parts and their settings that are made from each.
    _handed_down: ClassVar[dict[str, list[tuple[str, str]]]] = {}
    _late_parts: ClassVar[list[str]] = []
    # What can only be set when the loss is built, or not at all, and what to do instead.
    _fixed: ClassVar[dict[str, str]] = {}

    _notices: Notices
    name: str
    weight: Weight
    grad_scale: Positive
    reduction: Reduction

    def __init__(self, name: str, **given: Any) -> None:
        super().__init__()
        values, checks = self.__dict__, self._settings
        values["_notices"], values["name"] = Notices(name), name
        # Not one by one by __setattr__, of which a loss costs several times as much.
        for key, value in given.items():
            values[key] = checks[key](key, value)
        for key in self._learnable:
            if isinstance(values[key], Tensor):
                super().__setattr__(key, values[key])  # as a parameter, if it is one

    def __setattr__(self, name: str, value: Any) -> None:
        values = self.__dict__
        check = self._settings.get(name)
        if name in self._fixed and (check is None or name in values):
            raise AttributeError(
                f"{name} of {type(self).__name__} is read-only (assigned {value!r}):"
                f" {self._fixed[name]}"
            )
        if check is None:
            super().__setattr__(name, value)
            if name == "name":
                self._notices.name = str(value)
            return
        value = check(name, value)
        if isinstance(value, Tensor) or name in self._parameters:
            super().__setattr__(name, value)
        else:
            # Without nn.Module's search for parameters and modules, most of the time of a setting.
            values[name] = value
        for part, theirs in self._handed_down.get(name, ()) if self._modules else ():
            module = self._modules.get(part)
            if isinstance(module, Loss) and theirs in module._settings:
                setattr(module, theirs, value)

    def _make_parts(self) -> None:
        # torch.compile looks for parameters in what it traces, of which these have none.
        if TracingContext.try_get() is None:
            for part in self._late_parts:
                getattr(self, part)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        self._make_parts()
        return super().named_children()

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        self._make_parts()
        named: Iterator[tuple[str, nn.Module]] = super().named_modules(*args, **kwargs)
        return named

    def _settings_of(self, part: str) -> dict[str, Any]:
        values = self.__dict__
        return {theirs: values[ours] for theirs, ours in self._parts[part].items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_notices" not in state:
            state = self._from_torch_l1_snr(state)
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def _from_torch_l1_snr(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of a loss that torch-l1-snr has pickled, as this package's."""
        kind: Any = next(kind for kind in type(self).__mro__ if "_settings" in vars(kind))
        values = vars(kind(state["name"])) | {OLD_NAMES.get(k, k): v for k, v in state.items()}
        modules = values["_modules"]
        for part, table in kind._parts.items():
            for theirs, ours in table.items():
                if ours not in state and isinstance(modules.get(part), Loss):
                    found = getattr(modules[part], theirs)
                    values[ours] = kind._settings[ours](ours, found)
        values["_modules"] = {k: v for k, v in modules.items() if k not in kind._fixed}
        values["_notices"].given |= {
            notice for flag, notice in OLD_NOTICES.items() if values.pop(flag, False)
        }
        computed = set(kind._fixed) - set(kind._settings)
        gone = {*OLD_ONLY, *computed, *kind._late_parts, *values["_parameters"]}
        return {name: value for name, value in values.items() if name not in gone}

    def forward(
        self,
        estimates: Tensor,
        actuals: Tensor,
        *args: Any,
        return_components: bool = False,
        **kwargs: Any,
    ) -> Output:
        validation.waveforms(estimates, actuals)
        learnt = self.weight if isinstance(self.weight, Tensor) else None
        call = Call(
            estimates,
            actuals,
            self.grad_scale if learnt is None else 1.0,
            self.reduction,
            self._notices,
            return_components,
            args,
            kwargs,
        )
        loss, components = self._compute(call)
        if learnt is not None:  # outside of the fused pass, and so is what comes after it
            loss = weighted(loss, learnt.reshape(()), self.grad_scale)
        return (loss, components) if return_components else loss

    if TYPE_CHECKING:
        __call__: LossCall

    def _inner_weight(self) -> float:
        """The weight, if it is a number, which a fused pass has inside."""
        return 1.0 if isinstance(self.weight, Tensor) else cast(float, variable(self.weight))

    def _fused(self) -> bool:
        """Whether all of it is computed in one pass."""
        return True

    def _compute(self, call: Call) -> tuple[Tensor, Components]:
        raise NotImplementedError


def settings(kind: Kind) -> Kind:
    """Read the settings of a loss from its signature."""
    parameters = inspect.signature(kind.__init__, eval_str=True).parameters.values()
    types = {p.name: p.annotation for p in parameters if get_origin(p.annotation) is Annotated}
    kind._settings = {name: x.__metadata__[0] for name, x in types.items()}
    kind._learnable = [name for name, x in types.items() if Tensor in get_args(x.__origin__)]
    kind._handed_down = {}
    for part, table in kind._parts.items():
        for theirs, ours in table.items():
            kind._handed_down.setdefault(ours, []).append((part, theirs))
    kind._late_parts = [name for name, x in vars(kind).items() if isinstance(x, late_part)]
    return kind


def same(*names: str) -> dict[str, str]:
    """Settings of a part that have the same name in the whole."""
    return dict(zip(names, names, strict=True))


def unhooked(module: nn.Module) -> bool:
    """Whether calling a module is nothing but its class's forward."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or hooks_on_all()
    )


def hooks_on_all() -> bool:
    """Whether hooks are registered on every module there is."""
    return bool(_has_any_global_hook())  # type: ignore[no-untyped-call]


def fusible(part: object, kind: type[Part], whole: Loss) -> TypeGuard[Part]:
    """Whether a part can be computed in the whole's pass: ours, with nothing of its own."""
    return (
        type(part) is kind
        and not isinstance(part.weight, Tensor)
        and part.grad_scale == 1.0
        and part.reduction == whole.reduction
        and unhooked(part)
        and part._fused()
    )
