"""The machine's C part: built by gcc once per machine, and its structures as ctypes has them."""

from __future__ import annotations

import ctypes as c
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Every product and sum is rounded by itself: fma is fused where PTX says so, and only there.
FLAGS = ["-O3", "-march=native", "-ffp-contract=off"]
FLAGS += ["-fno-strict-aliasing", "-fwrapv", "-shared", "-fPIC"]
SOURCES = ["warps.c", "execute.c", "memory.c", "sanitizers.c", "counters.c"]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torch-l1snr-fast"


@functools.cache
def processor() -> str:
    """What -march=native depends on, so that a shared home serves several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return "".join(sorted({x for x in lines if x.startswith(("flags", "Features", "model name"))}))


def build(name: str, sources: list[str], *more: str) -> Path:
    """The shared library of some C files, in a folder that is named after all that makes it."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise RuntimeError(
            "tests/machine executes GPU kernels on the CPU and needs gcc to build its C part: "
            "install it (Debian and Ubuntu: apt install gcc) or leave these tests out"
        )
    headers = [p.name for p in HERE.glob("*.h")]
    parts = [(HERE / x).read_bytes() for x in sorted([*sources, *headers])]
    parts.append(" ".join([compiler, processor(), *FLAGS, *more]).encode())
    out = CACHE / hashlib.sha256(b"\0".join(parts)).hexdigest()[:16] / name
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        new = out.with_name(f"{name}.{os.getpid()}")  # others may build it at the same time
        command = [
            compiler,
            *FLAGS,
            *(str(HERE / x) for x in sources),
            "-o",
            str(new),
            "-lm",
            *more,
        ]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(f"gcc could not build {name} of tests/machine:\n{made.stderr}")
        new.rename(out)
    return out


def fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


# The structures of machine.h, in its order.


class Ins(c.Structure):
    _fields_ = [
        *fields(
            c.c_int32,
            "op kind space guard guard_negated leader sync meet side n_side to from_ wide",
        ),
        *fields(c.c_int32, "negated how n size width to_bits from_bits to_width from_width"),
        *fields(c.c_int32, "to_signed from_signed saturate"),
        *fields(c.c_int32 * 12, "o"),
        *fields(c.c_int64, "imm"),
    ]


class Program(c.Structure):
    _fields_ = [
        *fields(c.POINTER(Ins), "ins"),
        *fields(c.c_int64, "n_ins regs_bytes n_consts"),
        *fields(c.c_void_p, "const_offset const_value const_width assigned"),
        *fields(c.c_int32 * 3, "tid ctaid ntid nctaid"),
        *fields(c.c_int32, "laneid warpid shared_granule"),
    ]


class Count(c.Structure):
    _fields_ = fields(c.c_uint64, "count threads requests got best bytes")


class Finding(c.Structure):
    _fields_ = [
        *fields(c.c_int32, "kind pc pc2 arg hazard same cta thread cta2 thread2 landed detail"),
        *fields(c.c_int64, "count"),
        *fields(c.c_uint64, "address"),
    ]


class Alloc(c.Structure):
    _fields_ = [
        *fields(c.c_uint64, "lo hi"),
        *fields(c.c_void_p, "written shadow"),
        *fields(c.c_int64, "granule"),
    ]


class Arg(c.Structure):
    _fields_ = [*fields(c.c_uint64, "view_lo view_hi"), *fields(c.c_int32, "alloc data")]


class Launch(c.Structure):
    _fields_ = [
        *fields(c.c_int32 * 3, "grid"),
        *fields(c.c_int32, "threads shared_bytes n_args n_allocs n_params"),
        *fields(c.c_void_p, "params param_arg args allocs"),
        *fields(c.c_int32, "races poison taint order"),
        *fields(c.c_uint64, "seed approximate"),
        *fields(c.c_int64, "budget"),
        *fields(c.c_void_p, "counts needed findings"),
        *fields(c.c_int32, "max_findings n_findings"),
        *fields(c.c_int64, "executed"),
        *fields(c.c_int32, "cta_from cta_to"),
    ]


STRUCTURES = (Ins, Program, Count, Finding, Alloc, Arg, Launch)


@functools.cache
def library() -> c.CDLL:
    lib = c.CDLL(str(build("machine.so", SOURCES)))
    lib.op_name.restype = c.c_char_p
    lib.size_of.restype = c.c_int64
    lib.run.restype = None
    lib.free_shadow.argtypes, lib.free_shadow.restype = [c.c_void_p, c.c_int64], None
    for k, mine in enumerate(STRUCTURES):
        if lib.size_of(k) != c.sizeof(mine):
            raise RuntimeError(f"native.{mine.__name__} is not what machine.h has")
    return lib


@functools.cache
def operations() -> dict[str, int]:
    """The numbers of what ops.h lists."""
    names: dict[str, int] = {}
    while (name := library().op_name(len(names))) is not None:
        names[name.decode()] = len(names)
    return names


def page() -> int:
    """Granules of a page of shadow memory."""
    return int(library().size_of(len(STRUCTURES)))
