"""Which barriers are all that orders two accesses: those without which there is a race."""

from __future__ import annotations

import struct

import pytest

from .by_hand import START, aligned, launch
from .simt import Argument, Memory, run

ADDRESS = "mad.lo.s32 %r3, %r0, 4, %r2;\n"
MINE, OTHER = "st.shared.b32 [%r3], %r0;\n", "mov.b32 %r6, 7;\nst.shared.b32 [%r3], %r6;\n"
ALL, WARP = "bar.sync 0;\n", "bar.warp.sync -1;\n"
GLOBAL = "cvt.s64.s32 %q1, %r3;\nadd.s64 %q1, %q1, %q0;\nst.global.b32 [%q1+-1024], %r0;\n"
EXCHANGED = "xor.b32 %r3, %r3, 128;\n"  # the word of the thread in the other warp


def word_of(step: int, among: int = 64) -> str:
    """Loads what the thread that is ``step`` further has stored."""
    return (
        f"add.s32 %r4, %r0, {step};\nand.b32 %r4, %r4, {among - 1};\n"
        "mad.lo.s32 %r4, %r4, 4, %r2;\nld.shared.b32 %r5, [%r4];\n"
    )


def loop(body: str) -> str:
    """Three times."""
    again = "add.s32 %r9, %r9, 1;\nsetp.lt.u32 %p2, %r9, 3;\n@%p2 bra $A;\n"
    return f"mov.b32 %r9, 0;\n$A:\n{body}{again}"


# What, PTX, the barriers that are needed, counted from 0.
CASES: list[tuple[str, str, set[int]]] = [
    ("a write and a read", MINE + ALL + word_of(32), {0}),
    ("a read and a write", MINE + ALL + word_of(32) + ALL + OTHER, {0, 1}),
    ("two writes", MINE + ALL + EXCHANGED + OTHER, {0}),
    ("two barriers", MINE + ALL + ALL + word_of(32), set()),
    ("two barriers of which one is of a warp", MINE + ALL + WARP + word_of(32), {0}),
    ("own word", MINE + ALL + word_of(0) + ALL + OTHER, set()),
    ("a word that is written as it was", MINE + ALL + word_of(32) + ALL + MINE, {0, 1}),
    ("reads alone", MINE + ALL + word_of(32) + ALL + word_of(32), {0}),
    ("nothing before", ALL + MINE, set()),
    ("one barrier several times", MINE + loop(ALL) + word_of(32), {0}),
    ("two barriers several times", MINE + loop(ALL + ALL) + word_of(32), set()),
    ("this time and the next", loop(MINE + ALL + word_of(32) + ALL + OTHER), {0, 1}),
    ("within a warp", MINE + WARP + word_of(1, 32), {0}),
    ("within a warp, twice", MINE + WARP + WARP + word_of(1, 32), set()),
    ("within a warp, several times", MINE + loop(WARP) + word_of(1, 32), {0}),
    ("within a warp, but of all", MINE + ALL + word_of(1, 32), {0}),
    ("within a warp, by either", MINE + WARP + ALL + word_of(1, 32), set()),
    ("memory of the GPU", GLOBAL + ALL + EXCHANGED + GLOBAL, {0}),
]


@pytest.mark.parametrize(("body", "wanted"), [x[1:] for x in CASES], ids=[x[0] for x in CASES])
def test_needed_are_those_without_which_there_is_a_race(body: str, wanted: set[int]) -> None:
    threads = 32 if "31" in body else 64
    data = aligned(4 * threads)
    result = launch(START + ADDRESS + body, [data], threads, programs=3, barriers=True)
    code = result.program.kernel.instructions
    barriers = [k for k, i in enumerate(code) if i.opcode in ("bar.sync", "bar.warp.sync")]
    assert {n for n, k in enumerate(barriers) if result.needed[k]} == wanted
    at, end = data.ctypes.data, data.ctypes.data + data.nbytes
    arguments = [Argument("p0", Memory(at, end), at, end)]
    for n, k in enumerate(barriers):
        program = result.program.without(k)
        without = run(program, (1, 1, 1), threads, 4096, struct.pack("<Q", at), arguments)
        assert any(not f.benign for f in without.findings) == (n in wanted)


def test_needed_names_the_program() -> None:
    second = "mov.u32 %r8, %ctaid.x;\nsetp.ne.s32 %p1, %r8, 1;\n@%p1 bra $B;\n"
    body = START + ADDRESS + MINE + second + ALL + word_of(32) + "$B:\n"
    result = launch(body, [aligned(64)], 64, programs=3, barriers=True)
    assert set(result.needed.tolist()) == {0, 2}
    assert not launch(body, [aligned(64)], 64, programs=3).needed.any()
