"""Every test starts from the same seed, the automatic backend and poisoned memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

import torch_l1snr_fast

pytest_plugins = ["on_machine"]


def pytest_configure(config: pytest.Config) -> None:
    # A warning that a test does not expect is a defect of the library or of the test.
    config.addinivalue_line("filterwarnings", "error::RuntimeWarning")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # What takes longest at first, so that no process is left with it in the end.
    items.sort(key=lambda item: item.path.stem != "test_offline")
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA or ROCm device here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def same_start(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.manual_seed(0)
    params = getattr(request.node, "callspec", None)
    torch_l1snr_fast.use_backend(params.params.get("backend", "auto") if params else "auto")
    yield
    torch_l1snr_fast.use_backend("auto")


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
