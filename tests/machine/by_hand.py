"""Launches of PTX that is written by hand."""

from __future__ import annotations

import struct

import numpy as np

from .program import Program
from .ptx import parse
from .simt import Argument, Memory, Options, Result, run

HEAD = """.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 smem[];
.visible .entry test(
{parameters}
)
.reqntid {threads}
{{
.reg .pred %p<9>;
.reg .b16 %h<9>;
.reg .b32 %r<40>;
.reg .b64 %q<9>;
"""


def launch(
    body: str,
    arrays: list[np.ndarray],
    threads: int = 32,
    programs: int = 1,
    shared: int = 4096,
    names: str = "",
    **options: object,
) -> Result:
    """Parameters p0, p1, ... are the arrays' addresses; ``names`` are the arguments'."""
    parameters = [f".param .u64 .ptr .global .align 1 p{k}" for k in range(len(arrays))]
    text = HEAD.format(parameters=",\n".join(parameters), threads=threads) + body + "\nret;\n}\n"
    arguments = []
    for k, x in enumerate(arrays):
        at, end = x.ctypes.data, x.ctypes.data + x.nbytes
        name = names.split()[k] if names else f"p{k}"
        arguments.append(Argument(name, Memory(at, end, min(4, x.itemsize)), at, end))
    block = b"".join(struct.pack("<Q", x.ctypes.data) for x in arrays)
    grid = (programs, 1, 1)
    return run(Program(parse(text)), grid, threads, shared, block, arguments, Options(**options))


def aligned(size: int) -> np.ndarray:
    """Bytes that start at a multiple of 64."""
    data = np.zeros(size + 64, np.uint8)
    at = -data.ctypes.data % 64
    return data[at : at + size]


START = """
ld.param.b64 %q0, [p0];
mov.u32 %r0, %tid.x;
mov.u32 %r1, %laneid;
mov.u32 %r2, smem;
"""
# Of a lane, the row of a matrix of half words; and its word at p0.
ROW = "mad.lo.s32 %r3, %r1, 16, %r2;\n"
STORE = "mad.wide.s32 %q1, %r0, 4, %q0;\nst.global.b32 [%q1], %r3;\nret;\n"
ORDERS = ["forward", "backward", "ahead", "mixed"]


def started(body: str, threads: int = 32, size: int = 65536, **options: object) -> Result:
    """Launched with an array's address in %q0, the thread in %r0, its lane in %r1, smem in %r2."""
    return launch(START + body, [aligned(size)], threads, **options)


def kinds(result: Result) -> set[str]:
    return {"benign" if f.benign else f.kind for f in result.findings}


def stored(body: str, threads: int, **options: object) -> tuple[list[int], Result]:
    """The words that threads leave at p0."""
    data = np.zeros(threads, np.uint32)
    result = launch(START + body, [data], threads, shared=0, **options)
    assert not result.findings, result.findings[0]
    return data.tolist(), result
