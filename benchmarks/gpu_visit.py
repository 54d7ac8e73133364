"""All that needs a GPU, most telling first, as far as the time goes.

    python -m benchmarks.gpu_visit DIR [--seconds S]

Every step has a limit of its own, and a line in DIR/status.json when it ends. Another call with the
same DIR leaves out what has passed for the same library, begins with what has not been tried, and
tries again what failed. DIR holds eight files at most; pictures are drawn from them elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import records
from .records import ROOT

PASSED, FAILED, TIMEOUT, MISSING = "passed", "failed", "timed out", "not available"
LEAST = 20  # seconds without which no step is begun
KERNELS = "^(waveform|stft|complex|difference|frame|unknown|spectrum|overlap|objective)_"  # ours
SECTIONS = (
    "SpeedOfLight",
    "MemoryWorkloadAnalysis",
    "ComputeWorkloadAnalysis",
    "InstructionStats",
    "LaunchStats",
    "Occupancy",
    "SchedulerStats",
    "WarpStateStats",
)


class Step(NamedTuple):
    """A command with its limit; ``tool`` is a program that is to run it."""

    name: str
    seconds: int
    arguments: list[str]
    tool: str = ""
    tool_arguments: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    always: bool = False  # in every call: what it makes does not outlast the machine
    harmless: Callable[[str], bool] | None = (
        None  # whether what it printed is no fault all the same
    )

    def command(self) -> list[str] | None:
        """What to run, or None where the tool is missing."""
        command = [sys.executable, "-m", *self.arguments]
        if not self.tool:
            return command
        path = find(self.tool)
        return None if path is None else [path, *self.tool_arguments, *command]


def find(tool: str) -> str | None:
    """Path of a program of CUDA's, whose folder need not be on the PATH."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(tool, path=os.pathsep.join([os.environ["PATH"], f"{home}/bin"]))


def steps(out: Path) -> list[Step]:
    """Most telling first."""
    measure = ["benchmarks", "--device", "cuda", "--out", str(out), "--only"]
    every_kernel = ["benchmarks.every_kernel"]
    kernel_tests = ["-q", "-n", "8", "-m", "not gpu", "tests/triton_kernels"]
    offline = ["--ignore", "tests/triton_kernels/test_offline.py"]
    to_out = ["--out", str(out)]
    return [
        Step("self-check", 90, ["torch_l1snr_fast"]),
        Step("compilation", 120, [*every_kernel, "--compile"], always=True),
        Step("gpu tests", 300, [*measure, "tests"]),
        Step("headline", 180, [*measure, "headline"]),
        Step("time of each kernel", 120, ["benchmarks.per_kernel", *to_out]),
        Step("tuning", 300, ["benchmarks.tune", "--device", "cuda", *to_out]),
        Step("every kernel", 150, every_kernel),
        sanitizer("memcheck", every_kernel),
        sanitizer("racecheck", every_kernel)._replace(harmless=only_false_alarms),
        Step("bits of other assemblers", 300, ["benchmarks.bits"]),
        Step("kernel tests", 240, ["pytest", *kernel_tests, *offline]),
        counters(out, ["benchmarks.per_kernel", "--once"]),
        Step("share of the issue rate", 30, ["benchmarks.per_kernel", "--issue", *to_out]),
        Step("tables", 420, [*measure, "tables"]),
        Step("rounding errors", 120, ["benchmarks.accuracy", "--device", "cuda", *to_out]),
    ]


def sanitizer(name: str, arguments: list[str]) -> Step:
    """A program under one of compute-sanitizer's tools; each of its tensors has its own bounds."""
    options = ("--tool", name, "--target-processes", "application-only", "--error-exitcode", "9")
    if name == "racecheck":
        options += ("--racecheck-report", "hazard", "--print-limit", "100000")
    no_cache = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    return Step(name, 150, arguments, "compute-sanitizer", options, no_cache)


HAZARD = re.compile(
    r"(?P<severity>Error|Warning): .*?(?P<kind>RAW|WAR|WAW) hazard detected at (?P<place>\S+).*?\n"
    r".*? Thread \((?P<one>\d+),.*? at (?P<first>.*)\n"
    r".*? Thread \((?P<other>\d+),.*? at (?P<second>.*)\n"
)
SUMMARY = re.compile(
    r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)"
)


def only_false_alarms(text: str) -> bool:
    """Whether racecheck found but what Triton's reductions over several warps are known for.

    There all lanes of a warp write the one sum that each of them has to one place in shared memory,
    by one instruction (triton-lang/triton issue 7264). Whether they have the same bits is tested by
    the machine in tests/machine; another pair of accesses is a fault.
    """
    summary = SUMMARY.search(text)
    hazards = list(HAZARD.finditer(text))
    return (
        summary is not None
        and "FAILED" not in text  # of the program's own results
        and len(hazards) == int(summary[1]) > 0
        and all(
            hazard["kind"] == "WAW"
            and hazard["place"] == "__shared__"
            and hazard["first"] == hazard["second"]
            and int(hazard["one"]) // 32 == int(hazard["other"]) // 32
            for hazard in hazards
        )
    )


def counters(out: Path, arguments: list[str]) -> Step:
    """Hardware counters of our kernels, which leave the clocks of the card alone."""
    options = ("--clock-control", "none", "--profile-from-start", "off", "-k", f"regex:{KERNELS}")
    sections = (word for section in SECTIONS for word in ("--section", section))
    file = ("--csv", "--page", "raw", "--log-file", str(out / "counters.csv"))
    return Step("counters", 150, arguments, "ncu", (*options, *sections, *file))


class Status:
    """What has been tried, by the library's commit, in a file."""

    def __init__(self, path: Path, commit: str) -> None:
        self.path = path
        self.all: dict[str, dict[str, dict[str, object]]] = {}
        if path.exists():
            self.all = json.loads(path.read_text())
        self.steps = self.all.setdefault(commit, {})

    def result(self, name: str) -> object:
        return self.steps.get(name, {}).get("result")

    def record(self, name: str, result: str, seconds: float) -> None:
        self.steps[name] = {"result": result, "seconds": round(seconds, 1)}
        self.path.write_text(json.dumps(self.all, indent=1) + "\n")


def run(step: Step, seconds: float, log: Path, environment: dict[str, str]) -> str:
    """The result of a step, whose output is added to the log."""
    command = step.command()
    with log.open("a+") as file:
        print(f"\n==== {step.name}: {command or step.tool}", file=file, flush=True)
        begin = file.tell()
        if command is None:
            return MISSING
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | dict(step.variables),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that it can be ended with all that it starts
        )
        try:
            code = process.wait(seconds)
            file.seek(begin)
            if code == 0 or (step.harmless is not None and step.harmless(file.read())):
                return PASSED
            return f"{FAILED} ({code})"
        except subprocess.TimeoutExpired:
            return TIMEOUT
        finally:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a step with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def visit(todo: list[Step], status: Status, log: Path, left: Callable[[], float]) -> bool:
    """Run what has not passed, the untried first; whether all has passed."""
    environment = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # which PyTorch's deterministic mode asks for
    }

    def tried(step: Step) -> bool:
        return not step.always and status.result(step.name) is not None

    for step in sorted(todo, key=tried):
        if tried(step) and status.result(step.name) == PASSED:
            continue
        if left() < LEAST:
            print(f"{step.name}: left for another call", flush=True)
            continue
        start = time.monotonic()
        result = run(step, min(step.seconds, left()), log, environment)
        seconds = time.monotonic() - start
        status.record(step.name, result, seconds)
        print(f"{step.name}: {result}, {seconds:.0f} s", flush=True)
    return all(status.result(step.name) == PASSED for step in todo)


def describe(out: Path, commit: str) -> None:
    """The machine, the versions and the commit."""
    lines = [f"commit {commit}", records.versions(), f"Python {sys.version}"]
    for command in (
        ["nvidia-smi"],
        [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total,clocks.max.sm",
            "--format=csv",
        ],
        ["compute-sanitizer", "--version"],
        ["ncu", "--version"],
    ):
        path = find(command[0])
        if path is None:
            lines.append(f"{command[0]}: {MISSING}")
        else:
            found = subprocess.run([path, *command[1:]], capture_output=True, text=True)
            lines.append(found.stdout + found.stderr)
    (out / "environment.txt").write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_visit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--seconds", type=float, default=570, help="for all of it (570)")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    commit = records.commit()
    describe(out, commit)
    print((out / "environment.txt").read_text(), flush=True)
    status = Status(out / "status.json", commit)
    passed = visit(steps(out), status, out / "log.txt", lambda: end - time.monotonic())
    print(json.dumps(status.steps, indent=1))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
