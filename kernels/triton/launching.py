"""Launches that are prepared once: Triton finds out again each time what it has compiled for them.

That takes longer than the launch. A :class:`Launch` holds a kernel's grid and all arguments but the
tensors of a call, and what Triton has compiled for these; what the tensors can change of that, it
looks at. Everything else that a kernel's arguments are made of is a key of :func:`prepared`.

Of Triton it uses what is the same in 3.5 to 3.8: that a launch returns the compiled kernel, and how
``JITFunction.run`` then calls that kernel's ``run``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver, jit

from ..eager.waveform import compute_dtype
from .common import Config, config, launch

Function = TypeVar("Function", bound=Callable[..., Any])


class Waves(NamedTuple):
    """What launches are prepared for, of waveforms [B, C, L] that may lie anywhere."""

    shape: torch.Size
    estimates: tuple[int, ...]  # strides
    actuals: tuple[int, ...]  # strides
    dtype: torch.dtype  # of the computation
    device: torch.device

    @property
    def signals(self) -> int:
        return self.shape[0] * self.shape[1]

    def strides(self, *names: str) -> dict[str, int]:
        """Where rows and channels begin, as a kernel's arguments: of "estimate", "actual"."""
        return {
            f"{name}_{dimension}": getattr(self, f"{name}s")[axis]
            for name in names
            for axis, dimension in enumerate(("batch", "channel"))
        }


def waves(estimates: Tensor, actuals: Tensor) -> Waves:
    dtype = compute_dtype(estimates, actuals)
    return Waves(estimates.shape, estimates.stride(), actuals.stride(), dtype, estimates.device)


def prepared(function: Function) -> Function:
    """Keep what a function makes of its arguments and of the sizes in force, for the last of them.

    It sees no tensor but those that are constants of the device.
    """

    @functools.lru_cache(maxsize=256)
    def make(sizes: Config, *key: Any) -> Any:
        return function(*key)

    @functools.wraps(function)
    def get(*key: Any) -> Any:
        return make(config(), *key)

    return cast(Function, get)


@functools.cache
def _knows_dtype_and_alignment(active: Any) -> bool:
    """Whether that is all that a driver's compiler knows of a tensor (AMD's knows the size)."""
    return bool(active.get_current_target().backend == "cuda")


def _only_launches(active: Any) -> bool:
    """Whether Triton would do no more than launch: no hooks of profilers, nothing to be debugged.

    Nor does somebody watch the launches by another ``JITFunction.run`` than Triton's.
    """
    runtime = knobs.runtime
    return not (
        getattr(runtime.launch_enter_hook, "calls", runtime.launch_enter_hook)
        or getattr(runtime.launch_exit_hook, "calls", runtime.launch_exit_hook)
        or runtime.debug
        or getattr(runtime, "add_stages_inspection_hook", None)  # from Triton 3.6 on
        or getattr(knobs.compilation, "instrumentation_mode", None)  # from Triton 3.6 on
        or getattr(jit.JITFunction.run, "__globals__", None) is not vars(jit)
    ) and _knows_dtype_and_alignment(active)


class Launch:
    """A kernel to be run as ``common.launch`` does, with the tensors of a call."""

    def __init__(self, kernel: Any, programs: int, threads: int, **constants: Any) -> None:
        self.kernel, self.programs, self.threads = kernel, programs, threads
        self.constants = constants  # arguments, and options of the compiler
        self.arguments = {name: constants.get(name) for name in kernel.arg_names}
        self.compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, **tensors: Any) -> None:
        """With ``tensors`` by name, each of them a tensor, a tuple of tensors, or None."""
        active = driver.active
        if not _only_launches(active) or getattr(self.kernel, "pre_run_hooks", True):
            launch(self.kernel, self.programs, self.threads, **self.constants, **tensors)
            return
        device = active.get_current_device()
        key = (device, *map(_compiled_for, tensors.values()))
        compiled = self.compiled.get(key)
        if compiled is None:
            compiled = launch(self.kernel, self.programs, self.threads, **self.constants, **tensors)
            self.compiled[key] = compiled
            return
        stream = active.get_current_stream(device)
        arguments = (self.arguments | tensors).values()  # in the kernel's order
        compiled.run(
            self.programs, 1, 1, stream, compiled.function, compiled.packed_metadata,
            None, None, None,  # of hooks, which there are none of
            *arguments,
        )  # fmt: skip


def _compiled_for(x: Any) -> Any:
    """What of a tensor a kernel is compiled for."""
    if x is None:
        return None
    if isinstance(x, tuple):
        return tuple(map(_compiled_for, x))
    return x.dtype, x.data_ptr() % 16 == 0
