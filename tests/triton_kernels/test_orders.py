"""In whatever order programs and warps run, a loss and its gradient have the same bits."""

from __future__ import annotations

import cases
import pytest
import torch
from cases import build, signals, value_and_grad
from on_machine import SIZES, is_benign

import torch_l1snr_fast as package

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's order is its own")

ORDERS = [{"order": order} for order in ("forward", "backward", "ahead")]
ORDERS += [{"seed": seed} for seed in (1, 2, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_bits_in_every_order(dtype: torch.dtype):
    from machine import emulated

    e, t = signals(2, 2, 1500, dtype=dtype)
    loss = build("MultiL1SNRDBLoss", use_spec_regularization=True, **SIZES)
    results = []
    for order in ORDERS:
        with emulated(**order) as driver, package.use_backend("triton"), cases.recorded():
            results.append(value_and_grad(loss, e, t))
        assert all(map(is_benign, driver.findings))
        assert driver.records
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])
