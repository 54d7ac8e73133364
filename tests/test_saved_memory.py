"""What is kept for backward, and that nothing is where no gradient is wanted."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from cases import ALL_ON, KINDS, build, leaves, signals, value_and_grad
from torch import Tensor

import torch_l1snr_fast as package
from torch_l1snr_fast.kernels import eager

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
    statistics = eager.statistics

    def spy(plan: Any, estimates: Tensor, actuals: Tensor, save: bool, *room: Any) -> Any:
        asked.append(save)
        return statistics(plan, estimates, actuals, save, *room)

    monkeypatch.setattr(eager, "statistics", spy)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_alone_is_saved(kind: str, dtype: torch.dtype):
    """In the dtype that it is computed in: it is rounded when it is known how large it is."""
    e, t = signals(2, 2, 5000, dtype=dtype)
    assert saved_bytes(build(kind, **ALL_ON[kind]), e.requires_grad_(), t) == 4 * e.numel()


@pytest.mark.parametrize("factor", [1.0, -0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_backward_takes_no_memory(kind: str, factor: float):
    """The gradient is where it was saved; not while the graph is retained, which needs it again."""
    e, t = leaves(2, 2, cases.LENGTH)
    value = build(kind, **ALL_ON[kind])(e, t)
    saved = value.grad_fn.saved_tensors[-1].data_ptr()
    incoming = torch.tensor(factor, dtype=value.dtype)
    (first,) = torch.autograd.grad(value, e, incoming, retain_graph=True)
    kept = first.clone()
    first.zero_()  # it is the caller's
    (last,) = torch.autograd.grad(value, e, incoming)
    assert torch.equal(last, kept)
    assert saved not in (0, first.data_ptr())
    assert saved == last.data_ptr()


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("retained", [False, True])
@pytest.mark.parametrize("kind", ["L1SNRLoss", "L1SNRDBLoss"])
def test_waveforms_are_let_go_with_the_graph(kind: str, retained: bool, backend: str):
    """Also while the loss is kept, as for a log: but not before a second derivative may come."""
    leaf = signals(2, 9)[0].requires_grad_()
    estimates, actuals = leaf * 1.0, signals(2, 9)[1]
    value = build(kind)(estimates, actuals)
    alive = [weakref.ref(estimates), weakref.ref(actuals)]
    del estimates, actuals
    gc.collect()
    assert None not in [each() for each in alive]
    torch.autograd.grad(value, leaf, retain_graph=retained)
    gc.collect()
    assert [each() is not None for each in alive] == [retained] * 2
    if retained:
        torch.autograd.grad(value, leaf, create_graph=True)
    else:
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(value, leaf)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_hooks_of_others_hold_is_theirs(kind: str):
    """As of an offloading that is still writing it to a disk."""
    held: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        held.append(x)
        return x

    e, t = leaves(2, 2, cases.LENGTH)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        value = build(kind, **ALL_ON[kind])(e, t)
    before = [x.clone() for x in held]
    torch.autograd.grad(value, e, cases.incoming(value))
    assert all(torch.equal(x, y) for x, y in zip(held, before, strict=True))
