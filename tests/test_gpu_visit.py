"""A visit to a GPU: its steps, in time and once; bits, clocks and false alarms."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_l1snr_fast import backends

sys.path.append(str(Path(__file__).parent.parent))
from benchmarks import gpu_visit

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(
    backends.triton_problem() is not None, reason="triton is not installed"
)


class Visit:
    """A visit to a GPU whose steps are small programs."""

    def __init__(self, folder: Path) -> None:
        self.log, self.path = folder / "log.txt", folder / "status.json"

    def __call__(self, *steps: gpu_visit.Step, commit: str = "abc", seconds: float = 100) -> bool:
        self.status = gpu_visit.Status(self.path, commit)
        return gpu_visit.visit(list(steps), self.status, self.log, lambda: seconds)

    def results(self) -> dict[str, Any]:
        return {name: step["result"] for name, step in self.status.steps.items()}

    def begun(self) -> list[str]:
        """Steps in the order in which they were begun, in all calls."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split()[1].rstrip(":") for line in lines if line.startswith("====")]


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    return Visit(tmp_path)


RIGHT = gpu_visit.Step("right", 60, ["this"])  # python -m this
WRONG = gpu_visit.Step("wrong", 60, ["json.tool", "/nowhere"])
SLOW = gpu_visit.Step("slow", 1, ["http.server", "--bind", "127.0.0.1", "0"])


def test_visit_goes_on_where_it_was(visit: Visit):
    assert not visit(WRONG, RIGHT)
    assert visit.results() == {"wrong": "failed (2)", "right": "passed"}
    assert "Beautiful is better than ugly." in visit.log.read_text()
    last = RIGHT._replace(name="last")
    assert not visit(WRONG, RIGHT, last)
    assert visit.begun() == ["wrong", "right", "last", "wrong"]  # what failed, after the new
    assert visit(RIGHT, last)
    assert len(visit.begun()) == 4
    assert visit(RIGHT, last._replace(always=True))
    assert visit.begun()[4:] == ["last"]
    assert visit(RIGHT, commit="another")
    assert visit.begun()[5:] == ["right"]


def test_visit_without_a_tool(visit: Visit):
    """What was not looked at has not passed, now or later."""
    missing = RIGHT._replace(name="memcheck", tool="no-such-program")
    assert not visit(missing, RIGHT)
    assert visit.results() == {"memcheck": "not available", "right": "passed"}
    assert not visit(missing, RIGHT)
    assert visit(missing._replace(tool="env"))
    assert visit.results()["memcheck"] == "passed"


def test_visit_ends_a_step_in_time(visit: Visit):
    assert not visit(SLOW, RIGHT)
    assert visit.results() == {"slow": "timed out", "right": "passed"}
    begun = visit.begun()
    assert not visit(SLOW, seconds=gpu_visit.LEAST - 1)
    assert visit.begun() == begun


HAZARD = """\
========= Error: Potential {kind} hazard detected at __shared__ 0x404 in block (0,0,0) :
=========     Write Thread (23,0,0) at kernel+0x1a0 in kernel.py:32
=========     Write Thread ({other},0,0) at kernel+{at} in kernel.py:32
=========     Current Value : 2, Incoming Value : 3
=========
"""
SUMMARY = "========= RACECHECK SUMMARY: {count} hazards displayed (1 error, 1 warning)\n"
KNOWN = {"kind": "WAW", "other": "24", "at": "0x1a0"}


@pytest.mark.parametrize(
    ("second", "end", "harmless"),
    [
        ({}, SUMMARY.format(count=2), True),
        ({"kind": "RAW"}, SUMMARY.format(count=2), False),
        ({"other": "55"}, SUMMARY.format(count=2), False),  # a thread of another warp
        ({"at": "0x1b0"}, SUMMARY.format(count=2), False),
        ({}, SUMMARY.format(count=3), False),  # one that was not understood
        ({}, "", False),  # it did not come to an end
        ({}, SUMMARY.format(count=2) + "FAILED", False),
    ],
)
def test_false_alarms_of_racecheck(second: dict[str, str], end: str, harmless: bool):
    text = HAZARD.format(**KNOWN) + HAZARD.format(**KNOWN | second) + end
    assert gpu_visit.only_false_alarms(text) == harmless


def test_visit_forgives_what_is_harmless(visit: Visit):
    asked: list[str] = []
    judged = WRONG._replace(harmless=lambda text: bool(asked.append(text)) or "nowhere" in text)
    assert visit(RIGHT, judged)
    assert len(asked) == 1
    assert "Beautiful" not in asked[0]  # only its own words count
    assert not visit(WRONG._replace(name="other", harmless=lambda text: False))


@needs_triton
def test_bits_tell_results_apart(monkeypatch: pytest.MonkeyPatch):
    from benchmarks import bits
    from torch_l1snr_fast.kernels import eager

    cases = bits.CASES[:2]
    wanted = bits.digests(eager, CPU, cases)
    assert len(wanted) == 2
    assert bits.differing(wanted, bits.digests(eager, CPU, cases)) == []
    right = eager.gradient
    monkeypatch.setattr(eager, "gradient", lambda *x: torch.nextafter(right(*x), torch.ones(())))
    assert bits.differing(wanted, bits.digests(eager, CPU, cases)) == list(wanted)
    assert bits.differing(wanted, {}) == list(wanted)


@needs_triton
def test_every_way_of_assembling_is_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from benchmarks import bits

    results = {"ptxas 1": {"a": ["x"]}, "ptxas 1 -O0": {"a": ["x"]}, "ptxas 2": {"a": ["y"]}}
    all_ways = [bits.Way(name, {}) for name in results]
    all_ways[2].variables["TRITON_PTXAS_PATH"] = "somewhere"
    monkeypatch.setattr(bits, "computed", lambda way: results[way.name])
    monkeypatch.setattr(bits, "ways", lambda: all_ways)
    assert bits.compare_all() == 1
    assert "ptxas 2: 1 cases differ" in capsys.readouterr().out
    results["ptxas 2"] = {"a": ["x"]}
    assert bits.compare_all() == 0
    all_ways.pop()
    assert bits.compare_all() == 1  # with nothing to compare it has not passed
    assert "nvidia-cuda-nvcc" in capsys.readouterr().out


def test_clock_of_what_was_timed(monkeypatch: pytest.MonkeyPatch):
    from benchmarks.clock import Clock

    with Clock(CPU) as nothing:
        pass
    assert nothing.since(0) is None
    rates = itertools.chain([1000] * 3, itertools.repeat(1500))
    monkeypatch.setattr(torch.cuda, "clock_rate", lambda device: next(rates))
    with Clock(torch.device("cuda")) as clock:
        while len(clock.seen) < 4:
            time.sleep(0.001)
        start = time.monotonic()
        while not clock.seen or clock.seen[-1][0] < start:
            time.sleep(0.001)
    assert clock.since(start) == 1500
    assert clock.seen[0][1] == 1000


@needs_triton
def test_share_of_the_issue_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from benchmarks import per_kernel

    # 100 multiprocessors at 1 GHz issue 400 instructions in a nanosecond.
    assert per_kernel.issue_share(200e6, ms=1.0, mhz=1000.0, multiprocessors=100) == 0.5
    (tmp_path / "counters.csv").write_text(
        '==PROF== ...\n"Kernel Name","smsp__inst_executed.sum"\n"","inst"\n'
        '"stft","100,000,000"\n"stft","200,000,000"\n"elementwise","7"\n'
    )
    (tmp_path / "kernels.csv").write_text(
        "loss,provider,kernel,launches,ms,sm_mhz\n"
        'MultiL1SNRDBLoss,triton,"stft, 1024",1,1.0,1000\n'
        'MultiL1SNRDBLoss,triton,"stft, 512",1,1.0,1000\n'
        "MultiL1SNRDBLoss,triton,PyTorch and cuFFT,1,1.0,1000\n"
    )
    per_kernel.print_issue_shares(tmp_path, multiprocessors=100)
    first, second = capsys.readouterr().out.splitlines()
    assert "stft, 512" in first
    assert "0.25 of issue" in first
    assert "0.50 of issue" in second


def test_counters_are_of_our_kernels_and_no_others():
    folder = gpu_visit.ROOT / "kernels" / "triton"
    text = "".join(path.read_text() for path in folder.rglob("*.py"))
    ours = re.findall(r"^def (\w+_kernel)\(", text, re.MULTILINE)
    assert {"waveform_gradient_kernel", "complex_stft_kernel"} < set(ours)
    for name in ours:
        assert re.match(gpu_visit.KERNELS, name), name
    for name in ("vectorized_elementwise_kernel", "reduce_kernel", "multi_tensor_apply_kernel"):
        assert not re.match(gpu_visit.KERNELS, name), name


def test_every_step_of_a_visit_exists(tmp_path: Path):
    names = set()
    for step in gpu_visit.steps(tmp_path):
        names.add(step.name)
        module = step.arguments[0]
        assert module == "pytest" or importlib.util.find_spec(module) is not None
    assert len(names) == len(gpu_visit.steps(tmp_path))
    written = {"environment.txt", "status.json", "log.txt", "cuda.csv", "cuda-accuracy.csv"}
    assert len(written | {"kernels.csv", "counters.csv"}) <= 8
