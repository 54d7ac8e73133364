"""Gradients: by finite differences, of second order, forward mode, repeated, batched, saved."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from cases import KINDS, SPECTRAL, WAVEFORM, build, signals, value_and_grad
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

import torch_l1snr_fast as package
from torch_l1snr_fast.kernels.eager import few, waveform
from torch_l1snr_fast.kernels.plan import PARTS

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
# Windows of hann start at 0; with hamming every sample of every frame counts.
ALL_ON = {
    "L1SNRLoss": {"l1_weight": 0.3},
    "L2SNRLoss": {},
    "L1SNRDBLoss": {"l1_weight": 0.3},
    "STFTL1SNRDBLoss": {"l1_weight": 0.3, "use_regularization": True, "window_fn": "hamming"},
    "MultiL1SNRDBLoss": {"l1_weight": 0.3, "use_spec_regularization": True, "window_fn": "hamming"},
}


def tiny(kind: str, **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return build(kind, **((TINY if kind in SPECTRAL else {}) | options))


def leaves(*shape: int, target: bool = False, seed: int = 3) -> tuple[Tensor, Tensor]:
    e, t = signals(*shape, seed=seed)
    return e.requires_grad_(), t.requires_grad_(target)


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


# Memory that is written between forward and backward


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
# Without level matching, which needs the estimates.
LEVELLESS = {kind: options | {"use_regularization": False} for kind, options in ALL_ON.items()}
LEVELLESS["MultiL1SNRDBLoss"] |= {
    "use_time_regularization": False,
    "use_spec_regularization": False,
}
for _kind in ("L1SNRLoss", "L2SNRLoss", "MultiL1SNRDBLoss"):
    del LEVELLESS[_kind]["use_regularization"]


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
@pytest.mark.parametrize(
    ("kind", "options", "side"),
    [(kind, ALL_ON[kind], "actuals") for kind in KINDS]
    + [(kind, LEVELLESS[kind], side) for kind in KINDS for side in ("estimates", "actuals")],
)
def test_memory_written_before_backward(
    kind: str, options: dict[str, Any], side: str, write: Callable[[Tensor], None]
):
    """Backward is of the samples that the loss was given; also the second time."""
    e, t = signals(2, 2, cases.LENGTH)
    leaf, value, incoming = written(build(kind, **options), e, t, write, side)
    first = torch.autograd.grad(value, leaf, incoming, retain_graph=True)[0]
    assert_unmoved(kind, options, e, t, first)
    assert torch.equal(torch.autograd.grad(value, leaf, incoming)[0], first)


@pytest.mark.parametrize("kind", KINDS)
def test_sanitized_samples_written_before_backward(kind: str):
    e, t = cases.spoiled(cases.BAD["nan in both"])
    loss = build(kind, **LEVELLESS[kind])
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


@pytest.mark.parametrize("kind", ["L1SNRDBLoss", *SPECTRAL])
def test_estimates_written_though_levels_need_them(kind: str):
    """As in torch-l1-snr, autograd says so."""
    leaf, value, incoming = written(
        build(kind, **ALL_ON[kind]), *signals(2, 2, cases.LENGTH), in_place, "estimates"
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
    leaf, value, incoming = written(build(kind, **LEVELLESS[kind]), e, t, write, side)
    with pytest.raises(RuntimeError, match=r"create_graph=True.*\.clone\(\)"):
        torch.autograd.grad(value, leaf, incoming, create_graph=True)
    assert_unmoved(kind, LEVELLESS[kind], e, t, torch.autograd.grad(value, leaf, incoming)[0])


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

SIZES = [
    # n_fft, hop, win_length
    (64, 16, 64), (64, 64, 64), (64, 1, 64), (64, 16, 40), (64, 16, 1), (64, 20, 33),
    (63, 16, 63), (37, 11, 37), (37, 11, 20), (31, 31, 31), (13, 1, 13), (50, 7, 50),
    (24, 50, 24), (24, 25, 10), (37, 90, 37), (2, 1, 2), (3, 1, 3), (1, 1, 1), (1, 3, 1), (4, 3, 2),
    (100, 25, 100), (97, 13, 80),
]  # fmt: skip


def compare_backends(loss: Any, e: Tensor, t: Tensor, value: float, gradient: float) -> None:
    with package.use_backend("reference"):
        want = value_and_grad(loss, e.double(), t.double())
    with package.use_backend("eager"):
        got = value_and_grad(loss, e, t)
    cases.assert_close(got[0], want[0], value)
    cases.assert_gradient(got[1], want[1], gradient)


@pytest.mark.parametrize("length", [101, 128])
@pytest.mark.parametrize("level", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_backends_agree_on_every_kind_of_frame(
    sizes: tuple[int, int, int], level: bool, length: int
):
    """Odd, prime and tiny transforms; hops that divide nothing or leave gaps; short windows."""
    options = dict(zip(cases.SMALL, ([n] for n in sizes), strict=False)) | {"min_audio_length": 1}
    loss = build("STFTL1SNRDBLoss", use_regularization=level, l1_weight=0.2, **options)
    compare_backends(loss, *signals(2, 2, length), 1e-11, 1e-10)


@pytest.mark.parametrize("extra", [0, 1, 2, 15, 16, 17])
@pytest.mark.parametrize("n_fft", [32, 33])
def test_backends_agree_just_above_the_shortest_audio(n_fft: int, extra: int):
    """There the reflected borders reach over the whole signal."""
    options = {"n_ffts": [n_fft], "hop_lengths": [5], "win_lengths": [n_fft], "min_audio_length": 1}
    loss = build("STFTL1SNRDBLoss", use_regularization=True, **options)
    compare_backends(loss, *signals(2, n_fft // 2 + 1 + extra), 1e-11, 1e-10)


@pytest.mark.parametrize("window", ["hann", "hamming", "blackman", "bartlett", "kaiser"])
@pytest.mark.parametrize("n_fft", [64, 37])
def test_backends_agree_on_every_window(window: str, n_fft: int):
    options = {"n_ffts": [n_fft], "hop_lengths": [10], "win_lengths": [n_fft - 4]}
    loss = build("STFTL1SNRDBLoss", use_regularization=True, window_fn=window, **options)
    compare_backends(loss, *signals(2, 2, 200), 1e-11, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *cases.HALVES], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree_in_every_dtype(kind: str, dtype: torch.dtype):
    """Against the reference in float64 on the same samples."""
    e, t = signals(2, 2, cases.LENGTH, dtype=dtype)
    exact = dtype == torch.float64
    bound = 1e-11 if exact else cases.float32_bound(kind, e, t, **ALL_ON[kind])
    unit = torch.finfo(dtype).eps / 2
    compare_backends(build(kind, **ALL_ON[kind]), e, t, bound, 1e-10 if exact else unit + 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, *cases.HALVES], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_reference_gradient_has_the_estimates_dtype(kind: str, dtype: torch.dtype):
    e, t = signals(2, 2, cases.LENGTH, dtype=dtype)
    with package.use_backend("reference"):
        got = value_and_grad(build(kind, **ALL_ON[kind]), e, t)
        want = value_and_grad(build(kind, **ALL_ON[kind]), e.double(), t.double())
    assert got[0].dtype == torch.float32
    assert got[1].dtype == dtype
    cases.assert_gradient(got[1], want[1], torch.finfo(dtype).eps / 2 + 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree_on_long_audio(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Split into blocks, so that block borders are passed in both domains."""
    monkeypatch.setattr(waveform, "BLOCK", 1 << 16)
    e, t = signals(1, 2, 200001, dtype=torch.float32)
    bound = 2 * cases.float32_bound(kind, e, t, **ALL_ON[kind])
    compare_backends(build(kind, **ALL_ON[kind]), e, t, bound, 1e-3)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_as_many(kind: str, reduction: str, monkeypatch: pytest.MonkeyPatch):
    """Python's numbers or tensors: the same loss, gradient and components; infinite ones too."""
    e, t = signals(3, 2, cases.LENGTH)
    options = ALL_ON[kind] | {"reduction": reduction}
    silent = {"L1SNRLoss": {"eps": 0.0}, "L2SNRLoss": {"tau": 0.0}}.get(kind, {})
    for estimates, settings in ((0.3 * e, options), (t, options | silent)):
        loss = build(kind, **settings)
        found = []
        for rows in (32, 0):
            monkeypatch.setattr(few, "ROWS", rows)
            _, components = loss(estimates, t, return_components=True)
            found.append((*value_and_grad(loss, estimates, t), *components.values()))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("rows", [1, 7, 700])
def test_backends_agree_on_many_signals(rows: int):
    """Enough of them to be handled in groups."""
    loss = build("MultiL1SNRDBLoss", use_spec_regularization=True)
    compare_backends(loss, *signals(rows, 3, 90), 1e-11, 1e-10)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads: int):
    """Of which each sums frames of its own; some are left over."""
    before = torch.get_num_threads()
    loss = build("MultiL1SNRDBLoss", use_spec_regularization=True)
    torch.set_num_threads(threads)
    try:
        compare_backends(loss, *signals(1, 1, 90007), 1e-11, 1e-10)
    finally:
        torch.set_num_threads(before)
