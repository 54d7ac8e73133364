"""Which implementation computes a loss: by the tensors' device and by what is asked of it."""

from __future__ import annotations

import importlib.util
import os
import warnings
from functools import lru_cache
from types import ModuleType, TracebackType

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .kernels import eager
from .kernels.modes import dispatching, run_while_tracing

BACKENDS = ("auto", "triton", "eager", "reference")
VARIABLE = "TORCH_L1SNR_FAST_BACKEND"
# Types of devices that Triton's active driver serves. Tests, whose driver serves a CPU, add that.
TRITON_DEVICES = frozenset({"cuda", "xpu"})
OLDEST_TRITON = (3, 5)  # constexpr_function, and recursion of functions on tuples


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_chosen = _checked(os.environ.get(VARIABLE, "auto"), f"environment variable {VARIABLE}")


class use_backend:
    """Choose the backend: ``use_backend("eager")`` from here on, or for a ``with`` block.

    Args:
        name: ``"auto"`` (Triton on GPUs, eager elsewhere), ``"triton"``, ``"eager"`` or
            ``"reference"``. The variable TORCH_L1SNR_FAST_BACKEND sets the first choice.

    Double backward, gradients to the actuals, forward-mode AD and torch.func are always computed
    by the reference, which alone can.

    Raises:
        ValueError: for any other name. A loss called with a backend that its device cannot run
            raises RuntimeError.

    Example:
        >>> with use_backend("reference"):
        ...     print(L1SNRLoss("l1snr")(torch.zeros(1, 8), torch.zeros(1, 8)))
        tensor(0.)
    """

    def __init__(self, name: str) -> None:
        global _chosen
        self._before = _chosen
        _chosen = _checked(name, "name")

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _chosen
        _chosen = self._before


@run_while_tracing
@lru_cache(maxsize=1)
def triton_problem() -> str | None:
    """Why Triton cannot be used, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"triton {triton.__version__} is too old (pip install 'triton>={oldest}')"
    return None


@run_while_tracing
@lru_cache(maxsize=1)
def _warn_without_triton(problem: str) -> None:
    warnings.warn(
        f"torch_l1snr_fast: {problem}; GPU tensors are computed by the slower eager backend",
        RuntimeWarning,
        stacklevel=2,
    )


def select_backend(device: torch.device) -> str:
    """Name of the backend for tensors on ``device``."""
    if _chosen in ("eager", "reference"):
        return _chosen
    served = device.type in TRITON_DEVICES
    if _chosen == "auto":
        if not served:
            return "eager"
        problem = triton_problem()
        if problem is None:
            return "triton"
        _warn_without_triton(problem)
        return "eager"

    problem = triton_problem()
    if problem is None and not served:
        problem = f"it does not run on {device.type!r} tensors"
    if problem is not None:
        raise RuntimeError(
            f"the triton backend was asked for, but {problem}. Use use_backend('auto') or 'eager'."
        )
    return "triton"


def kernels(name: str) -> ModuleType:
    """The module with ``statistics``, ``objective`` and ``gradient`` of a backend."""
    if name == "triton":
        from .kernels import triton  # imported on first use: Triton costs import time

        return triton
    return eager


def is_batched(x: Tensor) -> bool:
    """Whether a tensor stands for many, as incoming gradients with is_grads_batched=True do."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(x) or functorch.is_functorch_wrapped_tensor(x)


@run_while_tracing
def transforming() -> bool:
    """Whether torch.func (vmap, grad, jvp, ...), forward-mode AD or torch.jit.trace is at work."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._is_tracing()
    )


def needs_reference(estimates: Tensor, actuals: Tensor) -> bool:
    """Whether something is asked that only differentiable PyTorch can answer."""
    return (
        (actuals.requires_grad and torch.is_grad_enabled())
        or is_traceable_wrapper_subclass(estimates)  # DTensor, NestedTensor, ...
        or is_traceable_wrapper_subclass(actuals)
        or transforming()
    )


def needs_operator() -> bool:
    """Whether the computation is looked at, operator by operator, and has to be one of them."""
    return torch.compiler.is_compiling() or dispatching()


def refuse_distributed(x: Tensor) -> None:
    if hasattr(x, "full_tensor"):
        raise TypeError(
            "the STFT of a DTensor cannot be computed. Pass what it holds: x.full_tensor(), or"
            " x.to_local() where it is sharded by batch items (and average over the ranks)"
        )
