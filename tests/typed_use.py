"""For mypy: what a loss returns is known from how it is called. ``make style`` checks it."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import assert_type

from torch_l1snr_fast import L1SNRLoss, MultiL1SNRDBLoss, functional
from torch_l1snr_fast.computation import Components


def use(estimates: Tensor, actuals: Tensor, asked: bool) -> None:
    # torch has no types for backward.
    functional.l1snr_loss(estimates, actuals, eps=1e-3).backward()  # type: ignore[no-untyped-call]
    loss, parts = functional.multi_l1snrdb_loss(estimates, actuals, return_components=True)
    assert_type(loss, Tensor)
    assert_type(parts, Components)
    either = functional.stft_l1snrdb_loss(estimates, actuals, return_components=asked)
    assert_type(either, Tensor | tuple[Tensor, Components])

    module = MultiL1SNRDBLoss("multi", weight=torch.nn.Parameter(torch.ones(())))
    assert_type(module(estimates, actuals), Tensor)
    assert_type(module(estimates, actuals, return_components=True), tuple[Tensor, Components])
    assert_type(L1SNRLoss("l1snr").eps, float)
