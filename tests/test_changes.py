"""What is changed after a loss was built takes effect, as in torch-l1-snr, or raises."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from cases import build, needs_upstream, signals, upstream, value_and_grad
from torch import Tensor, nn

import torch_l1snr_fast as package


def pair_of(kind: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    return build(kind, **options), build(kind, upstream, **options)


def halved(*arguments: Any) -> Tensor:
    """A weight of the level matching that is not the built-in one."""
    return 0.5 + 0 * arguments[0].detach()


def set_eps(loss: Any) -> None:
    loss.l1snr_loss.eps = 0.1


def set_inner_weight(loss: Any) -> None:
    loss.l1snr_loss.weight = 3.0


def set_inner_grad_scale(loss: Any) -> None:
    loss.l1snr_loss.grad_scale = 0.25


def set_inner_ref_level(loss: Any) -> None:
    loss.l1snr_loss.ref_level = 0.5


def replace_inner(loss: Any) -> None:
    loss.l1snr_loss = nn.MSELoss()


def override_weight(loss: Any) -> None:
    loss.compute_adaptive_weight = halved


def walk_over_modules(loss: Any) -> None:
    for module in loss.modules():
        if type(module).__name__ == "L1SNRLoss":
            module.eps = 0.1


CHANGES = [
    set_eps,
    set_inner_weight,
    set_inner_grad_scale,
    set_inner_ref_level,
    replace_inner,
    override_weight,
    walk_over_modules,
]
HOLDERS: dict[str, tuple[str, dict[str, Any], Callable[[Any], Any]]] = {
    "alone": ("L1SNRDBLoss", {}, lambda x: x),
    "part": ("MultiL1SNRDBLoss", {"spec_weight": 0.4}, lambda x: x.time_loss),
    "fallback": (
        "STFTL1SNRDBLoss",
        {"min_audio_length": 400, "use_regularization": True},
        lambda x: x.fallback_time_loss,
    ),
    "fallback of a part": (
        "MultiL1SNRDBLoss",
        {"min_audio_length": 400, "use_spec_regularization": True},
        lambda x: x.spec_loss.fallback_time_loss,
    ),
}


@needs_upstream
@pytest.mark.filterwarnings("ignore:.*falling back:RuntimeWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_changes_of_the_waveform_loss_are_followed(
    holder: tuple[str, dict[str, Any], Callable[[Any], Any]], change: Callable[[Any], None]
):
    kind, options, where = holder
    e, t = signals(2, 2, cases.LENGTH)
    ours, theirs = pair_of(kind, l1_weight=0.3, **options)
    before = value_and_grad(ours, e, t)
    for loss in (ours, theirs):
        change(where(loss))
    got, want = value_and_grad(ours, e, t), value_and_grad(theirs, e, t)
    cases.assert_close(got[0], want[0], 1e-10)
    cases.assert_gradient(got[1], want[1], 1e-8)
    assert not torch.equal(got[1], before[1])
    again = value_and_grad(copy.deepcopy(ours), e, t)
    assert torch.equal(again[1], got[1])


@needs_upstream
def test_a_replaced_l1_loss_is_used():
    e, t = signals(2, 2, cases.LENGTH)
    ours, theirs = pair_of("L1SNRDBLoss", l1_weight=1.0, weight=2.0, grad_scale=0.5)
    for loss in (ours, theirs):
        loss.l1_loss = nn.SmoothL1Loss(beta=0.1)
    got, want = value_and_grad(ours, e, t), value_and_grad(theirs, e, t)
    cases.assert_close(got[0], want[0], 1e-12)
    cases.assert_gradient(got[1], want[1], 1e-10)


@needs_upstream
@pytest.mark.filterwarnings("ignore:.*falling back:RuntimeWarning")
@pytest.mark.parametrize("kind", ["STFTL1SNRDBLoss", "MultiL1SNRDBLoss"])
def test_a_replaced_fallback_is_used(kind: str):
    """Of repaired samples, as the loss that it replaces."""
    e, t = signals(2, 2, 30)
    e[0, 0, 3] = torch.nan
    ours, theirs = pair_of(kind, min_audio_length=40, weight=2.0, grad_scale=0.5)
    for loss in (ours, theirs):
        (loss if kind == "STFTL1SNRDBLoss" else loss.spec_loss).fallback_time_loss = nn.MSELoss()
        if kind == "MultiL1SNRDBLoss":
            loss.time_loss = nn.L1Loss()
    with pytest.warns(RuntimeWarning, match="non-finite"):
        got = value_and_grad(ours, e, t)
    with pytest.warns(RuntimeWarning, match="non-finite"):
        want = value_and_grad(theirs, e, t)
    torch.testing.assert_close(got[0], want[0], equal_nan=True)
    torch.testing.assert_close(got[1], want[1], equal_nan=True)


@needs_upstream
def test_a_subclass_that_weighs_levels_its_own_way():
    e, t = signals(2, 2, cases.LENGTH)
    results = []
    for module in (package, upstream):

        class Own(module.L1SNRDBLoss):  # type: ignore[name-defined]
            compute_adaptive_weight = staticmethod(halved)

        results.append(value_and_grad(Own("x", reg_coef=0.7, weight=2.0), e, t))
        assert not torch.equal(results[-1][1], value_and_grad(build("L1SNRDBLoss"), e, t)[1])
    (got, want) = results
    cases.assert_close(got[0], want[0], 1e-10)
    cases.assert_gradient(got[1], want[1], 1e-8)


def test_components_of_what_is_computed_in_parts():
    e, t = signals(2, 2, cases.LENGTH)
    want = build("L1SNRDBLoss", l1_weight=0.3)(e, t, return_components=True)
    loss = build("L1SNRDBLoss", l1_weight=0.3)
    loss.compute_adaptive_weight = lambda *x: package.L1SNRDBLoss.compute_adaptive_weight(*x)
    got = loss(e, t, return_components=True)
    cases.assert_close(got[0], want[0], 1e-12)
    assert got[1].keys() == want[1].keys()
    for name, value in want[1].items():
        cases.assert_close(got[1][name], value, 1e-12)


@pytest.mark.parametrize("kind", ["STFTL1SNRDBLoss", "MultiL1SNRDBLoss"])
def test_weighing_levels_of_spectra_another_way_raises(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(package.L1SNRDBLoss, "compute_adaptive_weight", staticmethod(halved))
    option = "use_regularization" if kind == "STFTL1SNRDBLoss" else "use_spec_regularization"
    with pytest.raises(RuntimeError, match=r"compute_adaptive_weight.*spectra.*time_loss_module"):
        build(kind, **{option: True})(*signals(2, cases.LENGTH))
    build(kind, **{option: False})(*signals(2, cases.LENGTH))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("MultiL1SNRDBLoss", "lambda0", 0.7),
        ("MultiL1SNRDBLoss", "ref_level", 0.4),
        ("MultiL1SNRDBLoss", "spec_ref_level", 0.4),
        ("MultiL1SNRDBLoss", "use_time_regularization", False),
        ("MultiL1SNRDBLoss", "use_spec_regularization", False),
        ("MultiL1SNRDBLoss", "window_fn", "hamming"),
        ("MultiL1SNRDBLoss", "n_ffts", [100, 90, 80]),
        ("STFTL1SNRDBLoss", "window_fn_name", "hamming"),
        ("L1SNRDBLoss", "l1snr_eps", 0.1),
        ("L1SNRDBLoss", "ref_level", 0.4),
    ],
)
def test_settings_reach_the_parts(kind: str, name: str, value: Any):
    """Also where torch-l1-snr keeps what it was built with, and whether or not they were seen."""
    options = {"l1_weight": 0.3}
    if kind == "MultiL1SNRDBLoss":
        options |= {"use_spec_regularization": True}
    e, t = signals(2, cases.LENGTH)
    want = build(kind, **options | {name.removesuffix("_name"): value})(e, t)
    for seen in (False, True):
        loss = build(kind, **options)
        before = loss(e, t)
        if seen:
            list(loss.modules())
        setattr(loss, name, value)
        assert torch.equal(loss(e, t), want)
        assert not torch.equal(want, before)


@pytest.mark.parametrize(
    ("kind", "name", "value", "remedy"),
    [
        ("STFTL1SNRDBLoss", "pure_l1_mode", True, "Build a new loss"),
        ("MultiL1SNRDBLoss", "pure_l1_mode", True, "Build a new loss"),
        ("STFTL1SNRDBLoss", "l1_loss", nn.MSELoss(), "time_loss_module"),
        ("STFTL1SNRDBLoss", "spectrogram_transforms", nn.ModuleList(), "n_ffts"),
    ],
)
def test_what_cannot_be_followed_raises(kind: str, name: str, value: Any, remedy: str):
    with pytest.raises(AttributeError, match=f"{name}.*{remedy}"):
        setattr(build(kind), name, value)


@pytest.mark.parametrize(
    "name",
    ["_compute_complex_spec_l1snr_loss", "_compute_spec_level_matching", "_usable_resolutions"],
)
def test_a_subclass_overriding_what_is_never_called_raises(name: str):
    with pytest.raises(TypeError, match=f"{name}.*forward"):
        type("Own", (package.STFTL1SNRDBLoss,), {name: lambda *x: None})


def test_a_value_out_of_range_is_refused_when_it_is_set():
    loss = build("L1SNRLoss")
    with pytest.raises(ValueError, match="eps must be non-negative"):
        loss.eps = -1.0
    assert loss.eps == 1e-3


@pytest.mark.parametrize("part", ["time_loss", "spec_loss"])
def test_a_replaced_forward_of_a_part_is_called(part: str):
    e, t = signals(2, cases.LENGTH)
    loss = build("MultiL1SNRDBLoss", spec_weight=0.25)
    other = (loss.spec_loss if part == "time_loss" else loss.time_loss)(e, t)
    getattr(loss, part).forward = lambda *x, **kw: torch.tensor(3.0, dtype=torch.float64)
    share = 0.75 if part == "time_loss" else 0.25
    cases.assert_close(loss(e, t), 3 * share + (1 - share) * other, 1e-12)


def test_hooks_on_every_module_fire():
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, x, y: seen.append(type(module).__name__)
    )
    try:
        build("MultiL1SNRDBLoss")(*signals(2, cases.LENGTH))
    finally:
        handle.remove()
    assert seen == ["L1SNRLoss", "L1SNRDBLoss", "STFTL1SNRDBLoss", "MultiL1SNRDBLoss"]


def test_parts_are_made_when_they_are_looked_at():
    """Trainers build losses at every step, and seldom look inside."""
    loss = build("MultiL1SNRDBLoss")
    loss(*signals(2, cases.LENGTH))
    assert list(loss.time_loss._modules) == list(loss.spec_loss._modules) == []
    names = [name for name, _ in loss.named_modules()]
    assert names == [
        "",
        "time_loss",
        "time_loss.l1snr_loss",
        "spec_loss",
        "spec_loss.fallback_time_loss",
        "spec_loss.fallback_time_loss.l1snr_loss",
    ]
    assert [name for name, _ in loss.spec_loss.named_children()] == ["fallback_time_loss"]
