"""Gradients: by finite differences, of second order, forward mode, repeated, batched, saved."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from cases import ALL_ON, KINDS, SPECTRAL, build, leaves, signals, value_and_grad
from torch import Tensor

import torch_l1snr_fast as package

TINY = {"n_ffts": [8, 7], "hop_lengths": [4, 3], "win_lengths": [8, 5], "min_audio_length": 5}
# delta_lambda = 0: lambda is detached, which finite differences cannot know.
SMOOTH: dict[str, list[dict[str, Any]]] = {
    "L1SNRLoss": [{}, {"l1_weight": 0.3}, {"l1_weight": 1.0}],
    "L2SNRLoss": [{}, {"tau": 0.0}],
    "L1SNRDBLoss": [
        {"delta_lambda": 0.0},
        {"delta_lambda": 0.0, "l1_weight": 0.3},
        {"l1_weight": 1.0},
    ],
    "STFTL1SNRDBLoss": [
        {},
        {"use_regularization": True, "delta_lambda": 0.0, "l1_weight": 0.3, "spec_reg_coef": 2.0},
        {"l1_weight": 1.0},
    ],
    "MultiL1SNRDBLoss": [
        {"use_spec_regularization": True, "delta_lambda": 0.0},
        {
            "use_spec_regularization": True,
            "delta_lambda": 0.0,
            "l1_weight": 0.3,
            "stem_dimension": 1,
        },
    ],
}
EVERY = [
    pytest.param(kind, options, id=f"{kind}-{options}")
    for kind, several in SMOOTH.items()
    for options in several
]


def tiny(kind: str, **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return build(kind, **((TINY if kind in SPECTRAL else {}) | options))


# Finite differences


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("kind", "options"), EVERY)
def test_gradcheck(kind: str, options: dict[str, Any], reduction: str):
    """The hand-written backward, every element of it."""
    loss = tiny(kind, reduction=reduction, **options)
    e, t = leaves(2, 2, 9)
    assert torch.autograd.gradcheck(lambda e: loss(e, t), (e,))


@pytest.mark.parametrize(("kind", "options"), EVERY)
def test_gradcheck_of_target_and_forward_mode(kind: str, options: dict[str, Any]):
    loss = tiny(kind, reduction="none", **options)
    tensors = leaves(2, 2, 9, target=True)
    assert torch.autograd.gradcheck(loss, tensors, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize(("kind", "options"), EVERY)
def test_gradgradcheck(kind: str, options: dict[str, Any]):
    """create_graph: the gradient is differentiable, in the estimates and in what comes in."""
    loss = tiny(kind, reduction="none", weight=2.5, **options)
    e, t = leaves(2, 2, 9)
    assert torch.autograd.gradgradcheck(lambda e: loss(e, t), (e,), fast_mode=True)
    tensors = leaves(2, 2, 9, target=True)
    assert torch.autograd.gradgradcheck(loss, tensors, fast_mode=True)


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("sides", [(1.0, 1e-3), (1e-3, 1.0)], ids=["too loud", "too quiet"])
def test_lambda_is_detached(sides: tuple[float, float], backend: str):
    """The gradient is that of lambda taken as a number: measured, then put in as lambda0."""
    e, t = signals(1, 2, cases.LENGTH)
    e, t = e * sides[0], t * sides[1]
    for kind, name in (("L1SNRDBLoss", "time"), ("STFTL1SNRDBLoss", "stft_64_16_64")):
        one = {k: v[:1] for k, v in list(cases.SMALL.items())[:3]} if kind in SPECTRAL else {}
        options = one | {"use_regularization": True}
        loss = build(kind, **options)
        _, parts = loss(e, t, return_components=True)
        lam = float(parts[f"{name}/lambda"])
        assert (lam > 0.1) == (sides[0] < sides[1])
        with package.use_backend(backend):
            got = value_and_grad(loss, e, t)
            want = value_and_grad(build(kind, lambda0=lam, delta_lambda=0.0, **options), e, t)
        cases.assert_close(got[0], want[0], 1e-12)
        cases.assert_gradient(got[1], want[1], 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_grad_scale_holds_for_every_order_and_mode(kind: str):
    """create_graph, target gradients and forward mode know grad_scale as backward does."""
    loss, scaled = tiny(kind, **ALL_ON[kind]), tiny(kind, grad_scale=0.3, **ALL_ON[kind])
    e, t = leaves(1, 2, 13, target=True)
    for tensors in ((e,), (e, t)):
        target = t if len(tensors) == 2 else t.detach()
        plain, third = (
            torch.autograd.grad(x(e, target), tensors, create_graph=True) for x in (loss, scaled)
        )
        for a, b in zip(plain, third, strict=True):
            cases.assert_gradient(b, 0.3 * a, 1e-12)
        direction = torch.randn_like(e)
        second = [torch.autograd.grad((x[0] * direction).sum(), e)[0] for x in (plain, third)]
        cases.assert_gradient(second[1], 0.3 * second[0], 1e-12)
    tangents = [
        torch.func.jvp(lambda e, x=x: x(e, t.detach()), (e.detach(),), (direction,))[1]
        for x in (loss, scaled)
    ]
    cases.assert_close(tangents[1], 0.3 * tangents[0], 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_create_graph_gives_the_same_first_gradient(kind: str):
    e, t = leaves(2, 2, cases.LENGTH)
    loss = build(kind, **ALL_ON[kind])
    (plain,) = torch.autograd.grad(loss(e, t), e)
    (graph,) = torch.autograd.grad(loss(e, t), e, create_graph=True)
    assert graph.requires_grad
    cases.assert_gradient(plain, graph, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_target_gradient(kind: str):
    """A teacher that learns: its gradient is right, and the estimates' is what it always was."""
    e, t = leaves(2, 2, cases.LENGTH, target=True)
    loss = build(kind, **ALL_ON[kind])
    alone = torch.autograd.grad(loss(e, t.detach()), e)[0]
    both = torch.autograd.grad(loss(e, t), (e, t))
    only = torch.autograd.grad(loss(e.detach(), t), t)[0]
    cases.assert_gradient(both[0], alone, 1e-10)
    assert both[1].abs().sum() > 0
    cases.assert_gradient(only, both[1], 1e-12)


# torch.func


@pytest.mark.parametrize("kind", KINDS)
def test_func_grad_and_jvp(kind: str):
    e, t = signals(2, 2, cases.LENGTH)
    loss = build(kind, **ALL_ON[kind])
    leaf = e.clone().requires_grad_()
    value = loss(leaf, t)
    (want,) = torch.autograd.grad(value, leaf)
    gradient, same = torch.func.grad_and_value(lambda e: loss(e, t))(e)
    cases.assert_gradient(gradient, want, 1e-10)
    cases.assert_close(same, value, 1e-12)
    direction = torch.randn_like(e)
    primal, tangent = torch.func.jvp(lambda e: loss(e, t), (e,), (direction,))
    cases.assert_close(primal, value, 1e-12)
    cases.assert_close(
        tangent, (want * direction).sum(), 1e-9 * float(want.norm() * direction.norm())
    )


@pytest.mark.parametrize("kind", KINDS)
def test_func_vmap(kind: str):
    """vmap over candidates, also of the gradient: each as if computed alone."""
    e, t = signals(3, 2, 2, 60)
    loss = build(kind, **ALL_ON[kind])
    want = [value_and_grad_of(loss, e[i], t[i]) for i in range(3)]
    cases.assert_close(torch.func.vmap(loss)(e, t), torch.stack([w[0] for w in want]), 1e-12)
    gradients = torch.func.vmap(torch.func.grad(loss))(e, t)
    cases.assert_gradient(gradients, torch.stack([w[1] for w in want]), 1e-10)


def value_and_grad_of(loss: Any, e: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    leaf = e.detach().clone().requires_grad_()
    value = loss(leaf, t)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_jacobian_in_one_batched_backward(kind: str):
    """is_grads_batched runs vmap over the backward."""
    e, t = leaves(3, 2, 60)
    value = build(kind, reduction="none", **ALL_ON[kind])(e, t)
    (batched,) = torch.autograd.grad(
        value, e, torch.eye(3), is_grads_batched=True, retain_graph=True
    )
    looped = torch.stack(
        [torch.autograd.grad(value, e, row, retain_graph=True)[0] for row in torch.eye(3)]
    )
    cases.assert_gradient(batched, looped, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode(kind: str):
    e, t = signals(2, 2, cases.LENGTH)
    loss = build(kind, **ALL_ON[kind])
    _, want = value_and_grad_of(loss, e, t)
    direction = torch.randn_like(e)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(e, direction)
        tangent = torch.autograd.forward_ad.unpack_dual(loss(dual, t)).tangent
    assert tangent is not None
    cases.assert_close(
        tangent, (want * direction).sum(), 1e-9 * float(want.norm() * direction.norm())
    )


# Repeated, strided and missing gradients


@pytest.mark.parametrize("kind", KINDS)
def test_backward_twice(kind: str):
    """retain_graph: the second gradient is the first, to the bit."""
    e, t = leaves(2, 2, cases.LENGTH)
    value = build(kind, **ALL_ON[kind])(e, t)
    first, second = (
        torch.autograd.grad(value, e, cases.incoming(value), retain_graph=True)[0] for _ in range(2)
    )
    assert torch.equal(first, second)
    (third,) = torch.autograd.grad(value, e, 2 * cases.incoming(value))
    assert torch.equal(third, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, e)


@pytest.mark.parametrize("kind", KINDS)
def test_incoming_gradient_of_stride_zero(kind: str):
    """As an expand makes it, against the same numbers laid out."""
    e, t = leaves(3, 2, cases.LENGTH)
    loss = build(kind, reduction="none", **ALL_ON[kind])
    one = torch.tensor(-0.3, dtype=torch.float64)
    (got,) = torch.autograd.grad(loss(e, t), e, one.expand(3))
    (want,) = torch.autograd.grad(loss(e, t), e, one.repeat(3))
    assert torch.equal(got, want)
    alone = torch.autograd.grad(loss(e, t), e, torch.tensor([-0.3, 0.0, 0.0], dtype=torch.float64))[
        0
    ]
    assert torch.equal(alone[0], want[0])
    assert not alone[1:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_loss_that_does_not_count(kind: str):
    """Unused, or multiplied by zero: gradient zero or none, and no error."""
    e, t = leaves(2, cases.LENGTH)
    loss = build(kind)
    other = (e**2).mean()
    loss(e, t)
    (gradient,) = torch.autograd.grad(other, e)
    (same,) = torch.autograd.grad((e**2).mean() + 0.0 * loss(e, t), e)
    assert torch.equal(gradient, same)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_in_between(kind: str):
    """Forward, forwards of other sizes, then backward in any order: nothing is overwritten."""
    pairs = [signals(*shape, seed=i) for i, shape in enumerate([(2, 2, 301), (1, 80), (3, 1, 150)])]
    loss = build(kind, **ALL_ON[kind])
    alone = [value_and_grad(loss, e, t) for e, t in pairs]
    inputs = [e.clone().requires_grad_() for e, _ in pairs]
    values = [loss(e, t) for e, (_, t) in zip(inputs, pairs, strict=True)]
    for i in (1, 2, 0):
        values[i].backward(cases.incoming(values[i]))
    for e, value, (want, gradient) in zip(inputs, values, alone, strict=True):
        assert torch.equal(value, want)
        assert torch.equal(e.grad, gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_another_call_stays(kind: str):
    """A gradient handed out is the caller's: the next call does not write into it."""
    loss = build(kind, **ALL_ON[kind])
    _, first = value_and_grad(loss, *signals(2, 2, cases.LENGTH))
    kept = first.clone()
    value_and_grad(loss, *signals(2, 2, cases.LENGTH, seed=1))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_threads(kind: str):
    """Two trainers in one process: each gets what it would get alone."""
    loss = build(kind, **ALL_ON[kind])
    pairs = [signals(2, 2, 200 + 50 * i, seed=i) for i in range(2)]
    alone = [value_and_grad(loss, *pair) for pair in pairs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            got = value_and_grad(loss, *pairs[i])
            if not all(torch.equal(a, b) for a, b in zip(got, alone[i], strict=True)):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_every_time(kind: str):
    e, t = signals(2, 2, cases.LENGTH, dtype=torch.float32)
    loss = build(kind, **ALL_ON[kind])
    first = value_and_grad(loss, e, t)
    for _ in range(3):
        assert all(
            torch.equal(a, b) for a, b in zip(first, value_and_grad(loss, e, t), strict=True)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing(kind: str):
    """Recomputation and other autograd machinery around the loss."""
    e, t = leaves(2, cases.LENGTH)
    loss = build(kind)
    (want,) = torch.autograd.grad(loss(e * 2, t), e)
    value = torch.utils.checkpoint.checkpoint(lambda x: loss(x * 2, t), e, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(value, e)[0], want)
