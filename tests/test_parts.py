"""The losses inside MultiL1SNRDBLoss: injected, replaced, hooked, changed, alone."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import oracle
import pytest
import torch
from cases import LEVELLED, build, expected, signals, value_and_grad
from torch import Tensor, nn

import torch_l1snr_fast as package


def quiet(**options: Any) -> nn.Module:
    """A combined loss with an injected time loss, and nothing lost by that."""
    return build("MultiL1SNRDBLoss", use_time_regularization=False, **options)


@pytest.mark.parametrize("backend", cases.BACKENDS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: package.L2SNRLoss("t", weight=3.0, grad_scale=0.5),
        lambda: package.L1SNRLoss("t", weight=0.3, l1_weight=0.2),
        lambda: package.L1SNRDBLoss("t", weight=2.0, reg_coef=0.4),
        lambda: package.L1SNRDBLoss("t", grad_scale=4.0),
        nn.L1Loss,
        nn.MSELoss,
    ],
)
def test_time_loss_module(make: Any, backend: str):
    """Its own weight and gradient scale count; the combination's multiply them."""
    e, t = signals(2, 2, cases.LENGTH)
    time = make()
    with package.use_backend(backend):
        got = value_and_grad(
            quiet(time_loss_module=time, weight=2.0, spec_weight=0.3, grad_scale=0.1), e, t
        )
        time_value, time_grad = value_and_grad(time, e, t)
        spec_value, spec_grad = value_and_grad(build("STFTL1SNRDBLoss"), e, t)
    cases.assert_close(got[0], 2 * (0.7 * time_value + 0.3 * spec_value), 1e-12)
    cases.assert_gradient(got[1], 0.1 * 2 * (0.7 * time_grad + 0.3 * spec_grad), 1e-12)


def test_time_loss_module_reports_its_components():
    e, t = signals(2, 2, cases.LENGTH)
    _, parts = quiet(time_loss_module=package.L2SNRLoss("t"))(e, t, return_components=True)
    first = "stft_{}_{}_{}".format(*(sizes[0] for sizes in list(cases.SMALL.values())[:3]))
    assert {"time/d2", f"{first}/d1"} <= set(parts)
    cases.assert_close(parts["time/d2"], oracle.loss("L2SNRLoss", e, t)[0].mean(), 1e-10)
    _, parts = quiet(time_loss_module=nn.L1Loss())(e, t, return_components=True)
    assert not any(name.startswith("time/") for name in parts)


def test_time_loss_module_gets_the_extra_arguments_and_the_chosen_stems():
    seen: list[Any] = []

    class Spy(nn.Module):
        def forward(self, estimates: Tensor, actuals: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            seen.append((estimates.shape, args, kwargs))
            return (estimates - actuals).abs().mean()

    e, t = signals(2, 4, cases.LENGTH)
    quiet(time_loss_module=Spy(), stem_dimension=[0, 3])(e, t, 1, mask=2)
    assert seen == [((2, 2, cases.LENGTH), (1,), {"mask": 2})]


@pytest.mark.parametrize(
    ("module", "reduction"),
    [
        (nn.L1Loss(reduction="none"), "mean"),
        (nn.L1Loss(), "none"),
        (package.L1SNRLoss("t", reduction="none"), "sum"),
    ],
)
def test_time_loss_module_must_reduce_alike(module: nn.Module, reduction: str):
    """Otherwise broadcasting would make a plausible wrong number of it."""
    loss = quiet(time_loss_module=module, reduction=reduction)
    with pytest.raises(ValueError, match=f"time_loss must return.*{reduction}"):
        loss(*signals(3, cases.LENGTH))


def test_time_loss_module_per_example():
    e, t = signals(3, 2, cases.LENGTH)
    loss = quiet(time_loss_module=package.L2SNRLoss("t", reduction="none"), reduction="none")
    rows = 0.5 * oracle.loss("L2SNRLoss", e, t)[0] + 0.5 * expected("STFTL1SNRDBLoss", e, t)[0]
    cases.assert_close(loss(e, t), rows, 1e-10)


@pytest.mark.parametrize("part", ["time_loss", "spec_loss"])
def test_hooks_of_the_parts_fire(part: str):
    """Loggers hang on the sub-losses; a fused pass must not go around them."""
    e, t = signals(2, cases.LENGTH)
    loss = build("MultiL1SNRDBLoss", grad_scale=0.5)
    want = value_and_grad(loss, e, t)
    seen: list[Tensor] = []
    handle = getattr(loss, part).register_forward_hook(lambda m, x, y: seen.append(y.detach()))
    got = value_and_grad(loss, e, t)
    handle.remove()
    value_and_grad(loss, e, t)
    assert len(seen) == 1
    cases.assert_close(seen[0], getattr(loss, part)(e, t), 1e-12)
    cases.assert_close(got[0], want[0], 1e-12)
    cases.assert_gradient(got[1], want[1], 1e-12)


@pytest.mark.parametrize(
    "register",
    ["register_forward_pre_hook", "register_full_backward_hook", "register_full_backward_pre_hook"],
)
def test_other_hooks_of_the_parts_fire(register: str):
    e, t = signals(2, cases.LENGTH)
    loss = build("MultiL1SNRDBLoss")
    seen: list[Any] = []
    getattr(loss.spec_loss, register)(lambda *x: seen.append(x) and None)
    value_and_grad(loss, e, t)
    assert len(seen) == 1


def test_replaced_parts_are_used():
    """Subclasses and replacements are called as they are."""

    class Doubled(package.L1SNRDBLoss):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().forward(*args, **kwargs)

    e, t = signals(2, cases.LENGTH)
    loss = build("MultiL1SNRDBLoss", spec_weight=0.0)
    want = loss(e, t)
    loss.time_loss = Doubled("time")
    cases.assert_close(loss(e, t), 2 * want, 1e-12)


def test_parts_that_change_later_are_followed():
    """Attributes of the sub-losses are settings too, as in torch-l1-snr."""
    e, t = signals(2, cases.LENGTH)
    loss = build("MultiL1SNRDBLoss")
    loss.time_loss.weight, loss.spec_loss.weight = 3.0, 0.25
    want = build(
        "MultiL1SNRDBLoss", time_loss_params={"weight": 3.0}, spec_loss_params={"weight": 0.25}
    )
    assert torch.equal(loss(e, t), want(e, t))


def test_parts_computed_alone_are_those_of_the_whole():
    e, t = signals(2, 2, cases.LENGTH)
    loss = build("MultiL1SNRDBLoss", spec_weight=0.3, weight=2.0, **LEVELLED["MultiL1SNRDBLoss"])
    (value, gradient), time, spec = (
        value_and_grad(x, e, t) for x in (loss, loss.time_loss, loss.spec_loss)
    )
    cases.assert_close(value, 2 * (0.7 * time[0] + 0.3 * spec[0]), 1e-12)
    cases.assert_gradient(gradient, 2 * (0.7 * time[1] + 0.3 * spec[1]), 1e-12)


@pytest.mark.parametrize("parts", [{"reduction": "sum"}, {"reduction": "none"}], ids=str)
def test_part_with_another_reduction_of_its_own(parts: dict[str, str]):
    loss = build("MultiL1SNRDBLoss", time_loss_params=parts)
    e, t = signals(3, cases.LENGTH)
    if parts["reduction"] == "none":
        with pytest.raises(ValueError, match="time_loss must return"):
            loss(e, t)
    else:
        rows = (
            oracle.loss("L1SNRDBLoss", e, t)[0].sum(),
            expected("STFTL1SNRDBLoss", e, t)[0].mean(),
        )
        cases.assert_close(loss(e, t), np.mean(rows), 1e-10)
