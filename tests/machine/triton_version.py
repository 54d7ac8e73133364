"""What is of one Triton or another, of 3.5 to 3.9: names of its NVIDIA backend, launchers, hooks.

Triton's own driver.c and launchers are compiled and used, against the libcuda.so.1 of cuda.c.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from triton import knobs
from triton.backends.nvidia import driver as nvidia
from triton.compiler import CompiledKernel
from triton.runtime import driver as active

from .cuda import Cuda, Gpu

INCLUDE = Path(nvidia.__file__).parent / "include"
# Triton hands a launch these before the kernel's arguments: metadata, what hooks are given, hooks.
BEFORE_ARGUMENTS = 4
# And the kernel itself these pointers after its own.
SCRATCH = ("global scratch", "profile scratch")
WIDTHS = {"i1": 1, "i8": 1, "u1": 1, "u8": 1, "i16": 2, "u16": 2, "fp16": 2, "bf16": 2, "i32": 4}
WIDTHS |= {"u32": 4, "fp32": 4, "f32": 4, "i64": 8, "u64": 8, "fp64": 8}


def use(cuda: Cuda) -> None:
    """Lets Triton find our libcuda.so.1, and tell of what it loads."""
    folder = cuda.path.parent
    with contextlib.suppress(FileExistsError):  # Triton 3.5 links this name
        (folder / "libcuda.so").symlink_to(cuda.path.name)
    knobs.nvidia.libcuda_path = str(folder)
    nvidia.libcuda_dirs.cache_clear()
    nvidia.library_dirs.cache_clear()

    def announce(module: Any, function: Any, name: str, group: Any, hash: str) -> None:
        texts = {Path(path).suffix: Path(path) for path in group.values()}
        cuda.announced = name, texts[".cubin"].read_bytes(), texts[".ptx"].read_text()

    knobs.runtime.kernel_load_start_hook.add(announce)
    # A kernel of 3.9 unloads its module when it is collected, by whichever driver is active then.
    CompiledKernel.__del__ = lambda kernel: None


def interprets() -> bool:
    return bool(knobs.runtime.interpret)


class Utils:
    """Triton's, asked for a GPU; loading fails with the reason."""

    def __init__(self, cuda: Cuda, gpu: Gpu) -> None:
        self.cuda, self.gpu, self.inner = cuda, gpu, nvidia.CudaUtils()

    def __getattr__(self, name: str) -> Any:
        self.cuda.gpu = self.gpu
        return getattr(self.inner, name)

    def load_binary(self, *args: Any) -> Any:
        self.cuda.gpu = self.gpu
        return self.cuda.through(self.inner.load_binary, *args)


class Launcher(nvidia.CudaLauncher):  # type: ignore[misc]
    """Triton's launcher; its arguments are looked at on the way, for whose memory they are."""

    def __init__(self, src: Any, metadata: Any) -> None:
        super().__init__(src, metadata)
        self.signature = dict(src.signature)

    def __call__(self, gx: int, gy: int, gz: int, stream: int, function: int, *args: Any) -> None:
        driver = active.active
        values = args[BEFORE_ARGUMENTS:]
        flat: list[tuple[str, str, Any]] = []
        for (name, kind), value in zip(self.signature.items(), values, strict=True):
            flatten(name, kind, value, flat)
        constants = {name: value for name, kind, value in flat if kind == "constexpr"}
        given = [x for x in flat if x[1] != "constexpr"]
        given += [(name, "*i8", None) for name in SCRATCH]
        with driver.launching(given, constants):
            driver.cuda.through(super().__call__, gx, gy, gz, stream, function, *args)


def flatten(name: str, kind: Any, value: Any, out: list[tuple[str, str, Any]]) -> None:
    if isinstance(kind, tuple):
        for k, (x, y) in enumerate(zip(kind, value, strict=True)):
            flatten(f"{name}[{k}]", x, y, out)
    else:
        out.append((name, kind, value))


def cpp_type(kind: str) -> str:
    return str(nvidia.ty_to_cpp(kind))
