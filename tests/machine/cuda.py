"""The far side of cuda.c: modules are loaded and kernels launched as by libcuda, on a machine."""

from __future__ import annotations

import ctypes as c
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import native
from .program import Program, program_of

SUCCESS, INVALID_VALUE, NO_BINARY, FAILED = 0, 1, 209, 719
# By compute capability: shared memory of a program in bytes, opted in to.
SHARED = {80: 166912, 90: 232448}
REGISTERS = 65536  # of a program
REGISTERS_FROM = 256  # a warp's are a multiple of this
# Numbers of CUdevice_attribute, of CUfunction_attribute.
SHARED_OPTIN, SHARED_PER_SM, CAPABILITY = 97, 81, (75, 76)
DEVICE = {12: REGISTERS, 16: 132, 10: 32, 13: 1980000, 36: 2619000, 37: 5120}
MAX_THREADS, STATIC_SHARED, LOCAL, NUM_REGISTERS, MAX_DYNAMIC_SHARED = 0, 1, 3, 4, 8


class LaunchError(RuntimeError):
    """What a GPU would refuse, or run with arguments other than those that were passed."""


class Gpu(Protocol):
    """What loads and launches go to."""

    arch: int

    def rewritten(self, name: str, ptx: str) -> str: ...

    def launched(
        self, f: Function, grid: tuple[int, int, int], threads: int, shared: int, params: Any
    ) -> None: ...


@dataclass
class Function:
    """A loaded kernel: its PTX, and what ptxas made of it."""

    name: str
    program: Program
    registers: int
    stack: int
    static_shared: int
    max_threads: int
    dynamic_limit: int = 49152


def cubin_info(image: bytes, name: str) -> tuple[int, int, int, int]:
    """Registers, bytes of stack, static shared memory and most threads, from the ELF file."""
    (start,) = struct.unpack_from("<Q", image, 40)
    size, count, strings = struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", image, start + k * size) for k in range(count)]
    base = headers[strings][4]

    def label(offset: int) -> str:
        return image[base + offset : image.index(b"\0", base + offset)].decode()

    sections = {label(h[0]): h for h in headers}
    known = {"registers": 0, "stack": 0, "threads": 1024}
    attributes = {
        0x2F: ("registers", 1),
        0x11: ("stack", 1),
        0x05: ("threads", 0),
        0x10: ("threads", 0),
    }
    for section in (".nv.info", f".nv.info.{name}"):
        at, length = sections[section][4:6]
        end = at + length
        while at < end:
            form, attribute, value = struct.unpack_from("<BBH", image, at)
            at += 4
            if form != 4:  # the value itself, which says nothing of these
                continue
            words = struct.unpack_from(f"<{value // 4}I", image, at)
            at += value
            if attribute in attributes:
                key, index = attributes[attribute]
                known[key] = words[index]
    shared = sections.get(f".nv.shared.{name}")
    return known["registers"], known["stack"], shared[5] if shared else 0, known["threads"]


class Cuda:
    """libcuda of this process; ``gpu`` is the one that the call under way is for."""

    def __init__(self, include: Path) -> None:
        self.path = native.build(
            "libcuda.so.1", ["cuda.c"], f"-I{include}", "-Wl,-soname,libcuda.so.1"
        )
        self.lib = c.CDLL(str(self.path), mode=c.RTLD_GLOBAL)
        void, integer = c.c_void_p, c.c_int
        kinds = [
            (self.load, [void, c.POINTER(void)]),
            (self.get, [void, c.c_char_p, c.POINTER(void)]),
            (self.attribute, [void, integer, c.POINTER(integer)]),
            (self.set_attribute, [void, integer, integer]),
            (self.launch, [integer] * 6 + [c.c_uint, void, c.c_uint, void, c.POINTER(void)]),
            (self.device, [integer, c.POINTER(integer)]),
        ]
        self.callbacks = [
            c.CFUNCTYPE(integer, *types)(self.guarded(method)) for method, types in kinds
        ]
        self.lib.set_handlers((void * len(kinds))(*(c.cast(x, void) for x in self.callbacks)))
        self.errors = threading.local()
        self.announced: tuple[str, bytes, str] | None = None  # name, cubin and PTX to be loaded
        self.functions: dict[int, Function] = {}
        self.gpu: Gpu

    @property
    def error(self) -> BaseException | None:
        """What was raised in a call of this thread that came through C."""
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

    def through(self, call: Callable[..., Any], *args: Any) -> Any:
        """Calls C, and raises what was raised on this side of it."""
        self.error = None
        try:
            result = call(*args)
        except RuntimeError as error:
            if self.error is not None:
                raise self.error from error
            raise
        if self.error is not None:
            raise self.error
        return result

    # ---- what cuda.c calls

    def load(self, image: int, module: Any) -> int:
        if (
            self.announced is None
            or c.string_at(image, len(self.announced[1])) != self.announced[1]
        ):
            raise LaunchError("the cubin that is loaded is not the one that was announced")
        name, cubin, text = self.announced
        program = program_of(self.gpu.rewritten(name, text))
        if int(program.kernel.target.removeprefix("sm_").rstrip("a")) != self.gpu.arch:
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
        value[0] = {
            MAX_THREADS: f.max_threads,
            STATIC_SHARED: f.static_shared,
            LOCAL: f.stack,
            NUM_REGISTERS: f.registers,
        }[attribute]
        return SUCCESS

    def set_attribute(self, function: int, attribute: int, value: int) -> int:
        if attribute != MAX_DYNAMIC_SHARED:
            return INVALID_VALUE
        self.functions[function].dynamic_limit = value
        return SUCCESS

    def device(self, attribute: int, value: Any) -> int:
        arch = self.gpu.arch
        shared = dict.fromkeys((SHARED_OPTIN, SHARED_PER_SM), SHARED[arch])
        capability = dict(zip(CAPABILITY, divmod(arch, 10), strict=True))
        value[0] = (DEVICE | shared | capability)[attribute]
        return SUCCESS

    def launch(
        self, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, shared: int, stream: int,
        attributes: int, function: int, params: Any,
    ) -> int:  # fmt: skip
        f = self.functions[function]
        warps = -(-bx // 32)
        each = -(-f.registers * 32 // REGISTERS_FROM) * REGISTERS_FROM
        registers = each * -(-warps // 4) * 4  # four partitions of an SM have as many each
        most = SHARED[self.gpu.arch]
        required = f.program.kernel.threads
        refusals = {
            f"{registers} registers of {REGISTERS}": registers > REGISTERS,
            f"{bx} threads of {f.max_threads}": bx > f.max_threads,
            f"{bx} threads instead of {required}": required not in (None, bx),
            f"threads in {by} and {bz}": (by, bz) != (1, 1),
            f"{shared + f.static_shared} bytes of shared memory of {most}": (
                shared + f.static_shared > most
            ),
            f"{shared} bytes of shared memory where {f.dynamic_limit} were opted in to": (
                shared > f.dynamic_limit
            ),
            f"a grid of {gx}, {gy}, {gz}": not (
                0 < gx < 2**31 and 0 < gy < 65536 and 0 < gz < 65536
            ),
            "launch attributes": bool(attributes),
        }
        reasons = [reason for reason, refused in refusals.items() if refused]
        if reasons:
            raise LaunchError(f"{f.name} cannot be launched with {', '.join(reasons)}")
        self.gpu.launched(f, (gx, gy, gz), bx, shared, params)
        return SUCCESS
