"""A Triton driver whose GPU is the machine: launches run the compiled kernel's PTX on CPU tensors.

Triton's own driver.c and launchers are compiled and used; what they call of libcuda.so.1 is in
cuda.c, which hands loading and launching to :class:`Driver`.
"""

from __future__ import annotations

import contextlib
import ctypes as c
import itertools
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver as active

from . import simt
from .simt import Argument, Finding, Memory, Result

SUCCESS, INVALID_VALUE, NO_BINARY, OUT_OF_RESOURCES, FAILED = 0, 1, 209, 701, 719
# Compute capability -> shared memory of a program in bytes, opted in to; registers of a program.
LIMITS = {80: (166912, 65536), 90: (232448, 65536)}
DEVICE_ATTRIBUTES = {97: "shared", 12: "registers", 16: 132, 10: 32, 13: 1980000, 36: 2619000}
DEVICE_ATTRIBUTES |= {37: 5120, 81: "shared"}
WIDTHS = {"i1": 1, "i8": 1, "u1": 1, "u8": 1, "i16": 2, "u16": 2, "fp16": 2, "bf16": 2, "i32": 4}
WIDTHS |= {"u32": 4, "fp32": 4, "f32": 4, "i64": 8, "u64": 8, "fp64": 8}


class LaunchError(RuntimeError):
    """What a GPU would refuse, or run with arguments other than those that were passed."""


@dataclass
class Function:
    """A loaded kernel: its PTX, and what ptxas made of it."""

    name: str
    program: simt.Program
    registers: int
    stack: int
    static_shared: int
    max_threads: int
    dynamic_limit: int = 49152


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


def cubin_info(image: bytes, name: str) -> tuple[int, int, int, int]:
    """Registers, bytes of stack, static shared memory and most threads, from the ELF file."""
    start, size, count, strings = (
        struct.unpack_from("<Q", image, 40)[0], *struct.unpack_from("<HHH", image, 58),
    )  # fmt: skip
    headers = [struct.unpack_from("<IIQQQQIIQQ", image, start + k * size) for k in range(count)]
    base = headers[strings][4]

    def label(offset: int) -> str:
        return image[base + offset : image.index(b"\0", base + offset)].decode()

    sections = {label(h[0]): h for h in headers}
    registers, stack, threads = 0, 0, 1024
    for section in (".nv.info", f".nv.info.{name}"):
        at, end = sections[section][4], sections[section][4] + sections[section][5]
        while at < end:
            form, attribute, value = struct.unpack_from("<BBH", image, at)
            at += 4
            if form != 4:
                continue
            words = struct.unpack_from(f"<{value // 4}I", image, at)
            at += value
            if attribute == 0x2F:
                registers = words[1]
            elif attribute == 0x11:
                stack = words[1]
            elif attribute in (0x05, 0x10):
                threads = words[0]
    shared = sections.get(f".nv.shared.{name}")
    return registers, stack, shared[5] if shared else 0, threads


class Cuda:
    """The far side of cuda.c."""

    def __init__(self) -> None:
        include = Path(nvidia.__file__).parent / "include"
        built = simt.build("cuda.c", f"-I{include}", "-Wl,-soname,libcuda.so.1")
        path = built.with_name("libcuda.so.1")
        if not path.exists():
            shutil.copy(built, path)
        knobs.nvidia.libcuda_path = str(path.parent)
        nvidia.libcuda_dirs.cache_clear()
        nvidia.library_dirs.cache_clear()
        self.lib = c.CDLL(str(path), mode=c.RTLD_GLOBAL)
        void, integer = c.c_void_p, c.c_int
        kinds = [
            (self.load, [void, c.POINTER(void)]),
            (self.get, [void, c.c_char_p, c.POINTER(void)]),
            (self.attribute, [void, integer, c.POINTER(integer)]),
            (self.set_attribute, [void, integer, integer]),
            (self.launch, [integer] * 6 + [c.c_uint, void, c.c_uint, void, c.POINTER(void)]),
            (self.pointer, [c.c_ulonglong, c.POINTER(c.c_ulonglong)]),
            (self.device, [integer, c.POINTER(integer)]),
        ]
        self.callbacks = [
            c.CFUNCTYPE(integer, *types)(self.guarded(method)) for method, types in kinds
        ]
        self.lib.set_handlers(*self.callbacks)
        self.errors = threading.local()
        self.loading: tuple[str, bytes, str] | None = None  # name, cubin, PTX
        self.functions: dict[int, Function] = {}
        self.driver: Driver | None = None
        knobs.runtime.kernel_load_start_hook.add(self.about_to_load)

    @property
    def error(self) -> BaseException | None:
        return getattr(self.errors, "last", None)

    @error.setter
    def error(self, error: BaseException | None) -> None:
        self.errors.last = error

    def guarded(self, method: Callable[..., int]) -> Callable[..., int]:
        def call(*args: Any) -> int:
            try:
                return method(*args)
            except BaseException as error:  # ctypes would print and drop it
                self.error = error
                return FAILED

        return call

    def about_to_load(self, module: Any, function: Any, name: str, group: Any, hash: str) -> None:
        texts = {Path(path).suffix: Path(path) for path in group.values()}
        self.loading = name, texts[".cubin"].read_bytes(), texts[".ptx"].read_text()

    def load(self, image: int, module: Any) -> int:
        assert self.loading is not None
        assert self.driver is not None
        name, cubin, text = self.loading
        if c.string_at(image, len(cubin)) != cubin:
            raise LaunchError("the cubin that is loaded is not the one that was announced")
        if self.driver.rewrite is not None:
            text = self.driver.rewrite(name, text)
        program = simt.program_of(text)
        arch = int(program.kernel.target.removeprefix("sm_").rstrip("a"))
        if arch != self.driver.target.arch:
            return NO_BINARY
        handle = len(self.functions) + 1
        self.functions[handle] = Function(name, program, *cubin_info(cubin, name))
        module[0] = handle
        return SUCCESS

    def get(self, module: int, name: bytes, function: Any) -> int:
        if self.functions[module].name != name.decode():
            return INVALID_VALUE
        function[0] = module
        return SUCCESS

    def attribute(self, function: int, attribute: int, value: Any) -> int:
        f = self.functions[function]
        value[0] = {0: f.max_threads, 1: f.static_shared, 3: f.stack, 4: f.registers}[attribute]
        return SUCCESS

    def set_attribute(self, function: int, attribute: int, value: int) -> int:
        if attribute == 8:
            self.functions[function].dynamic_limit = value
        return SUCCESS

    def pointer(self, address: int, device: Any) -> int:
        device[0] = address
        return SUCCESS

    def device(self, attribute: int, value: Any) -> int:
        assert self.driver is not None
        shared, registers = LIMITS[self.driver.target.arch]
        known = DEVICE_ATTRIBUTES[attribute]
        value[0] = {"shared": shared, "registers": registers}.get(known, known)
        return SUCCESS

    def launch(
        self, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, shared: int, stream: int,
        attributes: int, function: int, params: Any,
    ) -> int:  # fmt: skip
        assert self.driver is not None
        f = self.functions[function]
        limit, registers = LIMITS[self.driver.target.arch]
        # Registers are given to warps in units of 256.
        warps = -(-bx // 32)
        needed = -(-f.registers * 32 // 256) * 256 * -(-warps // 4) * 4
        if needed > registers or bx > f.max_threads or shared + f.static_shared > limit:
            return OUT_OF_RESOURCES
        if shared > f.dynamic_limit:
            return INVALID_VALUE
        required = f.program.kernel.threads
        if (by, bz) != (1, 1) or (required is not None and bx != required):
            return INVALID_VALUE
        if not (0 < gx < 2**31 and 0 < gy < 65536 and 0 < gz < 65536) or attributes:
            return INVALID_VALUE
        self.driver.launched(f, (gx, gy, gz), bx, shared, params)
        return SUCCESS


class Utils:
    """Triton's, but loading fails with the reason."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.inner = cuda, nvidia.CudaUtils()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def load_binary(self, *args: Any) -> Any:
        self.cuda.error = None
        try:
            return self.inner.load_binary(*args)
        except RuntimeError as error:
            if self.cuda.error is not None:
                raise self.cuda.error from error
            raise


class Launcher(nvidia.CudaLauncher):
    """Triton's launcher; its arguments are looked at on the way, for whose memory they are."""

    def __init__(self, src: Any, metadata: Any) -> None:
        super().__init__(src, metadata)
        self.src = src

    def __call__(self, gx: int, gy: int, gz: int, stream: int, function: int, *args: Any) -> None:
        driver = active.active
        assert isinstance(driver, Driver)
        types: list[str] = []
        values: list[Any] = []
        names: list[str] = []

        def flatten(name: str, kind: Any, value: Any) -> None:
            if isinstance(kind, tuple):
                for k, (x, y) in enumerate(zip(kind, value, strict=True)):
                    flatten(f"{name}[{k}]", x, y)
            elif kind != "constexpr":
                names.append(name)
                types.append(kind)
                values.append(value)

        for (name, kind), value in zip(self.src.signature.items(), args[4:], strict=True):
            flatten(name, kind, value)
        constants = {
            name: value
            for (name, kind), value in zip(self.src.signature.items(), args[4:], strict=True)
            if kind == "constexpr"
        }
        driver.pending.launch = (names, types, values, constants)
        cuda = driver.cuda
        cuda.error = None
        try:
            super().__call__(gx, gy, gz, stream, function, *args)
        except RuntimeError as error:
            if cuda.error is not None:
                raise cuda.error from error
            raise
        finally:
            driver.pending.launch = None
        if cuda.error is not None:
            raise cuda.error


class Driver(DriverBase):
    """Give it to ``triton.runtime.driver.set_active``, or use :func:`emulated`."""

    _cuda: Cuda | None = None
    _rewriting = itertools.count(1000)

    def __init__(
        self,
        arch: int = 90,
        races: bool = True,
        poison: int = 0xFF,
        seed: int = 0,
        budget: int = 1 << 33,
        rewrite: Callable[[str, str], str] | None = None,  # name, PTX -> the PTX that runs
    ) -> None:
        if Driver._cuda is None:
            Driver._cuda = Cuda()
        self.cuda = Driver._cuda
        self.cuda.driver = self
        self.target = GPUTarget("cuda", arch, 32)
        # Triton keeps what it has compiled and loaded by the number of the device.
        self.device = arch if rewrite is None else next(Driver._rewriting)
        self.utils = Utils(self.cuda)
        self.launcher_cls = Launcher
        self.races, self.poison, self.seed, self.budget = races, poison, seed, budget
        self.rewrite = rewrite
        self.records: list[Record] = []
        self.pending = threading.local()  # what the launch under way was given
        self.memory_of: Callable[[torch.Tensor], Memory] = memory_of
        self.programs: Callable[[str, int], list[range]] | None = None  # which of a grid to run
        self.again: Callable[..., None] | None = None  # is given each launch before it runs

    @property
    def findings(self) -> list[Finding]:
        return [f for r in self.records for f in r.result.findings]

    def launched(self, f: Function, grid: Any, threads: int, shared: int, params: Any) -> None:
        names, types, values, constants = self.pending.launch
        kernel = f.program.kernel
        names = [*names, "global scratch", "profile scratch"]
        types, values = [*types, "*i8", "*i8"], [*values, None, None]
        given = [(8 if t[0] == "*" else WIDTHS[t], t[0] == "*") for t in types]
        wanted = [(p.size, p.pointer) for p in kernel.parameters]
        if given != wanted:
            raise LaunchError(f"{f.name} takes {wanted} and is given {given}")
        block = bytearray()
        arguments = []
        for parameter, name, kind, value, at in zip(
            kernel.parameters, names, types, values, params[: len(names)], strict=True
        ):
            block += bytes(parameter.offset - len(block)) + c.string_at(at, parameter.size)
            word = int.from_bytes(block[parameter.offset :], "little")
            if kind[0] != "*":
                if kind[0] in "iu" and word != value & (1 << 8 * parameter.size) - 1:
                    raise LaunchError(f"{name} is {value} and arrives as {word}")
                continue
            if value is None:
                arguments.append(Argument(name, None))
                continue
            if word != value.data_ptr():
                raise LaunchError(f"{name} is at {value.data_ptr():#x} and arrives as {word:#x}")
            view = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
            end = word + (view * value.element_size() if value.numel() else 0)
            arguments.append(Argument(name, self.memory_of(value), word, end))
        if self.again is not None:
            self.again(f.program, grid, threads, shared, bytes(block), arguments)
        start = time.perf_counter()
        result = simt.run(
            f.program, grid, threads, shared, bytes(block), arguments,
            self.races, self.poison, self.seed, self.budget,
            None if self.programs is None else self.programs(f.name, grid[0]),
        )  # fmt: skip
        seconds = time.perf_counter() - start
        self.records.append(Record(f.name, f, grid, threads, shared, result, seconds, constants))

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
        return divmod(self.target.arch, 10)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return nvidia.ty_to_cpp(ty)

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    @classmethod
    def is_active(cls) -> bool:
        return True


def memory_of(x: torch.Tensor) -> Memory:
    """A tensor's storage, all of which counts as written."""
    storage = x.untyped_storage()
    return Memory(storage.data_ptr(), storage.data_ptr() + storage.nbytes(), x.element_size())


@contextlib.contextmanager
def emulated(**options: Any) -> Iterator[Driver]:
    """Inside, Triton kernels run on CPU tensors."""
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels would not be compiled")
    before = active._active
    new = Driver(**options)
    active.set_active(new)
    try:
        yield new
    finally:
        active._active = before
