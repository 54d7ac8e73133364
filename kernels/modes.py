"""What is kept or said while PyTorch's modes are at work: fake tensors, tracing, torch.func, ...

Inside of a mode an operator may return something else than a plain tensor, which must not outlive
the mode. What is kept is therefore made outside of all modes, and enters them by :func:`lifted`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])

# The dispatcher's keys for all that can stand between an operator and its kernel: modes and
# subclasses in Python, export, torch.func, functionalization.
_KEYS = (
    "Python",
    "PythonTLSSnapshot",
    "PreDispatch",
    "FuncTorchDynamicLayerFrontMode",
    "FuncTorchDynamicLayerBackMode",
    "Functionalize",
)
_MODES = functools.reduce(
    lambda keys, name: keys | torch._C.DispatchKeySet(torch._C._dispatch_key_parse(name)),
    _KEYS,
    torch._C.DispatchKeySet(torch._C.DispatchKey.Undefined),
)


def dispatching() -> bool:
    """Whether a mode looks at every operator (torch.utils._python_dispatch.TorchDispatchMode)."""
    included = torch._C._dispatch_tls_is_dispatch_key_included
    return torch._C._len_torch_dispatch_stack() > 0 or included(torch._C.DispatchKey.PreDispatch)


@contextmanager
def outside() -> Iterator[None]:
    """Makes plain tensors, whatever mode is at work."""
    with ExitStack() as stack:
        traced = torch._C._get_tracing_state()
        if traced is not None:  # by torch.jit.trace
            resume = torch._C._set_tracing_state  # type: ignore[attr-defined]
            stack.callback(resume, traced)
            resume(None)
        stack.enter_context(torch.inference_mode(False))  # else useless in training later
        stack.enter_context(torch._C.DisableTorchFunction())
        stack.enter_context(torch._C._ExcludeDispatchKeyGuard(_MODES))
        yield


def lifted(x: Tensor) -> Tensor:
    """A plain tensor as the modes at work want it, by the way that torch.tensor's data takes."""
    return x if torch.compiler.is_compiling() else torch.ops.aten.lift_fresh(x)


def run_while_tracing(function: Function) -> Function:
    """Make torch.compile call a function as it traces, and not trace it.

    What torch.compiler.assume_constant_result does, without its import of the whole compiler.
    """

    @functools.wraps(function)  # a function of its own: tracing looks into those of functools
    def run(*args: Any) -> Any:
        return function(*args)

    run._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return cast(Function, run)


def variable(x: Any) -> Any:
    """A number, as a tensor if torch.compile has made a variable of it since it changed.

    Operators take numbers as constants alone, and to compute with tensors is also the only way that
    does not make it one again (torch 2.11 does so with what appears in none but derived numbers).
    """
    if not torch.compiler.is_compiling() or isinstance(x, Tensor):
        return x
    from torch.fx.experimental.symbolic_shapes import has_static_value  # imports much

    return x if has_static_value(x) else x * torch.ones((), dtype=torch.float64, device="cpu")


class Cache:
    """Tensors by key, no more than so many bytes of them; the oldest go first."""

    def __init__(self, at_most: int) -> None:
        self.at_most = at_most
        self.tensors: dict[tuple[Hashable, ...], Tensor] = {}

    def keep(self, key: tuple[Hashable, ...], x: Tensor) -> None:
        if x.nbytes <= self.at_most:
            tensors = {**self.tensors, key: x}  # anew, because other threads may be reading
            excess = sum(each.nbytes for each in tensors.values()) - self.at_most
            while excess > 0:
                excess -= tensors.pop(next(iter(tensors))).nbytes
            self.tensors = tensors


def kept(at_most: int) -> Callable[[Function], Function]:
    """Keep the tensors that a function returns, up to so many bytes. They are never to be written.

    torch.compile sees the function as it is: what it makes belongs to the graph.
    """

    def decorate(function: Function) -> Function:
        cache = Cache(at_most)

        @functools.wraps(function)
        def get(*key: Hashable) -> Tensor:
            if torch.compiler.is_compiling():
                return cast(Tensor, function(*key))
            found = cache.tensors.get(key)
            if found is None:
                with outside():
                    found = function(*key)
                    cache.keep(key, found)
            return found

        get.cache = cache  # type: ignore[attr-defined]
        return cast(Function, get)

    return decorate
