"""What is kept for backward, and that nothing is where no gradient is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from cases import ALL_ON, KINDS, SPECTRAL, WAVEFORM, build, leaves, signals, value_and_grad
from torch import Tensor

import torch_l1snr_fast as package
from torch_l1snr_fast.kernels.eager import few
from torch_l1snr_fast.kernels.plan import PARTS

# No gradient wanted


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation(kind: str, mode: Callable[[], Any]):
    e, t = leaves(2, cases.LENGTH)
    loss = build(kind, **ALL_ON[kind])
    want = loss(e, t).detach()
    with mode():
        value = loss(e, t)
    assert not value.requires_grad
    assert torch.equal(value, want)
    plain = loss(e.detach(), t)
    assert not plain.requires_grad
    assert torch.equal(plain, want)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_does_no_work_for_a_gradient(kind: str, monkeypatch: pytest.MonkeyPatch):
    """The kernels are told whether anything must be kept."""
    asked = []
    statistics = few.statistics

    def spy(plan: Any, estimates: Tensor, actuals: Tensor, save: bool) -> Any:
        asked.append(save)
        return statistics(plan, estimates, actuals, save)

    monkeypatch.setattr(few, "statistics", spy)
    e, t = leaves(2, cases.LENGTH)
    loss = build(kind)
    loss(e, t)
    loss(e.detach(), t)
    with torch.no_grad():
        loss(e, t)
    assert asked == [True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_targets_made_in_inference_mode(kind: str):
    """A teacher's or a loader's tensors; estimates that train."""
    e, t = signals(2, cases.LENGTH)
    want = value_and_grad(build(kind), e, t)
    with torch.inference_mode():
        made = t.clone()
    got = value_and_grad(build(kind), e, made)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_saved_without_a_gradient(kind: str, backend: str):
    e, t = signals(2, cases.LENGTH)
    with package.use_backend(backend):
        assert saved_bytes(build(kind, **ALL_ON[kind]), e, t) == 0


# Saved memory


def saved_bytes(loss: Any, e: Tensor, t: Tensor) -> int:
    """Bytes that the graph holds on to, inputs excluded; shared memory counted once."""
    inputs = {x.untyped_storage().data_ptr() for x in (e, t)}
    found: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in inputs:
            found[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss(e, t)
    return sum(found.values())


def numbers(terms: int, rows: int) -> int:
    """Bytes of the coefficients in float64 and of the parts in float32."""
    return terms * rows * (3 * 8 + len(PARTS) * 4)


@pytest.mark.parametrize("kind", WAVEFORM)
def test_waveform_losses_save_signs(kind: str):
    """A byte for each sample, or the error itself for squares, and a few numbers per row."""
    for length in (1000, 20000):
        e, t = signals(2, 2, length, dtype=torch.float32)
        error = (4 if kind == "L2SNRLoss" else 1) * e.numel()
        saved = saved_bytes(build(kind, **ALL_ON[kind]), e.requires_grad_(), t)
        assert saved <= error + numbers(1, rows=2)


@pytest.mark.parametrize("level", [False, True])
@pytest.mark.parametrize("kind", SPECTRAL)
def test_stft_losses_save_signs(kind: str, level: bool):
    """A byte for each sign of Re and Im and sample; with level matching two numbers per frame."""
    length, rows, channels = 5000, 2, 2
    name = "use_regularization" if kind == "STFTL1SNRDBLoss" else "use_spec_regularization"
    e, t = signals(rows, channels, length, dtype=torch.float32)
    loss = build(kind, **{name: level})
    sizes = list(zip(*list(cases.SMALL.values())[:2], strict=True))
    frames = [length // hop + 1 for _, hop in sizes]
    signs = sum(2 * (n // 2 + 1) * f for (n, _), f in zip(sizes, frames, strict=True))
    signs += length if kind == "MultiL1SNRDBLoss" else 0
    edges = sum(2 * 4 * f for f in frames) if level else 0
    bound = rows * channels * (signs + edges) + numbers(4, rows)
    assert saved_bytes(loss, e.requires_grad_(), t) <= bound


# eager against the reference
