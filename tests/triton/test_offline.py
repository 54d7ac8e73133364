"""What the compiler makes of the kernels, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STREAMING = {  # an element per thread from load to store
    "waveform_statistics_kernel",
    "waveform_gradient_kernel",
    "frame_kernel",
    "spectrum_statistics_kernel",
    "spectrum_gradient_kernel",
    "overlap_add_kernel",
}
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def python(*arguments: str) -> str:
    """Output of a Python that compiles kernels rather than interpreting them."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_compiled_figures(target: str, tmp_path: Path):
    """No kernel spills, moves values between threads' layouts, or starts a row by 32 bits."""
    file = tmp_path / "kernels.json"
    shown = python("-m", "benchmarks.kernels", "--target", target, "--json", str(file))
    rows: list[dict[str, Any]] = json.loads(file.read_text())
    assert {row["kernel"].split()[0] for row in rows} >= {*STREAMING, "objective_kernel"}
    for row in rows:
        assert row["kernel"] in shown
        assert row["target"] == target
        assert row["registers"] > 0
        assert row["instructions"] > 0
        assert row["spill_bytes"] == 0, row
        assert row["narrow_offsets"] == 0, row
        if row["kernel"].split()[0] in STREAMING:
            assert row["layout_conversions"] == 0, row


LENGTHS = """
from benchmarks.kernels import MULTI, OTHER, TARGETS, Case, compiling, run
plan = MULTI._replace(resolutions=(*MULTI.resolutions[:1], *OTHER))
counts = []
with compiling(TARGETS["sm_90"]) as compiled:
    for length in (4801, 501, 4800, 8192, 44100, 66150):
        run(Case(plan), length)
        counts.append(len({kernel.hash for kernel in compiled.values()}))
print(counts)
"""


def test_a_new_length_compiles_nothing_new():
    """Odd, divisible by 16, of one block and of many."""
    counts = json.loads(python("-c", LENGTHS))
    assert counts[0] > 7
    assert set(counts) == {counts[0]}
