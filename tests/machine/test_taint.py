"""Data that decides a branch or an address is found, in PTX that is written by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .by_hand import ROW, START, launch


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
