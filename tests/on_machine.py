"""A pytest plugin: without a GPU, Triton's kernels run compiled, on the machine of tests/machine.

They are compiled, bound and launched as for an H100; the machine executes their PTX and watches it.
All tests of triton_kernels/ run so, and those whose ``backend`` is "triton", among which each test
of LOSSES has a copy. Whatever the sanitizers find fails the test, unless it ``is_benign``.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from torch_l1snr_fast import backends

HERE = Path(__file__).parent
ON_GPU = torch.cuda.is_available()

# Modules about the losses themselves, whose tests run by the automatic backend and by Triton.
LOSSES = {
    "test_closed_form",
    "test_functional",
    "test_options",
    "test_parts",
    "test_policy",
    "test_readme",
    "test_upstream",
}
# One transform that Triton does on-chip (of float32), and two that it does through torch.fft.
SIZES = {"n_ffts": [256, 64, 50], "hop_lengths": [64, 12, 20], "win_lengths": [200, 64, 40]}
OF_THEIR_OWN_SIZES = {"test_warning_names_the_cause_and_the_caller"}
# Tests of LOSSES that have no copy by Triton.
NO_COPY = {
    "test_installing_redirects_every_way_to_import": "it starts a process, which has no machine",
    "test_usage_examples_of_the_early_readme": "the same",
    "test_usage_examples_run_as_they_are_after_installing": "the same",
    "test_functions_have_the_defaults_of_the_modules": "it is about arguments, and of full size",
    "test_upstream_agrees_with_the_oracle": "it runs neither backend",
    "test_compute_adaptive_weight": "it is a formula of numbers, which no backend computes",
    "test_dbrms": "the same",
}

# Of the many cases of one of these tests, make test runs each seventh by Triton (7 divides no count
# of a parameter's values); the others are slow, so make test-all runs them.
EACH = 7
# And those by Triton of which none is quick: their transforms are of full size, so their kernels
# take ten seconds and more to compile.
OF_FULL_SIZE = {"test_code_runs", "test_a_silent_estimate_reads_zero_exactly"}

# (kernel, line): where data, so what was loaded from memory, may decide which way a program goes or
# what it accesses. Everywhere else the accesses and barriers of a launch are the same whatever the
# data: one run without findings stands for all. Of these, tests run every way. Looked at with
# Triton 3.6 alone, for others say otherwise which line an instruction comes from.
SILENCE = "signs of silent frames are cleared (test_silence_and_equality, test_one_sample_differs)"
SECOND_READING = (
    "samples that are not finite: a stretch is read again (test_onchip_data's test_sanitized)"
)
IN_REGISTERS = "a logarithm's or a division's special values: no memory, no barrier on either way"
DATA_DECIDES = {
    ("stft_statistics_kernel", "if keep != 3:"): SILENCE,
    ("stft_statistics_kernel", "while todo:"): SECOND_READING,
    (
        "stft_statistics_kernel",
        "if (start >= 0) & (start + 2 * HOP <= length) & ~dirty:",
    ): SECOND_READING,
    ("stft_statistics_kernel", "if dirty:"): SECOND_READING,
    ("stft_statistics_kernel", "x = tl.load(p_x + p)"): SECOND_READING,
    (
        "stft_gradient_kernel",
        "if (start >= 0) & (start + 2 * HOP <= length) & ~dirty:",
    ): SECOND_READING,
    (
        "stft_gradient_kernel",
        "noted = tl.load(p_counts + p // owned * (SIGNALS * COLUMNS), mask=mask, other=0.0) > 0",
    ): SECOND_READING,
    (
        "stft_gradient_kernel",
        "return (tl.load(p_unknown + p // BITS, mask=mask, other=0) >> (p % BITS)) & 1 == 0",
    ): SECOND_READING,
    (
        "objective_kernel",
        "frames = (length - slack.to(tl.int64)) // hop.to(tl.int64) + 1",
    ): IN_REGISTERS,
    ("objective_kernel", "d1_re = C * tl.log(floor_re / (ref_re + eps))"): IN_REGISTERS,
    ("objective_kernel", "d1_im = C * tl.log(floor_im / (ref_im + eps))"): IN_REGISTERS,
    ("objective_kernel", "l_est = tl.where(leveled, C * tl.log(q_est), 0.0)"): IN_REGISTERS,
    (
        "objective_kernel",
        "l_ref = tl.where(leveled, C * tl.log(pick(means, Q_REF) + dbrms_eps), 0.0)",
    ): IN_REGISTERS,
}
# What tests of these names do cannot be watched for unwritten memory.
UNTRACKED = {
    "test_memory": "they count what is allocated themselves",
    "test_in_a_compiled_graph": "torch.compile of PyTorch 2.14 refuses to trace under a mode",
    "test_gradcheck": "it makes thousands of tensors",
    "test_launches": "they run no kernel, so nothing is written",
    "test_same_bits_in_every_order": "it has drivers of its own, which tell the tracker nothing",
    "test_each_barrier": "the same",
}

found: Counter[str] = Counter()


@functools.cache
def source_lines(file: str) -> list[str]:
    """Of a file of kernels, the package's or a test's; none of another's."""
    from torch_l1snr_fast.kernels import triton

    paths = [p for folder in (*triton.__path__, HERE) for p in Path(folder).rglob(file)]
    if len(paths) > 1:
        raise RuntimeError(f"which of {', '.join(map(str, paths))} is {file}?")
    return paths[0].read_text().splitlines() if paths else []


def line_of(instruction: Any) -> str:
    """The line of a kernel's source that an instruction was compiled from, here or inlined here."""
    for file, number in re.findall(r"([\w.]+\.py):(\d+)", instruction.source):
        if lines := source_lines(file):
            return lines[int(number) - 1].strip()
    return instruction.source


def by_triton(item: pytest.Item) -> bool:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("backend") == "triton"


def on_machine(item: pytest.Item) -> bool:
    return not ON_GPU and (HERE / "triton_kernels" in item.path.parents or by_triton(item))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A copy by Triton of what has no backend of its own."""
    if ON_GPU or metafunc.module.__name__ not in LOSSES or metafunc.function.__name__ in NO_COPY:
        return
    if "backend" not in metafunc.fixturenames:
        metafunc.fixturenames.append("backend")
        metafunc.parametrize("backend", ["auto", "triton"])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    copies: Counter[tuple[Path, str]] = Counter()
    for item in items:
        if by_triton(item) and item.path.stem in LOSSES and on_machine(item):
            test = (item.path, item.originalname)
            if copies[test] % EACH or item.originalname in OF_FULL_SIZE:
                item.add_marker(pytest.mark.slow)
            copies[test] += 1


def is_benign(finding: Any) -> bool:
    """Several threads write one element to shared memory, by one instruction, the same bits.

    The only kind of finding on which no result can depend. Triton's layouts give copies of an
    element to several threads where a tile has fewer elements than the program threads
    (``objective_kernel``), and from Triton 3.8 on in reductions; where a layout is converted all of
    them write it. Copies are computed alike from the same numbers, whatever these are; and the
    machine saw the same value every time.
    """
    itself = finding.other is not None and finding.other.line == finding.instruction.line
    race = (finding.kind, finding.hazard) == ("shared-race", "write-after-write")
    return bool(race and finding.benign and itself)


@pytest.fixture(autouse=True)
def sizes_for_triton(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_triton(request.node) and request.node.originalname not in OF_THEIR_OWN_SIZES:
        for name, sizes in SIZES.items():
            monkeypatch.setitem(cases.SMALL, name, sizes)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    if not on_machine(pyfuncitem):
        return (yield)
    import triton
    from machine import Tracker, emulated

    def dispatching() -> bool:
        """Whether there are other modes than the tracker, which but looks on."""
        return any(not isinstance(mode, Tracker) for mode in _get_current_dispatch_mode_stack())

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(backends, "TRITON_DEVICES", backends.TRITON_DEVICES | {"cpu"})
        patch.setattr(backends, "dispatching", dispatching)
        driver = stack.enter_context(emulated(seed=1, taint=triton.__version__.startswith("3.6.")))
        unwritten: list[Any] = []
        if not pyfuncitem.name.startswith(tuple(UNTRACKED)):
            tracker = stack.enter_context(Tracker())
            driver.memory_of, unwritten = tracker.memory_of, tracker.findings
        result = yield
    found["tests"] += 1
    found["launches"] += len(driver.records)
    found["warp instructions"] += sum(record.result.executed for record in driver.records)
    bad = [*(f for f in driver.findings if not is_benign(f)), *unwritten]
    bad += [f for f in driver.tainted if (f.kernel, line_of(f.instruction)) not in DATA_DECIDES]
    driver.records.clear()  # the package remembers what it asked a driver, so drivers stay
    if bad:
        pytest.fail("\n".join(map(str, bad)), pytrace=False)
    return result


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if found:
        counted = ", ".join(f"{count} {what}" for what, count in found.items())
        terminalreporter.write_line(f"on the machine: {counted}")
