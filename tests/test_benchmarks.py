"""The benchmarks measure what they say, and the pages state what was measured."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import needs_upstream

from torch_l1snr_fast import backends

sys.path.append(str(Path(__file__).parent.parent))
from benchmarks import __main__ as command
from benchmarks import accuracy, measure, records, registry, report, traffic
from benchmarks.measure import Spread
from benchmarks.registry import Case, Provider

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(
    backends.triton_problem() is not None, reason="triton is not installed"
)
TINY = Case("L1SNRLoss", (2, 1, 1000), ("eager", "reference"))


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_pages_state_what_was_measured(page: Path):
    """If this fails: python -m benchmarks.report"""
    text = page.read_text()
    assert "<!-- " in text
    assert report.filled(text) == text


def test_stale_page_is_noticed():
    text = report.PAGES[0].read_text()
    faster = text.replace("| MultiL1SNRDBLoss | ", "| MultiL1SNRDBLoss | 1", 1)
    assert faster != text
    assert report.filled(faster) == text


def test_figures_of_two_devices_are_not_compared():
    """Nor shown side by side: a table is of the device that was measured last."""
    rows = records.read(records.RESULTS / "cpu.csv")
    ours = [row for row in rows if row.key.provider == registry.OURS["cpu"]][-1]
    other = ours._replace(key=ours.key._replace(device="CPU of yesterday"))
    theirs = other._replace(key=other.key._replace(provider=registry.UPSTREAM))
    assert [*report.Table("cpu", [theirs, other, ours]).rows.values()] == [ours]
    assert [*report.Table("cpu", [ours, other, theirs]).rows.values()] == [other, theirs]


def off_by(share: float) -> Provider:
    """The eager backend with a gradient that is somewhat wrong."""

    def step(loss: registry.Loss, mode: str, device: torch.device) -> registry.Step:
        right = registry.ours(loss, mode, device)

        def wrong(*pair: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            value, gradient = right(*pair)
            return value, gradient * (1 + share)

        return wrong

    return Provider("wrong", step, lambda *_: True)


@pytest.mark.parametrize("share", [0.01, float("nan")])
def test_wrong_provider_is_not_timed(share: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry.PROVIDERS, "wrong", off_by(share))
    monkeypatch.setattr(measure, "interleaved", None)
    with pytest.raises(ArithmeticError, match="wrong"):
        measure.measure_here(TINY._replace(providers=("eager", "wrong")), CPU)


def test_providers_take_turns_on_changing_buffers(monkeypatch: pytest.MonkeyPatch):
    now = itertools.count(step=0.02)  # seconds; every block of calls takes as long
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now))
    calls: list[tuple[str, Any]] = []
    steps = {name: lambda *pair, n=name: calls.append((n, pair)) for name in TINY.providers}
    found = measure.interleaved(steps, [(0, 0), (1, 1), (2, 2)], CPU)
    blocks = [name for name, _ in itertools.groupby(name for name, _ in calls)]
    assert blocks == list(TINY.providers) * (len(blocks) // 2)
    assert [pair[0] for _, pair in calls] == [i % 3 for i in range(len(calls))]
    assert len(found["eager"]) == measure.SAMPLES["cpu"][1]


def test_buffers_exceed_the_cache():
    pairs = measure.input_pairs(TINY, CPU)
    places = {x.data_ptr() for pair in pairs for x in pair}
    assert len(places) == 2 * len(pairs)
    assert 2 * len(pairs) * 2000 * 4 > measure.CACHE


def test_spread():
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == (3.5, 2.0, 5.0, 6)
    assert Spread.of([7.0]) == (7.0, 7.0, 7.0, 1)


def test_peak_counts_what_is_alive_at_once():
    def run() -> torch.Tensor:
        first = torch.ones(1 << 18)  # 1 MiB
        second = first + 1
        del first
        return second + second

    # Beside them the numbers that scalars become.
    assert measure.peak_in_profile(run) == pytest.approx(2 << 20, abs=64)


def test_peak_is_that_of_a_first_call():
    """Scratch memory and cached windows count, although a process allocates them once."""
    case = Case("STFTL1SNRDBLoss, level", (1, 1, 20000), ("eager",))
    peaks = [measure.in_fresh_process(measure.peak_of_first_call, case, "eager") for _ in range(2)]
    assert peaks[0] == peaks[1]
    measure.peak_of_first_call(case, "eager")
    assert peaks[0] > measure.peak_of_first_call(case, "eager")


def row(median: float, **changes: str) -> records.Row:
    key = records.Key("c", "v", "d, e", "L1SNRLoss", "2x1", "float32", "eager", "m", "time")
    return records.Row(key._replace(**changes), "ms", median, median, median, 5, "2026-01-01")


def test_table_has_the_median_of_several_times(tmp_path: Path):
    path = tmp_path / "new" / "cpu.csv"
    records.append(path, [row(1.5), row(2.5, provider="triton, torch.fft")])
    records.append(path, [row(9.5)])
    records.append(path, [row(3.5)])
    first, other = records.read(path)
    assert first == row(3.5)._replace(samples=15)
    assert other == row(2.5, provider="triton, torch.fft")
    assert path.read_text().count("commit") == 1


def test_run_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(command, "cases", lambda device, quick: [TINY])
    monkeypatch.setattr(records, "commit", lambda: "abc")  # whatever is edited meanwhile
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--out", str(tmp_path)])
    assert command.main() == 0
    written = (tmp_path / "cpu.csv").read_text()
    assert [r.key.provider for r in records.read(tmp_path / "cpu.csv")] == ["eager", "reference"]
    assert TINY.title() in capsys.readouterr().out
    assert command.main() == 0
    assert (tmp_path / "cpu.csv").read_text() == written
    assert TINY.title() not in capsys.readouterr().out


def test_failure_is_said_and_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(registry.PROVIDERS, "wrong", off_by(0.01))
    monkeypatch.setattr(command, "measure", measure.measure_here)
    bad = TINY._replace(providers=("eager", "wrong"))
    monkeypatch.setattr(command, "cases", lambda device, quick: [bad, TINY])
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--out", str(tmp_path)])
    assert command.main() == 1
    assert f"FAILED {bad.title()}" in capsys.readouterr().out
    assert len(records.read(tmp_path / "cpu.csv")) == 2


def test_gpu_tests_come_first_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []

    def answer(error: Exception | None) -> None:
        def run(arguments: list[str], **_: Any) -> None:
            asked.append(arguments)
            if error:
                raise error

        monkeypatch.setattr(command.subprocess, "run", run)

    run = command.Run(CPU, tmp_path)
    answer(command.subprocess.CalledProcessError(1, "pytest"))
    assert not command.gpu_tests(run)
    answer(command.subprocess.TimeoutExpired("pytest", 1))
    assert not command.gpu_tests(run)
    answer(None)
    assert command.gpu_tests(run)
    assert asked[0][1:4] == ["-m", "pytest", "-q"]
    assert asked[0][-3:] == ["-m", "gpu", "tests"]
    assert len(asked) == 3
    assert command.gpu_tests(run)
    assert len(asked) == 3


@pytest.mark.parametrize("part", ["tests", "headline", "tables"])
def test_parts_of_a_run(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a GPU: tests alone, the first shape alone, all tables without tests; no pictures."""
    other = TINY._replace(shape=(2, 1, 900))
    asked: list[Any] = []
    monkeypatch.setattr(command, "cases", lambda device, quick: [TINY, other])
    monkeypatch.setattr(command, "installed", lambda package: False)
    monkeypatch.setattr(command, "measure", lambda case, device: asked.append(case.shape) or [])
    monkeypatch.setattr(command, "gpu_tests", lambda run: asked.append("tests") is None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(records, "device_text", lambda device: "a GPU")
    monkeypatch.setattr(report, "write", None)
    options = ["--device", "cuda", "--only", part, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *options])
    assert command.main() == 0
    wanted = {"tests": ["tests"], "headline": [TINY.shape], "tables": [TINY.shape, other.shape]}
    assert asked == wanted[part]


def test_commit_of_files_without_a_history(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records.shutil, "which", lambda name: None)
    assert records.commit().startswith("unversioned+")
    monkeypatch.setenv(records.COMMIT, "abc1234")
    assert records.commit() == "abc1234"


def test_compilation_that_takes_too_long_is_ended():
    assert measure.in_time(60, int, "3") == 3
    with pytest.raises(RuntimeError):
        measure.in_time(1, time.sleep, 60)


@needs_triton
def test_times_of_kernels_are_told_apart():
    from benchmarks.per_kernel import PYTORCH, Launch, attribute

    launches = [Launch("a", 512, 8), Launch("b", 0, 8), Launch("a", 1024, 8)]
    events = [("a", 0.0, 1.0), ("b", 1.0, 2.0), ("fft", 2.0, 3.0), ("a", 3.0, 4.0)]
    wanted = {("a", 512): [1.0], ("b", 0): [2.0], (PYTORCH, 0): [3.0], ("a", 1024): [4.0]}
    assert attribute(events, launches) == wanted
    with pytest.raises(RuntimeError, match="1 of 2 launches of a"):
        attribute(events[:3], launches)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_case_can_be_built(kind: str):
    """Names are known, and no two cases measure the same."""
    measured = registry.cases(torch.device(kind), quick=False)
    keys = [
        (*case[:2], case.mode, case.dtype, name) for case in measured for name in case.providers
    ]
    assert len(keys) == len(set(keys))
    assert {case.loss for case in measured} == set(registry.BY_NAME)
    assert registry.OURS[kind] in measured[0].providers


def counted(function: Any, *inputs: torch.Tensor) -> traffic.Traffic:
    found = traffic.Traffic()
    with traffic.Counter(found):
        function(*inputs)
    return found


@needs_upstream
@pytest.mark.parametrize(("name", "launches"), [("L1SNRLoss", 3), ("MultiL1SNRDBLoss", 8)])
def test_host_reaches_the_driver_and_goes_no_further(name: str, launches: int):
    pytest.importorskip("triton")
    import torch_l1snr_fast as package
    from benchmarks import host

    with host.still():
        assert backends.select_backend(torch.device("cpu")) == "triton"
        call = host.step(getattr(package, name)("loss"), 2000)
        host.Compiled.launched = 0
        call()
        assert host.Compiled.launched == launches
    assert backends.select_backend(torch.device("cpu")) == "eager"


@pytest.mark.parametrize(
    ("function", "launches", "quarters", "syncs"),
    [
        (lambda x: x + x.clone(), 2, 5, 0),  # one read, one write; two reads, one write
        (lambda x: x.view(10, -1).T[2:], 0, 0, 0),
        (lambda x: x.mul_(2), 1, 2, 0),
        (lambda x: torch.empty_like(x).copy_(x), 1, 2, 0),
        (lambda x: torch.zeros_like(x), 1, 1, 0),
        (lambda x: torch.abs(x, out=torch.empty_like(x)), 1, 2, 0),
        (lambda x: x[:1].expand(100) + x, 1, 2, 0),  # one value is next to nothing
        (lambda x: x.unfold(0, 50, 10).sum(), 1, 1, 0),  # overlapping frames are read once
        (lambda x: x[0].item(), 0, 0, 1),
        (lambda x: bool((x[:1] > 0).any()), 2, 0, 1),
    ],
)
def test_operators_are_counted(function: Any, launches: int, quarters: int, syncs: int):
    found = counted(function, torch.ones(100))
    assert (found.launches, round(found.bytes / 400, 1), found.syncs) == (
        launches,
        pytest.approx(quarters, abs=0.2),
        syncs,
    )


@needs_upstream
@needs_triton
def test_traffic_of_torch_l1_snr():
    """Its waveform loss by hand, for one item of n samples, in units of n."""
    rows = {(r["loss"], r["provider"]): r for r in traffic.table((2, 1, 8192))}
    waveform = rows["L1SNRLoss", "torch-l1-snr"]
    # e - t 3, abs 2, mean 1, abs t 2, mean 1; backward: expand / n 1, sgn 2, times it 3 = 15
    assert waveform["bytes_per_4n"] == pytest.approx(15, abs=0.1)
    assert waveform["saved_per_4n"] == pytest.approx(1, abs=0.01)
    for loss in registry.LOSSES:
        before, after = rows[loss, "torch-l1-snr"], rows[loss, "triton"]
        assert after["syncs"] == 0
        assert 3 <= after["bytes_per_4n"] < before["bytes_per_4n"] / 2
        # Both keep e - t for power 2; beside it, partial sums.
        kept = 0.01 if loss == "L2SNRLoss" else 0
        assert after["saved_per_4n"] < before["saved_per_4n"] + kept
        assert after["launches"] < before["launches"] / 2


@needs_triton
def test_committed_traffic_is_that_of_the_kernels():
    """If this fails: python -m benchmarks.traffic --json benchmarks/results/traffic.json"""
    loss = registry.LOSSES["MultiL1SNRDBLoss, level"]
    unit = 4 * torch.Size(traffic.SHAPE).numel()
    (wanted,) = (
        row
        for row in report.read_traffic()
        if (row["loss"], row["provider"]) == (loss.name, "triton")
    )
    found = traffic.count(
        loss.build("torch_l1snr_fast", CPU), traffic.SHAPE, traffic.caught_launches
    )
    assert found.launches == wanted["launches"]
    assert round(found.bytes / unit, 3) == wanted["bytes_per_4n"]
    assert round(found.saved / unit, 3) == wanted["saved_per_4n"]


@needs_upstream
def test_error_at_high_snr_is_ours_to_win():
    pair = accuracy.signals(snr=100, level=-20)
    wanted = accuracy.evaluate(accuracy.LOSS, "reference", pair, CPU, torch.float64)[1]
    ours, upstream = (
        accuracy.relative(accuracy.evaluate(accuracy.LOSS, name, pair, CPU)[1], wanted)
        for name in ("eager", registry.UPSTREAM)
    )
    assert ours < upstream / 5


def test_silence_has_no_relative_error():
    zero = torch.zeros(3)
    assert accuracy.relative(zero, zero) == 0
    assert accuracy.relative(zero + 1, zero) == pytest.approx(3**0.5)
    assert accuracy.relative(zero + 1.1, zero + 1) == pytest.approx(0.1)


@pytest.mark.gpu
def test_on_a_gpu():
    device = torch.device("cuda")
    case = Case("MultiL1SNRDBLoss", (2, 1, 20000), ("torch-l1-snr", "triton"), memory=True)
    figures = {(f.provider, f.metric): f.spread for f in measure.measure(case, device)}
    assert figures["triton", "peak memory"].median < figures["torch-l1-snr", "peak memory"].median
    graph = case._replace(providers=("triton",), mode=registry.GRAPH)
    (figure,) = measure.measure(graph, device)
    assert figure.spread.median > 0  # how fast is not to be asked of a GPU that tests share
