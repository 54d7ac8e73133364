"""The rules of memory, barriers, divergence, orders and data, in PTX that is written by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .by_hand import aligned, launch
from .simt import Result

START = """
ld.param.b64 %q0, [p0];
mov.u32 %r0, %tid.x;
mov.u32 %r1, %laneid;
mov.u32 %r2, smem;
"""


def run(body: str, threads: int = 32, size: int = 65536, **more: object) -> Result:
    return launch(START + body, [aligned(size)], threads, **more)


def kinds(result: Result) -> set[str]:
    return {"benign" if f.benign else f.kind for f in result.findings}


# ---- counters


def per_request(body: str, opcode: str, **more: int) -> tuple[float, float]:
    """Sectors or wavefronts, and those of the best layout, of the instruction with that opcode."""
    result = run(body, **more)
    lines = result.program.kernel.instructions
    (index,) = [k for k, i in enumerate(lines) if i.opcode.startswith(opcode)]
    _, _, requests, got, best, _ = result.counts[index].tolist()
    return got / requests, best / requests


REGISTERS = {
    "b16": "%h1", "b32": "%r5", "b64": "%q5", "v2.b32": "{%r5, %r6}",
    "v4.b32": "{%r5, %r6, %r7, %r8}",
}  # fmt: skip


@pytest.mark.parametrize(
    ("stride", "offset", "kind", "sectors", "best"),
    [
        (4, 0, "b32", 4, 4),
        (4, 4, "b32", 5, 4),
        (8, 0, "b32", 8, 4),
        (32, 0, "b32", 32, 4),
        (0, 0, "b32", 1, 1),
        (2, 0, "b16", 2, 2),
        (8, 0, "b64", 8, 8),
        (8, 8, "v2.b32", 9, 8),
        (16, 0, "v4.b32", 16, 16),
    ],
)
def test_sectors(stride: int, offset: int, kind: str, sectors: int, best: int) -> None:
    body = f"mad.wide.s32 %q1, %r1, {stride}, %q0;\n"
    body += f"ld.global.{kind} {REGISTERS[kind]}, [%q1+{offset}];"
    assert per_request(body, "ld.global") == (sectors, best)


def test_sectors_of_some_lanes() -> None:
    body = "setp.lt.u32 %p1, %r1, 8;\nmad.wide.s32 %q1, %r1, 4, %q0;\n"
    assert per_request(body + "@%p1 ld.global.b32 %r5, [%q1];", "ld.global") == (1, 1)


@pytest.mark.parametrize(
    ("stride", "kind", "wavefronts", "best"),
    [
        (4, "b32", 1, 1),
        (8, "b32", 2, 1),
        (16, "b32", 4, 1),
        (128, "b32", 32, 1),
        (132, "b32", 1, 1),
        (0, "b32", 1, 1),
        (8, "v2.b32", 2, 2),
        (16, "v2.b32", 4, 2),
        (16, "v4.b32", 4, 4),
        (32, "v4.b32", 8, 4),
        (128, "v4.b32", 32, 4),
    ],
)
def test_wavefronts(stride: int, kind: str, wavefronts: int, best: int) -> None:
    value = {"b32": "%r0", "v2.b32": "{%r0, %r0}", "v4.b32": "{%r0, %r0, %r0, %r0}"}[kind]
    body = f"mad.lo.s32 %r3, %r1, {stride}, %r2;\nst.shared.{kind} [%r3], {value};"
    assert per_request(body, "st.shared", shared=8192) == (wavefronts, best)


@pytest.mark.parametrize(("stride", "wavefronts"), [(16, 4), (128, 32), (144, 4)])
def test_wavefronts_of_a_matrix(stride: int, wavefronts: int) -> None:
    body = f"mad.lo.s32 %r3, %r1, {stride}, %r2;\n"
    body += "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r3], {%r0, %r0, %r0, %r0};"
    assert per_request(body, "stmatrix", shared=8192) == (wavefronts, 4)


# ---- faults

MINE = "mad.lo.s32 %r3, %r0, 4, %r2;\nst.shared.b32 [%r3], %r0;\n"
AGAIN = MINE.replace("[%r3], %r0", "[%r3], %r5")
SHUFFLE = "shfl.sync.idx.b32 %r6, %r0, 0, 31, -1;\n"
BARRIER = "bar.sync 0;\n"
FIRST_HALF, FIRST_WARP = "setp.lt.u32 %p1, %r1, 16;\n", "setp.lt.u32 %p1, %r0, 32;\n"
ROW = "mad.lo.s32 %r3, %r1, 16, %r2;\n"
STORE_ROWS = "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r3], {%r0, %r0, %r0, %r0};\n"
LOAD_ROWS = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r3];\n"
UNORDERED = {"shared-race", "shared-uninitialised"}


def next_word(threads: int) -> str:
    """Loads what the next thread has stored."""
    return (
        f"add.s32 %r4, %r0, 1;\nand.b32 %r4, %r4, {threads - 1};\n"
        "mad.lo.s32 %r4, %r4, 4, %r2;\nld.shared.b32 %r5, [%r4];\n"
    )


# What, PTX, threads, what must be found.
FAULTS: list[tuple[str, str, int, set[str]]] = [
    ("neighbour's word after a barrier", MINE + BARRIER + next_word(64), 64, set()),
    ("neighbour's word without one", MINE + next_word(64), 64, UNORDERED),
    (
        "neighbour's word after bar.warp.sync, two warps",
        MINE + "bar.warp.sync -1;\n" + next_word(64), 64, UNORDERED,
    ),
    (
        "neighbour's word after bar.warp.sync, one warp",
        MINE + "bar.warp.sync -1;\n" + next_word(32), 32, set(),
    ),
    (
        "neighbour's word after a shuffle, one warp",
        MINE + SHUFFLE + next_word(32), 32, {"shared-race-ordered-by-shuffle-only"},
    ),
    ("neighbour's word without one, one warp", MINE + next_word(32), 32, {"shared-race"}),
    ("write after others read", MINE + BARRIER + next_word(64) + AGAIN, 64, {"shared-race"}),
    (
        "write after others read, and a barrier",
        MINE + BARRIER + next_word(64) + BARRIER + AGAIN, 64, set(),
    ),
    ("own word", MINE + "ld.shared::cta.b32 %r5, [%r3];\n", 64, set()),
    ("one word for all, different values", "st.shared.b32 [smem], %r0;\n", 32, {"shared-race"}),
    (
        "one word for all, one value",
        "mov.b32 %r5, 7;\nst.shared.b32 [smem], %r5;\n", 32, {"benign"},
    ),
    (
        "half words side by side",
        "mad.lo.s32 %r3, %r0, 2, %r2;\ncvt.u16.u32 %h1, %r0;\nst.shared.b16 [%r3], %h1;\n",
        64, set(),
    ),
    (
        "beyond the end of shared memory",
        "st.shared.b32 [%r2+4096], %r0;\n", 32, {"shared-out-of-bounds"},
    ),
    ("before its start", "st.shared.b32 [%r2+-4], %r0;\n", 32, {"shared-out-of-bounds"}),
    (
        "vector across an edge of 16 bytes",
        ROW + "st.shared.v4.b32 [%r3+8], {%r0, %r0, %r0, %r0};\n", 32, {"shared-misaligned"},
    ),
    ("word that nobody wrote", "ld.shared.b32 %r5, [smem+8];\n", 32, {"shared-uninitialised"}),
    (
        "word of which half is written",
        "cvt.u16.u32 %h1, %r0;\nst.shared.b16 [smem], %h1;\nld.shared.b32 %r5, [smem];\n",
        1, {"shared-uninitialised"},
    ),
    ("matrix that nobody wrote", ROW + LOAD_ROWS, 32, {"shared-uninitialised"}),
    (
        "matrix by one warp, read by another",
        f"{ROW}{FIRST_WARP}@%p1 {STORE_ROWS}@!%p1 {LOAD_ROWS}", 64, {"shared-race"},
    ),
    (
        "barrier for some warps only",
        FIRST_WARP + "@%p1 bra $A;\nbar.sync 0;\n$A:\n", 64, {"barrier-with-exited-threads"},
    ),
    (
        "different barriers",
        FIRST_WARP + "@%p1 bra $A;\nbar.sync 0;\nbra $B;\n$A:\nbar.sync 0;\n$B:\n",
        64, {"barriers-differ"},
    ),
    (
        "barrier in one half of a warp",
        FIRST_HALF + "@%p1 bra $A;\nbar.sync 0;\nbra $B;\n$A:\nbar.sync 0;\n$B:\n",
        32, {"barrier-in-divergent-code"},
    ),
    (
        "barrier after some threads left",
        FIRST_HALF + "@%p1 ret;\nbar.sync 0;\n", 32, {"barrier-with-exited-threads"},
    ),
    (
        "shuffle in one half of a warp",
        f"{FIRST_HALF}@%p1 bra $A;\n{SHUFFLE}$A:\n", 32, {"warp-mask-not-converged"},
    ),
    (
        "null pointer",
        "mov.b64 %q1, 0;\nld.global.b32 %r5, [%q1];\n", 32, {"global-out-of-bounds"},
    ),
    (
        "pointer that is put together of halves",
        "mov.b64 {%r4, %r5}, %q0;\nmov.b64 %q1, {%r4, %r5};\nld.global.b32 %r5, [%q1];\n",
        32, {"pointer-of-unknown-origin"},
    ),
    (
        "pointer that is a product",
        "mov.b64 %q1, %q0;\nmul.lo.s64 %q1, %q0, 1;\nld.global.b32 %r5, [%q1];\n",
        32, {"pointer-of-unknown-origin"},
    ),
    (
        "pointer that is a pointer and a difference of two",
        "sub.s64 %q1, %q0, %q0;\nadd.s64 %q1, %q1, %q0;\nld.global.b32 %r5, [%q1];\n", 32, set(),
    ),
    (
        "half of a vector beyond the end",
        "ld.global.v4.b32 {%r5, %r6, %r7, %r8}, [%q0+65536];\n", 32, {"global-out-of-bounds"},
    ),
    ("words at odd addresses", "ld.global.b32 %r5, [%q0+2];\n", 32, {"global-misaligned"}),
    ("division by zero", "div.s32 %r5, %r0, 0;\n", 32, {"integer-division-by-zero"}),
    ("trap", "trap;\n", 32, {"trap"}),
    (
        "a write after a thread of the warp has read",  # though the writer has read last
        f"st.shared.b32 [smem], %r2;\n{BARRIER}setp.eq.s32 %p1, %r1, 1;\nsetp.eq.s32 %p2, %r1, 0;\n"
        "@%p1 ld.shared.b32 %r5, [smem];\n@%p2 ld.shared.b32 %r6, [smem];\n"
        "@%p2 st.shared.b32 [smem], %r0;\n",
        32, {"shared-race", "benign"},
    ),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=[f[0] for f in FAULTS])
def test_fault(fault: tuple[str, str, int, set[str]]) -> None:
    _, body, threads, wanted = fault
    assert kinds(run(body, threads)) == wanted


RACES = {
    "a write after a thread of another warp has read": "mov.b32 %r5, 7;\n"
    "st.shared.b32 [smem], %r5;\n"
    "bar.sync 0;\nsetp.eq.s32 %p1, %r0, 32;\nsetp.eq.s32 %p2, %r0, 0;\n"
    "@%p1 ld.shared.b32 %r6, [smem];\n@%p2 ld.shared.b32 %r6, [smem];\n"
    "@%p2 st.shared.b32 [smem], %r0;\n",
    "two warps that write one word": "setp.eq.s32 %p1, %r1, 0;\n@%p1 st.shared.b32 [smem], %r0;\n",
}
ORDERS = ["forward", "backward", "ahead", "mixed"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("race", RACES)
def test_race_is_found_whichever_warp_goes_first(race: str, order: str) -> None:
    for seed in range(3):
        assert kinds(run(RACES[race], 64, order=order, seed=seed)) - {"benign"} == {"shared-race"}


@pytest.mark.parametrize("order", ORDERS)
def test_races_between_programs(order: str) -> None:
    own = "mov.u32 %r4, %ctaid.x;\nadd.s32 %r5, %r4, 1;\nmad.wide.s32 %q1, %r4, 4, %q0;\n"
    write, read = "st.global.b32 [%q1], %r5;\n", "ld.global.b32 %r6, [%q1];\n"
    ends = {
        own + write + read: set(),
        own.replace("%r4, 4", "0, 4") + read: set(),
        own.replace("%r4, 4", "0, 4") + write: {"race-between-programs"},
        own + write + read.replace("%q1", "%q0"): {"race-between-programs"},
        "mov.b32 %r5, 1;\natom.global.add.u32 %r6, [%q0], %r5;\n": set(),
        own + "atom.global.add.u32 %r6, [%q0], %r5;\n" + read.replace("%q1", "%q0"): {
            "race-between-programs"
        },
    }
    for body, wanted in ends.items():
        assert kinds(run(body, threads=1, programs=3, order=order)) - {"benign"} == wanted, body


def test_a_vector_at_the_end_of_memory() -> None:
    body = "ld.global.v4.b32 {%r5, %r6, %r7, %r8}, [%q0+65536];"
    assert kinds(run(body, size=65544)) == {"global-out-of-bounds"}
    assert not run(body, size=65552).findings


def test_too_many_findings_are_a_finding() -> None:
    """There is room for 4096: nothing is dropped silently."""
    body = "".join(f"ld.shared.b32 %r5, [smem+{8192 + 4 * k}];\n" for k in range(4200))
    result = run(body, threads=1)
    assert len(result.findings) == 4096
    assert kinds(result) == {"shared-out-of-bounds", "too-many-findings"}


def test_an_endless_loop_ends() -> None:
    result = run("$A:\nbra $A;\n", budget=1000)
    assert kinds(result) == {"instruction-budget-exceeded"}
    assert result.executed == 1000


# ---- values in memory


def stored(body: str, threads: int, **options: object) -> tuple[list[int], Result]:
    """The words that threads leave at p0."""
    data = np.zeros(threads, np.uint32)
    result = launch(START + body, [data], threads, shared=0, **options)
    assert not result.findings, result.findings[0]
    return data.tolist(), result


STORE = "mad.wide.s32 %q1, %r0, 4, %q0;\nst.global.b32 [%q1], %r3;\nret;\n"


def test_narrow_loads_into_wider_registers() -> None:
    word = 2164228225
    body = f"""
    mov.b32 %r3, {word};
    st.global.b32 [%q0], %r3;
    ld.global.s8 %r3, [%q0+3];
    ld.global.u8 %r4, [%q0+3];
    ld.global.b8 %h1, [%q0+1];
    cvt.u32.u16 %r5, %h1;
    ld.global.s16 %r6, [%q0+2];
    add.s32 %r3, %r3, %r4;
    mad.lo.s32 %r3, %r5, 1000, %r3;
    mad.lo.s32 %r3, %r6, 7, %r3;
    """
    high, low = word >> 24, word >> 8 & 255
    want = (high - 256) + high + 1000 * low + 7 * ((word >> 16) - 65536)
    assert stored(body + STORE, 1)[0] == [want & 0xFFFFFFFF]


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_matrices(trans: str) -> None:
    """Element (row, column) of matrix v, of half words, where lanes have what PTX says."""
    data = np.arange(256, dtype=np.uint16)
    out = np.zeros((32, 4), np.uint32)
    body = """
    ld.param.b64 %q2, [p1];
    mul.wide.s32 %q1, %r0, 16;
    add.s64 %q3, %q0, %q1;
    add.s64 %q4, %q2, %q1;
    ld.global.v4.b32 {%r5, %r6, %r7, %r8}, [%q3];
    mad.lo.s32 %r3, %r1, 16, %r2;
    st.shared.v4.b32 [%r3], {%r5, %r6, %r7, %r8};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4TRANS.shared.b16 {%r5, %r6, %r7, %r8}, [%r3];
    stmatrix.sync.aligned.m8n8.x4TRANS.shared.b16 [%r3+1024], {%r5, %r6, %r7, %r8};
    st.global.v4.b32 [%q4], {%r5, %r6, %r7, %r8};
    bar.sync 0;
    ld.shared.v4.b32 {%r5, %r6, %r7, %r8}, [%r3+1024];
    st.global.v4.b32 [%q3], {%r5, %r6, %r7, %r8};
    """
    result = launch(START + body.replace("TRANS", trans), [data, out])
    assert not result.findings, result.findings[0]
    matrices = np.arange(256).reshape(4, 8, 8)
    if trans:
        matrices = matrices.transpose(0, 2, 1)
    for lane in range(32):
        pair = matrices[:, lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
        assert out[lane].tolist() == (pair[:, 0] | pair[:, 1] << 16).tolist()
    assert data.tolist() == list(range(256))  # stmatrix undoes ldmatrix


ATOMICS = {
    "add.u32": lambda a, b: a + b,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "exch.b32": lambda a, b: b,
    "min.u32": min,
    "max.u32": max,
    "min.s32": lambda a, b: min(a, b, key=lambda x: x - (x >> 31 << 32)),
    "max.s32": lambda a, b: max(a, b, key=lambda x: x - (x >> 31 << 32)),
}


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("name", ATOMICS)
def test_atomic(name: str, space: str) -> None:
    """All lanes one after another, each finds what the one before has left."""
    data = np.array([0x80001234, *range(31)], np.uint32)
    value = "mul.lo.s32 %r6, %r1, 2654435761;\n"
    body = "ld.global.b32 %r9, [%q0];\n"
    if space == "shared":
        body += "setp.eq.s32 %p1, %r1, 0;\n@%p1 st.shared.b32 [smem], %r9;\n"
    at = "%q0" if space == "global" else "smem"
    body += f"bar.sync 0;\n{value}atom.{space}.{name} %r3, [{at}], %r6;\nbar.sync 0;\n"
    result = launch(START + body + STORE, [data])
    # Threads also store where the atomics were; those of one program are ordered by the barrier.
    assert not [f for f in result.findings if not f.benign], result.findings[0]
    old, want = 0x80001234, []
    for lane in range(32):
        want.append(old)
        old = ATOMICS[name](old, lane * 2654435761 & 0xFFFFFFFF) & 0xFFFFFFFF
    assert data.tolist() == want


def test_atomics_on_floats_and_compare_and_swap() -> None:
    data = np.zeros(32, np.float32)
    body = "cvt.rn.f32.s32 %r4, %r1;\natom.global.add.f32 %r3, [%q0], %r4;\n"
    assert not launch(START + body, [data]).findings
    assert data[0] == 31 * 16
    data = np.zeros(32, np.float64)
    body = "cvt.rn.f64.s32 %q4, %r1;\natom.global.add.f64 %q5, [%q0], %q4;\n"
    assert not launch(START + body, [data]).findings
    assert data[0] == 31 * 16
    words = np.array([5, 0], np.uint32)  # only the lane that finds its own number moves it on
    body = "add.s32 %r4, %r1, 1;\natom.global.cas.b32 %r3, [%q0], %r1, %r4;\n"
    assert not launch(START + body, [words]).findings
    assert words[0] == 32


# ---- divergence


def test_threads_that_leave_loops_one_by_one() -> None:
    body = """
    mov.b32 %r3, 0;
    mov.b32 %r4, %r0;
    $LOOP:
    setp.gt.s32 %p1, %r4, 0;
    @!%p1 bra $OUT;
    and.b32 %r5, %r4, 1;
    setp.eq.s32 %p2, %r5, 1;
    @%p2 bra $ODD;
    shr.u32 %r4, %r4, 1;
    bra $NEXT;
    $ODD:
    sub.s32 %r4, %r4, 3;
    setp.lt.s32 %p3, %r4, -1;
    @%p3 bra $OUT;
    $NEXT:
    add.s32 %r3, %r3, 1;
    bra $LOOP;
    $OUT:
    bar.warp.sync -1;
    """

    def steps(x: int) -> int:
        count = 0
        while x > 0:
            x = x - 3 if x & 1 else x >> 1
            if x < -1:
                break
            count += 1
        return count

    for order in ORDERS:
        got, _ = stored(body + STORE, 128, order=order)
        assert got == [steps(x) for x in range(128)]


@pytest.mark.parametrize("exchange", [True, False])
def test_lanes_meet_at_the_postdominator(exchange: bool) -> None:
    """A rare branch that is laid out behind the loop: its threads meet the others after it."""
    shuffle = "shfl.sync.bfly.b32 %r6, %r3, 1, 31, -1;\nadd.s32 %r3, %r3, %r6;" if exchange else ""
    body = f"""
    mov.b32 %r3, 0;
    mov.b32 %r4, 0;
    $LOOP:
    add.s32 %r5, %r1, %r4;
    and.b32 %r5, %r5, 7;
    setp.eq.s32 %p1, %r5, 0;
    @%p1 bra $COLD;
    add.s32 %r3, %r3, 1;
    $JOIN:
    {shuffle}
    bar.sync 0;
    add.s32 %r4, %r4, 1;
    setp.lt.s32 %p2, %r4, 10;
    @%p2 bra $LOOP;
    {STORE}
    $COLD:
    add.s32 %r3, %r3, 5;
    bra $JOIN;
    """
    got, result = stored(body, 64)
    values = [0] * 64
    for step in range(10):
        values = [v + (5 if (k % 32 + step) % 8 == 0 else 1) for k, v in enumerate(values)]
        if exchange:
            values = [v + values[k ^ 1] for k, v in enumerate(values)]
    assert got == [v & 0xFFFFFFFF for v in values]
    lines = result.program.kernel.instructions
    counts = [
        int(count)
        for i, count in zip(lines, result.counts[:, 0], strict=False)
        if i.opcode.startswith(("shfl", "bar"))
    ]
    assert counts == [20] * (1 + exchange)  # once a step and warp: nobody does it alone


def test_a_collective_waits_for_the_lanes_that_it_names() -> None:
    """Nothing else says where the threads meet: one way might have left."""
    body = f"""
    add.s32 %r3, %r0, 100;
    setp.lt.u32 %p1, %r1, 16;
    @%p1 bra $AWAY;
    $JOIN:
    shfl.sync.idx.b32 %r6, %r3, 3, 31, -1;
    add.s32 %r3, %r3, %r6;
    {STORE}
    $AWAY:
    add.s32 %r3, %r3, 1000;
    setp.lt.s32 %p2, %r3, 0;
    @%p2 ret;
    bra $JOIN;
    """
    got, _ = stored(body, 32)
    assert got == [100 + k + 1000 * (k < 16) + 1103 for k in range(32)]


# ---- orders

# Each program and each warp takes the next ticket, and remembers which it was. The second warp of
# a program waits for the first at a barrier.
TICKETS = """
mov.u32 %r4, %ctaid.x;
and.b32 %r5, %r0, 31;
setp.eq.s32 %p1, %r5, 0;
mov.b32 %r6, 1;
@%p1 atom.global.add.u32 %r7, [%q0], %r6;
shr.u32 %r8, %r0, 5;
mad.lo.s32 %r8, %r4, WARPS, %r8;
mad.wide.s32 %q1, %r8, 4, %q0;
@%p1 st.global.b32 [%q1+4], %r7;
"""


def tickets(warps: int, programs: int, **options: object) -> list[int]:
    data = np.zeros(1 + warps * programs, np.uint32)
    body = START + TICKETS.replace("WARPS", str(warps))
    result = launch(body, [data], 32 * warps, programs, **options)
    assert not result.findings, result.findings[0]
    return data[1:].tolist()


def test_orders_of_programs_and_of_warps() -> None:
    for warps, programs in ((1, 6), (6, 1)):
        assert tickets(warps, programs) == [0, 1, 2, 3, 4, 5]
        assert tickets(warps, programs, order="backward") == [5, 4, 3, 2, 1, 0]
        ahead = [tickets(warps, programs, order="ahead", seed=s) for s in range(8)]
        firsts = {x.index(0) for x in ahead}
        assert len(firsts) > 2  # which one is ahead depends on the seed
        mixed = {tuple(tickets(warps, programs, seed=s)) for s in range(1, 20)}
        assert (0, 1, 2, 3, 4, 5) in mixed
        assert (5, 4, 3, 2, 1, 0) in mixed
        assert len(mixed) > 3
    with pytest.raises(ValueError, match="forward, backward, ahead, mixed"):
        tickets(1, 1, order="sideways")


def test_ahead_interrupts_the_other_warps() -> None:
    """Of loops of different lengths the shorter end first, though their warps began later."""
    body = f"""
    shr.u32 %r4, %r0, 5;
    sub.s32 %r5, 8, %r4;
    mul.lo.s32 %r5, %r5, 200;
    $LOOP:
    sub.s32 %r5, %r5, 1;
    setp.gt.s32 %p1, %r5, 0;
    @%p1 bra $LOOP;
    {TICKETS.replace("WARPS", "8")}
    """
    data = np.zeros(9, np.uint32)
    result = launch(START + body, [data], 256, order="ahead", seed=3)
    assert not result.findings
    others = sorted(range(8), key=lambda k: data[1 + k])[1:]
    assert others == sorted(others, reverse=True)  # those with the shortest loops first


# ---- data


def tainted(body: str, **options: object) -> set[str]:
    options = {"taint": True} | options
    words = np.zeros(4096, np.uint32)
    out = np.zeros(4096, np.uint32)
    text = START + "ld.param.b64 %q2, [p1];\n" + body
    result = launch(text, [words, out], 64, names="x settings", **options)
    prefix = "data-dependent-"
    assert not {f.kind for f in result.findings if not f.kind.startswith(prefix)} - {"shared-race"}
    return {f.kind.removeprefix(prefix) for f in result.findings if f.kind.startswith(prefix)}


LOAD = "mad.wide.s32 %q1, %r0, 4, %q0;\nld.global.b32 %r5, [%q1];\n"
SETTING = LOAD.replace("%q0", "%q2")
TO_BRANCH = "setp.gt.s32 %p1, %r5, 3;\n@%p1 bra $A;\nld.global.b32 %r9, [%q2];\n$A:\n"
TO_ADDRESS = "and.b32 %r6, %r5, 1020;\nadd.s32 %r7, %r2, %r6;\nst.shared.b32 [%r7], %r0;\n"
AROUND = "mov.b32 %r6, 4;\nsetp.gt.s32 %p1, %r5, 3;\n@%p1 bra $B;\nmov.b32 %r6, 8;\n$B:\n"
TO_ADDRESS_6 = "add.s32 %r7, %r2, %r6;\nst.shared.b32 [%r7], %r0;\n"
TAINTS: list[tuple[str, str, set[str]]] = [
    ("data that is only computed with", LOAD + "add.s32 %r6, %r5, %r5;\n", set()),
    ("a branch on it", LOAD + TO_BRANCH, {"branch"}),
    ("a branch on a setting", SETTING + TO_BRANCH, set()),
    ("a branch on a thread's number", TO_BRANCH.replace("%r5", "%r0"), set()),
    ("a shared address", LOAD + TO_ADDRESS, {"shared-address"}),
    ("a shared address of a setting", SETTING + TO_ADDRESS, set()),
    (
        "a global address",
        LOAD + "and.b32 %r6, %r5, 1020;\ncvt.u64.u32 %q3, %r6;\nadd.s64 %q4, %q2, %q3;\n"
        "ld.global.b32 %r7, [%q4];\n",
        {"global-address"},
    ),
    (
        "a guard of a store",
        f"{LOAD}setp.gt.s32 %p1, %r5, 3;\n@%p1 st.shared.b32 [smem], %r0;\n", {"guard"},
    ),
    (
        "a guard of a load, and a branch on what it may have loaded",
        f"{LOAD}setp.gt.s32 %p1, %r5, 3;\nmov.b32 %r5, 0;\n@%p1 ld.global.b32 %r5, [%q2];\n"
        + TO_BRANCH,
        {"guard", "branch"},
    ),
    (
        "what a guard of data has moved",
        f"{LOAD}setp.gt.s32 %p2, %r5, 3;\nmov.b32 %r5, 0;\n@%p2 mov.b32 %r5, 9;\n{TO_BRANCH}",
        {"branch"},
    ),
    (
        "selected by data",
        f"{LOAD}setp.gt.s32 %p2, %r5, 3;\nselp.b32 %r5, 8, 4, %p2;\n{TO_ADDRESS}",
        {"shared-address"},
    ),
    (
        "through shared memory",
        f"{LOAD}mad.lo.s32 %r3, %r0, 4, %r2;\nst.shared.b32 [%r3], %r5;\nbar.sync 0;\n"
        "ld.shared.b32 %r5, [%r3];\n" + TO_BRANCH,
        {"branch"},
    ),
    (
        "overwritten in shared memory",
        f"{LOAD}mad.lo.s32 %r3, %r0, 4, %r2;\nst.shared.b32 [%r3], %r5;\n"
        "st.shared.b32 [%r3], %r0;\nld.shared.b32 %r5, [%r3];\n" + TO_BRANCH,
        set(),
    ),
    ("overwritten in a register", f"{LOAD}mov.b32 %r5, %r0;\n{TO_BRANCH}", set()),
    (
        "through a matrix",
        f"{LOAD}{ROW}stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r3], {{%r5, %r5, %r5, %r5}};\n"
        "bar.sync 0;\nldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r3];\n"
        + TO_BRANCH,
        {"branch"},
    ),
    (
        "from another lane",
        "mad.wide.s32 %q1, %r0, 4, %q0;\nsetp.eq.s32 %p2, %r1, 7;\nmov.b32 %r6, 0;\n"
        "@%p2 ld.global.b32 %r6, [%q1];\nshfl.sync.idx.b32 %r5, %r6, 7, 31, -1;\n"
        "@%p2 mov.b32 %r5, 0;\n" + TO_BRANCH,
        {"branch"},
    ),
    (
        "by vote",
        f"{LOAD}setp.gt.s32 %p2, %r5, 3;\nvote.sync.any.pred %p1, %p2, -1;\n@%p1 bra $A;\n"
        "ld.global.b32 %r9, [%q2];\n$A:\n",
        {"branch"},
    ),
    (
        "from an atomic",
        "atom.global.add.u32 %r5, [%q2], %r0;\n" + TO_BRANCH, {"branch"},
    ),
    ("a branch around what only computes", LOAD + AROUND, set()),
    ("what it assigns", LOAD + AROUND + TO_ADDRESS_6, {"shared-address"}),
    (
        "what it would have assigned",
        LOAD + AROUND.replace("@%p1", "@!%p1") + TO_ADDRESS_6, {"shared-address"},
    ),
    ("what is assigned after it", f"{LOAD}{AROUND}mov.b32 %r6, 8;\n{TO_ADDRESS_6}", set()),
    (
        "a loop that data ends, and what it has assigned",
        f"{LOAD}mov.b32 %r6, 0;\n$L:\nadd.s32 %r6, %r6, 4;\nsub.s32 %r5, %r5, 1;\n"
        f"setp.gt.s32 %p1, %r5, 0;\n@%p1 bra $L;\n{TO_ADDRESS_6}",
        {"shared-address"},
    ),
    (
        "a return",
        f"{LOAD}setp.gt.s32 %p1, %r5, 3;\n@%p1 ret;\n", {"branch"},
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", TAINTS, ids=[c[0] for c in TAINTS])
def test_data_that_decides_is_found(case: tuple[str, str, set[str]]) -> None:
    _, body, wanted = case
    assert tainted(body, taint={"x"}) == wanted


def test_all_that_is_loaded_is_data_if_nothing_else_is_said() -> None:
    assert tainted(SETTING + TO_BRANCH) == {"branch"}
    assert tainted(SETTING + TO_BRANCH, taint={"settings"}) == {"branch"}
    assert tainted(LOAD + TO_BRANCH, taint={"settings"}) == set()
    assert tainted(LOAD + TO_BRANCH, taint=False) == set()


def test_shadows_that_outlive_the_interpreter_are_freed_quietly() -> None:
    """A process ends with memories that are still watched."""
    code = "import builtins; from machine.simt import Pages; builtins.kept = Pages(4096)"
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": tests}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stderr == ""
