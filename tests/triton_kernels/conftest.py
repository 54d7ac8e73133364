"""The Triton backend on a GPU where there is one, on the machine otherwise (../on_machine.py)."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torch_l1snr_fast.kernels.triton import common


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def apart(device: torch.device) -> Callable[..., list[Tensor]]:
    """Copies of [3, C, L] whose rows are so far apart that twice the stride exceeds 32 bits."""
    stride = 2**30 + 5

    def copies(*tensors: Tensor) -> list[Tensor]:
        size = 2 * stride + 512 * len(tensors)
        if device.type == "cpu":  # pages that are never touched take no memory
            memory = torch.frombuffer(mmap.mmap(-1, 2 * size), dtype=torch.float16)
        else:
            memory = torch.empty(size, dtype=torch.float16, device=device)
        far = [
            memory[512 * i :].as_strided(x.shape, (stride, *x.stride()[1:]))
            for i, x in enumerate(tensors)
        ]
        for there, x in zip(far, tensors, strict=True):
            there.copy_(x)
        return far

    return copies


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> common.Config:
    """Sizes with which little data crosses every boundary: blocks of 256 elements, few programs."""
    config = common.CONFIGS[90]._replace(
        lanes=16, programs=6, longest=1024, transient=1 << 30, sums=4
    )
    monkeypatch.setattr(common, "CONFIG", config)
    return config


@pytest.fixture
def on_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The STFT by that route alone."""
    from torch_l1snr_fast.kernels import triton as kernels
    from torch_l1snr_fast.kernels.triton import onchip

    monkeypatch.setattr(kernels, "stft_route", lambda *_: onchip)
