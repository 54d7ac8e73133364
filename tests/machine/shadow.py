"""Which bytes of which tensors have been written: by kernels, by PyTorch, or not yet."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .simt import Memory

FRESH = {"empty", "new_empty", "empty_strided", "new_empty_strided", "empty_like"}
# In place, but of what is there nothing is read.
OVERWRITES = {"copy_", "zero_", "fill_", "uniform_", "normal_", "random_", "bernoulli_"}
OVERWRITES |= {"exponential_"}


@dataclass
class UnwrittenRead:
    """An operator of PyTorch that read memory which nothing had written."""

    operator: str
    argument: int
    elements: int
    where: str

    def __str__(self) -> str:
        what = f"{self.elements} unwritten elements of argument {self.argument}"
        return f"{self.operator} reads {what} at {self.where}"


class Tracker(TorchDispatchMode):
    """Inside, fresh memory counts as unwritten, and is filled with ``poison``.

    ``findings`` has what PyTorch reads of it; kernels are watched with
    ``driver.memory_of = tracker.memory_of``.

    Inside, storages live on, so that no address comes to mean another.
    """

    def __init__(self, poison: int = 0xFF) -> None:
        super().__init__()
        self.poison = poison
        self.memories: dict[int, Memory] = {}
        self.held: list[Any] = []
        self.findings: list[UnwrittenRead] = []

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.memories.clear()  # a shadow is some thirty times as large as its memory
        self.held.clear()

    def memory_of(self, x: torch.Tensor) -> Memory:
        storage = x.untyped_storage()
        lo = storage.data_ptr()
        known = self.memories.get(lo)
        if known is None or known.hi != lo + storage.nbytes():
            known = Memory(lo, lo + storage.nbytes(), x.element_size())
            self.memories[lo] = known
            self.held.append(storage)
        if x.element_size() < known.granule:
            known.granule, known.shadow = x.element_size(), None
        return known

    def written(self, x: torch.Tensor) -> np.ndarray | None:
        """A view of the bytes' marks with the tensor's shape and strides; None if all are."""
        known = self.memories.get(x.untyped_storage().data_ptr())
        if known is None or known.written is None:
            return None
        size = x.element_size()
        return np.lib.stride_tricks.as_strided(
            known.written[x.storage_offset() * size :],
            (*x.shape, size),
            (*[s * size for s in x.stride()], 1),
        )

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not all(map(plain, tensors((args, kwargs)))):
            return function(*args, **kwargs)
        if function.namespace != "aten":  # whatever it writes, it may be all that it is given
            result = function(*args, **kwargs)
            self.mark((args, kwargs, result))
            return result
        name, writes, view, out = effects(function)
        if not view and name not in FRESH:
            for i, a in enumerate(args):
                if not (out and i in writes.values()):
                    for x in tensors(a):
                        self.read(name, i, x)
        result = function(*args, **kwargs)
        if name in FRESH:
            for x in tensors(result):
                self.allocated(x)
        elif not view:
            written = [args[i] for i in writes.values() if i < len(args)]
            self.mark((result, written, [kwargs[n] for n in writes if n in kwargs]))
        return result

    def mark(self, x: Any) -> None:
        for y in tensors(x):
            marks = self.written(y) if plain(y) else None
            if marks is not None:
                marks[...] = 1
                self.settle(y, marks)

    def settle(self, x: torch.Tensor, marks: np.ndarray) -> None:
        """Forget the marks where the tensor is all of its memory, for they are all set."""
        storage = x.untyped_storage()
        if x.is_contiguous() and marks.size == storage.nbytes():
            self.memories[storage.data_ptr()].written = None

    def read(self, name: str, argument: int, x: torch.Tensor) -> None:
        marks = self.written(x) if x.numel() else None
        if marks is None:
            return
        if marks.all():
            self.settle(x, marks)
            return
        count = int((~marks.astype(bool).all(-1)).sum())
        frame = sys._getframe(1)
        while frame.f_back and (
            "torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__
        ):
            frame = frame.f_back
        where = f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        self.findings.append(UnwrittenRead(name, argument, count, where))

    def allocated(self, x: torch.Tensor) -> None:
        size = x.untyped_storage().nbytes()
        if not size or not plain(x):
            return
        self.memory_of(x).written = np.zeros(size + 8, np.uint8)
        ctypes.memset(x.untyped_storage().data_ptr(), self.poison, size)


@functools.cache
def effects(function: Any) -> tuple[str, dict[str, int], bool, bool]:
    """An operator's name; what it writes; whether it makes a view, or reads no output."""
    name = function.overloadpacket.__name__
    arguments = function._schema.arguments
    writes = {a.name: i for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write}
    view = any(a.alias_info and not a.alias_info.is_write for a in arguments)
    # What is written without being read before.
    out = function._overloadname.startswith(("out", "grad_input")) or name in OVERWRITES
    return name, writes, view, out


def tensors(x: Any) -> Iterator[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, list | tuple):
        for y in x:
            yield from tensors(y)
    elif isinstance(x, dict):
        yield from tensors(list(x.values()))


def plain(x: torch.Tensor) -> bool:
    """With memory of its own kind: not a tensor that a transform or a compiler traces with."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x) or x._is_zerotensor()
    return (
        type(x) in (torch.Tensor, torch.nn.Parameter) and x.layout == torch.strided and not wrapped
    )
