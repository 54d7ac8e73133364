"""A Triton driver whose GPU is the machine: launches run the kernel's PTX on CPU tensors."""

from __future__ import annotations

import contextlib
import ctypes as c
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver as active

from . import simt, triton_version
from .cuda import SHARED, Cuda, Function, LaunchError
from .simt import Argument, Finding, Memory, Options, Result


@dataclass
class Record:
    """One launch."""

    kernel: str
    function: Function
    grid: tuple[int, int, int]
    threads: int
    shared: int
    result: Result
    seconds: float
    constants: dict[str, Any] = field(default_factory=dict)


class Driver(DriverBase):
    """Give it to ``triton.runtime.driver.set_active``, or use :func:`emulated`.

    Args:
        arch: compute capability, 80 or 90.
        rewrite: is given a kernel's name and PTX, and returns the PTX that runs.
        options: those of :class:`machine.simt.Options`.
    """

    _cuda: Cuda | None = None
    _rewriting = itertools.count(1000)

    def __init__(
        self, arch: int = 90, rewrite: Callable[[str, str], str] | None = None, **options: Any
    ) -> None:
        if arch not in SHARED:
            raise ValueError(f"arch is {arch}; the machine is one of {', '.join(map(str, SHARED))}")
        if Driver._cuda is None:
            Driver._cuda = Cuda(triton_version.INCLUDE)
            triton_version.use(Driver._cuda)
        self.cuda = Driver._cuda
        self.arch = arch
        self.target = GPUTarget("cuda", arch, 32)
        # Triton keeps what it has compiled and loaded by the number of the device.
        self.device = arch if rewrite is None else next(Driver._rewriting)
        self.utils = triton_version.Utils(self.cuda, self)
        self.launcher_cls = triton_version.Launcher
        self.options = Options(**options)
        self.rewrite = rewrite
        self.records: list[Record] = []
        self.pending = threading.local()  # what the launch under way was given
        self.memory_of: Callable[[torch.Tensor], Memory] = memory_of
        self.programs: Callable[[str, int], list[range]] | None = None  # which of a grid to run
        self.run: Callable[..., Result] = simt.run  # what runs a launch

    @property
    def findings(self) -> list[Finding]:
        return [f for f in self._all() if not f.kind.startswith("data-dependent")]

    @property
    def tainted(self) -> list[Finding]:
        """Where data decides which accesses happen, with the option ``taint``."""
        return [f for f in self._all() if f.kind.startswith("data-dependent")]

    def _all(self) -> Iterator[Finding]:
        return (f for r in self.records for f in r.result.findings)

    @contextlib.contextmanager
    def launching(self, given: list[tuple[str, str, Any]], constants: Any) -> Iterator[None]:
        """Around a launch whose kernel is given these names, types and values."""
        self.cuda.gpu = self
        self.pending.launch = given, constants
        try:
            yield
        finally:
            self.pending.launch = None

    def rewritten(self, name: str, ptx: str) -> str:
        return ptx if self.rewrite is None else self.rewrite(name, ptx)

    def launched(
        self, f: Function, grid: tuple[int, int, int], threads: int, shared: int, params: Any
    ) -> None:
        given, constants = self.pending.launch
        block, arguments = self.bound(f, given, params)
        programs = None if self.programs is None else self.programs(f.name, grid[0])
        start = time.perf_counter()
        result = self.run(
            f.program, grid, threads, shared, block, arguments, self.options, programs
        )
        seconds = time.perf_counter() - start
        self.records.append(Record(f.name, f, grid, threads, shared, result, seconds, constants))

    def bound(
        self, f: Function, given: list[tuple[str, str, Any]], params: Any
    ) -> tuple[bytes, list[Argument]]:
        """The block of parameters, as it arrives, and whose memory its pointers are."""
        types = [kind for _, kind, _ in given]
        passed = [(8 if t[0] == "*" else triton_version.WIDTHS[t], t[0] == "*") for t in types]
        wanted = [(p.size, p.pointer) for p in f.program.kernel.parameters]
        if passed != wanted:
            raise LaunchError(f"{f.name} takes {wanted} and is given {passed}")
        block = bytearray()
        arguments = []
        for k, (parameter, (name, kind, value)) in enumerate(
            zip(f.program.kernel.parameters, given, strict=True)
        ):
            block += bytes(parameter.offset - len(block)) + c.string_at(params[k], parameter.size)
            word = int.from_bytes(block[parameter.offset :], "little")
            if kind[0] != "*":
                if kind[0] in "iu" and word != value & (1 << 8 * parameter.size) - 1:
                    raise LaunchError(f"{name} is {value} and arrives as {word}")
            elif value is None:
                arguments.append(Argument(name, None))
            elif word != value.data_ptr():
                raise LaunchError(f"{name} is at {value.data_ptr():#x} and arrives as {word:#x}")
            else:
                reach = sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
                size = (1 + reach) * value.element_size() if value.numel() else 0
                arguments.append(Argument(name, self.memory_of(value), word, word + size))
        return bytes(block), arguments

    # ---- what Triton asks of a driver

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        if device != self.device:
            raise LaunchError(f"there is no device {device}")

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self.arch, 10)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return triton_version.cpp_type(ty)

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing is timed on the machine")

    @classmethod
    def is_active(cls) -> bool:
        return True


def memory_of(x: torch.Tensor) -> Memory:
    """A tensor's storage, all of which counts as written."""
    storage = x.untyped_storage()
    return Memory(storage.data_ptr(), storage.data_ptr() + storage.nbytes(), x.element_size())


@contextlib.contextmanager
def emulated(**options: Any) -> Iterator[Driver]:
    """Inside, Triton kernels run on CPU tensors. Options are those of :class:`Driver`."""
    if triton_version.interprets():
        raise RuntimeError("TRITON_INTERPRET is set: kernels would not be compiled")
    before = active._active
    new = Driver(**options)
    active.set_active(new)
    try:
        yield new
    finally:
        active._active = before
