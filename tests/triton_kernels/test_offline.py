"""What the compiler makes of the kernels, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

ROOT = Path(__file__).parents[2]
PINNED = triton.__version__.startswith("3.6.")
STREAMING = {  # an element per thread from load to store
    "waveform_statistics_kernel",
    "waveform_gradient_kernel",
    "frame_kernel",
    "spectrum_statistics_kernel",
    "spectrum_gradient_kernel",
    "overlap_add_kernel",
}
TARGETS = ("sm_80", pytest.param("sm_90", marks=pytest.mark.versions), "sm_100", "gfx942")
# On-chip, an exchange through shared memory is a conversion: two to a transform.
EXCHANGES = {"SIGNALS=2": 4, "SIGNALS=1": 2}  # the forward kernel has one loop for each signal
STEP = {"stft_statistics_kernel": 1300, "stft_gradient_kernel": 1050}  # instructions at most


def python(*arguments: str) -> str:
    """Output of a Python that compiles for other GPUs than this one's driver serves."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
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
        assert row["narrow_offsets"] == 0, row
        name, *settings = row["kernel"].split()
        # A float64 logarithm starts from an approximation, and ends exact. Reciprocal roots of
        # moduli are right to 2^-22.9, divisions by counts to 2 units in the last place.
        approximate = {"objective_kernel", "complex_stft_kernel"}
        assert row["approximate"] == 0 or name in approximate, row
        if name in STREAMING or name == "stft_level_kernel":
            assert row["spill_bytes"] == 0, row
            # 3.8 converts the joined parts of a spectrum's gradient before it stores them.
            assert row["layout_conversions"] == 0 or not PINNED, row
    if not PINNED:
        # Others may keep a few words in memory, in a loop of some 900 instructions; 3.5 keeps more
        # where estimates are loaded for levels, in whose loop it orders loads otherwise.
        for row in rows:
            assert row["spill_bytes"] <= (112 if " LEVEL" in row["kernel"] else 32), row
        return  # what follows holds for the compiler whose figures are documented

    for row in rows:
        name, *settings = row["kernel"].split()
        assert row["spill_bytes"] == 0, row
        # A warp of 64 is longer than the 32 elements that radices 8, 4, 8 work on.
        if name in STEP and not (target == "gfx942" and "RADICES=(8, 4, 8)" in row["kernel"]):
            (signals,) = set(settings) & EXCHANGES.keys()
            wanted = 2 if name == "stft_gradient_kernel" else EXCHANGES[signals]
            assert row["layout_conversions"] == wanted, row
            if "LEVEL" not in settings:  # which adds loads of the window and of the estimates
                assert row["step_instructions"] <= STEP[name], row
    committed = json.loads((ROOT / "benchmarks" / "results" / "kernels.json").read_text())
    assert rows == [row for row in committed if row["target"] == target], (
        "run python -m benchmarks.kernels --json benchmarks/results/kernels.json"
        " and python -m benchmarks.report"
    )


@pytest.mark.slow
@pytest.mark.parametrize("estimates", ["float32", "bfloat16", "float16", "float64"])
def test_all_pairs_of_dtypes_pass_the_front_end(estimates: str):
    """With all options: a kernel that a dtype breaks raises there. On-chip, float64 has none."""
    assert int(python("tests/triton_kernels/front_end.py", estimates)) > 90


LENGTHS = """
from benchmarks.kernels import MULTI, OTHER, TARGETS, Case, Offline, run
from triton import knobs
from triton.runtime import driver

def note(*, fn, key, **_):
    asked.add((fn.name, key))
    return True  # nothing is compiled

asked, counts = set(), []
driver.set_active(Offline(TARGETS["sm_90"]))
knobs.runtime.jit_cache_hook = note
plan = MULTI._replace(resolutions=(*MULTI.resolutions[:1], *OTHER))
for length in (4801, 501, 4800, 8192, 44100, 66150):
    run(Case(plan), length)
    counts.append(len(asked))
print(counts)
"""


def test_a_new_length_compiles_nothing_new():
    """Odd, divisible by 16, of one block and of many."""
    counts = json.loads(python("-c", LENGTHS))
    assert counts[0] > 7
    assert set(counts) == {counts[0]}
