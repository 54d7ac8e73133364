"""Every test starts from the same seed, the automatic backend and poisoned memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import torch_l1snr_fast

if not torch.cuda.is_available():
    # Triton decides when it is imported, which torch.compile does in some tests.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "the losses' tests by Triton in its interpreter, with transforms that it does on-chip"
    parser.addoption("--on-chip", action="store_true", help=text)


def force_on_chip() -> None:
    """For test_policy, test_options, test_closed_form; float64 goes through torch.fft as ever."""
    sys.path.append(str(Path(__file__).parent / "triton_kernels"))
    import cases
    import interpreter
    import numpy as np

    interpreter.repair()
    np.seterr(all="ignore")  # results are checked, not signals
    os.environ["TORCH_L1SNR_FAST_BACKEND"] = "triton"
    cases.SMALL.update(
        n_ffts=[256, 256, 512], hop_lengths=[64, 128, 128], win_lengths=[256, 200, 512]
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--on-chip"):
        force_on_chip()
    # A warning that a test does not expect is a defect of the library or of the test.
    config.addinivalue_line("filterwarnings", "error::RuntimeWarning")


NOT_ON_CHIP = {
    "test_warning_names_the_cause_and_the_caller": "its lengths are those of small transforms",
    "test_usage_examples_of_the_early_readme": "starts a process with no repaired interpreter",
    "test_usage_examples_run_as_they_are_after_installing": "the same",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        reason = NOT_ON_CHIP.get(item.name.partition("[")[0])
        if reason and config.getoption("--on-chip"):
            item.add_marker(pytest.mark.skip(reason=reason))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA or ROCm device here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    torch.manual_seed(0)
    first = os.environ.get("TORCH_L1SNR_FAST_BACKEND", "auto")
    torch_l1snr_fast.use_backend(first)
    yield
    torch_l1snr_fast.use_backend(first)


@pytest.fixture(autouse=True)
def poisoned(request: pytest.FixtureRequest) -> Iterator[None]:
    """torch.empty is full of NaN, so that what a kernel forgets to write cannot pass as zero.

    Not where torch.compile generates code, which deterministic mode would change.
    """
    if request.module.__name__ == "test_compile":
        yield
        return
    # Warning only, because some of the reference's operators have no such algorithm on a GPU.
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def redirectable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What install_as_torch_l1_snr() does ends with the test: others want the original."""
    for name in ("torch_l1_snr", "torch_l1_snr.l1snr", "torch_l1snr", "torch_l1snr.l1snr"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name))
