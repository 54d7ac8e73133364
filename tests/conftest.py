"""Every test starts from the same seed, the automatic backend and poisoned memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import torch_l1snr_fast

if not torch.cuda.is_available():
    # Triton decides when it is imported, which torch.compile does in some tests.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config: pytest.Config) -> None:
    # A warning that a test does not expect is a defect of the library or of the test.
    config.addinivalue_line("filterwarnings", "error::RuntimeWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
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
