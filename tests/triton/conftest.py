"""The Triton backend on a GPU where there is one, in Triton's interpreter otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import interpreter
import numpy as np
import pytest
import torch
from checks import INTERPRETED
from torch_l1snr_fast.kernels.triton import common

if INTERPRETED:
    interpreter.repair()


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def runnable(device: torch.device) -> Iterator[None]:
    if device.type == "cpu" and not INTERPRETED:
        pytest.fail(
            "Triton was imported before it could be told to interpret; set TRITON_INTERPRET=1"
        )
    # The interpreter computes with NumPy; results are checked, not signals.
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> common.Config:
    """Sizes with which little data crosses every boundary: blocks of 256 elements, few programs."""
    config = common.Config(lanes=16, programs=6, longest=1024, transient=1 << 30, sums=4)
    monkeypatch.setattr(common, "CONFIG", config)
    return config
