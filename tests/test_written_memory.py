"""Estimates and targets that are written between forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from cases import ALL_ON, KINDS, build, signals, value_and_grad
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

import torch_l1snr_fast as package


def through_numpy(x: Tensor) -> None:
    """Which PyTorch cannot see."""
    array = x.numpy()
    array *= -0.5


def in_place(x: Tensor) -> None:
    x.mul_(-0.5)


def refilled(x: Tensor) -> None:
    """A static buffer that a loader fills with the next batch."""
    x.copy_(torch.randn_like(x))


WRITES = [through_numpy, in_place, refilled]


def written(
    loss: Any, e: Tensor, t: Tensor, write: Callable[[Tensor], None], side: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Leaf and loss for tensors of the loss's own, one of which is written once it is known."""
    leaf = e.clone().requires_grad_()
    estimates, actuals = leaf * 1, t.clone()
    value = loss(estimates, actuals)
    with torch.no_grad():
        write({"estimates": estimates.detach(), "actuals": actuals}[side])
    return leaf, value, cases.incoming(value)


def assert_unmoved(kind: str, options: dict[str, Any], e: Tensor, t: Tensor, got: Tensor) -> None:
    """The gradient of the samples that the loss was given, by the definition and torch-l1-snr."""
    with package.use_backend("reference"):
        _, want = value_and_grad(build(kind, **options), e, t)
    cases.assert_gradient(got, want, 1e-10)
    if cases.upstream is not None:
        _, want = value_and_grad(build(kind, cases.upstream, **options), e, t)
        cases.assert_gradient(got, want, 1e-8)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("side", ["estimates", "actuals"])
@pytest.mark.parametrize("kind", KINDS)
def test_memory_written_before_backward(kind: str, side: str, write: Callable[[Tensor], None]):
    """Backward is of the samples that the loss was given; also the second time."""
    e, t = signals(2, 2, cases.LENGTH)
    leaf, value, incoming = written(build(kind, **ALL_ON[kind]), e, t, write, side)
    first = torch.autograd.grad(value, leaf, incoming, retain_graph=True)[0]
    assert_unmoved(kind, ALL_ON[kind], e, t, first)
    assert torch.equal(torch.autograd.grad(value, leaf, incoming)[0], first)


@pytest.mark.parametrize("kind", KINDS)
def test_sanitized_samples_written_before_backward(kind: str):
    e, t = cases.spoiled(cases.BAD["nan in both"])
    loss = build(kind, **ALL_ON[kind])
    with cases.recorded():
        want = value_and_grad(loss, e, t)[1]
    for side in ("estimates", "actuals"):
        leaf, value, incoming = written(loss, e, t, refilled, side)
        (got,) = torch.autograd.grad(value, leaf, incoming)
        assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0))


@pytest.mark.parametrize("hooks", [torch.autograd.graph.save_on_cpu, None])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", KINDS)
def test_memory_written_under_the_hooks_of_others(
    kind: str, write: Callable[[Tensor], None], hooks: Any
):
    """Offloading, and hooks that keep what they are given, which are then in charge of versions."""
    e, t = signals(2, 2, cases.LENGTH)
    with hooks() if hooks else torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        leaf, value, incoming = written(build(kind, **ALL_ON[kind]), e, t, write, "actuals")
    assert_unmoved(kind, ALL_ON[kind], e, t, torch.autograd.grad(value, leaf, incoming)[0])


@pytest.mark.parametrize("backend", ["triton"])
def test_estimates_written_though_levels_need_them(backend: str):
    """Where backward reads them for that, autograd says so, as with torch-l1-snr."""
    leaf, value, incoming = written(
        build("L1SNRDBLoss"), *signals(2, 2, cases.LENGTH), in_place, "estimates"
    )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, leaf, incoming)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("side", ["estimates", "actuals"])
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_of_written_memory_raise(
    kind: str, side: str, write: Callable[[Tensor], None]
):
    """They alone read it again, and must not be those of other samples."""
    e, t = signals(2, 2, cases.LENGTH)
    leaf, value, incoming = written(build(kind, **ALL_ON[kind]), e, t, write, side)
    with pytest.raises(RuntimeError, match=r"create_graph=True.*\.clone\(\)"):
        torch.autograd.grad(value, leaf, incoming, create_graph=True)
    assert_unmoved(kind, ALL_ON[kind], e, t, torch.autograd.grad(value, leaf, incoming)[0])


@pytest.mark.parametrize("side", ["estimates", "actuals"])
def test_second_derivatives_of_memory_that_may_be_other_raise(side: str):
    """Though the loss is the same; PyTorch's own are as strict."""
    loss = build("L1SNRLoss")
    leaf, value, incoming = written(loss, *signals(2, 9), lambda x: x.mul_(1.0), side)
    with pytest.raises(RuntimeError, match=r"create_graph=True.*\.clone\(\)"):
        torch.autograd.grad(value, leaf, incoming, create_graph=True)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", KINDS)
def test_inference_targets_written_before_backward(kind: str, write: Callable[[Tensor], None]):
    e, t = signals(2, 2, cases.LENGTH)
    with torch.inference_mode():
        made = t.clone()
    leaf = e.clone().requires_grad_()
    value = build(kind, **ALL_ON[kind])(leaf, made)
    with torch.inference_mode():
        write(made)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(value, leaf, cases.incoming(value), create_graph=True)
    got = torch.autograd.grad(value, leaf, cases.incoming(value))[0]
    assert_unmoved(kind, ALL_ON[kind], e, t, got)


@pytest.mark.parametrize("kind", KINDS)
def test_components_may_be_written(kind: str):
    """They are the caller's."""
    e, t = signals(2, 2, cases.LENGTH)
    loss = build(kind, reduction="none", **ALL_ON[kind])
    leaf = e.clone().requires_grad_()
    value, components = loss(leaf, t, return_components=True)
    for x in components.values():
        x.zero_()
    got = torch.autograd.grad(value, leaf, cases.incoming(value))[0]
    assert torch.equal(got, value_and_grad(loss, e, t)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_held_after_backward(kind: str):
    """Though the loss lives on: what was kept for a second derivative is gone."""
    leaf = signals(2, 2, cases.LENGTH)[0].requires_grad_()
    estimates, actuals = leaf * 1, leaf.detach() * 0.9
    storages = [StorageWeakRef(x.untyped_storage()) for x in (estimates, actuals)]
    value = build(kind, **ALL_ON[kind])(estimates, actuals)
    del estimates, actuals
    assert not any(x.expired() for x in storages)
    value.backward(cases.incoming(value))
    assert all(x.expired() for x in storages)
