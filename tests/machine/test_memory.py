"""The rules of memory, in PTX that is written by hand: counts, faults, races, values."""

from __future__ import annotations

import numpy as np
import pytest

from .by_hand import ORDERS, ROW, START, STORE, kinds, launch, started, stored

# ---- counters


def per_request(body: str, opcode: str, **more: int) -> tuple[float, float]:
    """Sectors or wavefronts, and those of the best layout, of the instruction with that opcode."""
    result = started(body, **more)
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
    assert kinds(started(body, threads)) == wanted


RACES = {
    "a write after a thread of another warp has read": "mov.b32 %r5, 7;\n"
    "st.shared.b32 [smem], %r5;\n"
    "bar.sync 0;\nsetp.eq.s32 %p1, %r0, 32;\nsetp.eq.s32 %p2, %r0, 0;\n"
    "@%p1 ld.shared.b32 %r6, [smem];\n@%p2 ld.shared.b32 %r6, [smem];\n"
    "@%p2 st.shared.b32 [smem], %r0;\n",
    "two warps that write one word": "setp.eq.s32 %p1, %r1, 0;\n@%p1 st.shared.b32 [smem], %r0;\n",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("race", RACES)
def test_race_is_found_whichever_warp_goes_first(race: str, order: str) -> None:
    for seed in range(3):
        assert kinds(started(RACES[race], 64, order=order, seed=seed)) - {"benign"} == {
            "shared-race"
        }


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
        assert kinds(started(body, threads=1, programs=3, order=order)) - {"benign"} == wanted, body


def test_a_vector_at_the_end_of_memory() -> None:
    body = "ld.global.v4.b32 {%r5, %r6, %r7, %r8}, [%q0+65536];"
    assert kinds(started(body, size=65544)) == {"global-out-of-bounds"}
    assert not started(body, size=65552).findings


def test_too_many_findings_are_a_finding() -> None:
    """There is room for 4096: nothing is dropped silently."""
    body = "".join(f"ld.shared.b32 %r5, [smem+{8192 + 4 * k}];\n" for k in range(4200))
    result = started(body, threads=1)
    assert len(result.findings) == 4096
    assert kinds(result) == {"shared-out-of-bounds", "too-many-findings"}


def test_an_endless_loop_ends() -> None:
    result = started("$A:\nbra $A;\n", budget=1000)
    assert kinds(result) == {"instruction-budget-exceeded"}
    assert result.executed == 1000


# ---- values in memory


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
