"""What is added to torch-l1-snr: options, components, functions, injected parts."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import oracle
import pytest
import torch
from cases import KINDS, SPECTRAL, build, expected, signals, value_and_grad
from torch import Tensor, nn

import torch_l1snr_fast as package
from torch_l1snr_fast import functional

LEVELLED = {
    "L1SNRLoss": {"l1_weight": 0.3},
    "L2SNRLoss": {},
    "L1SNRDBLoss": {"l1_weight": 0.3},
    "STFTL1SNRDBLoss": {"l1_weight": 0.3, "use_regularization": True},
    "MultiL1SNRDBLoss": {"l1_weight": 0.3, "use_spec_regularization": True},
}


# l1_scale


@pytest.mark.parametrize("backend", cases.BACKENDS)
@pytest.mark.parametrize("l1_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("kind", "scales"),
    [
        ("L1SNRDBLoss", {"l1_scale": 7.0}),
        ("STFTL1SNRDBLoss", {"l1_scale": 7.0}),
        ("MultiL1SNRDBLoss", {"l1_scale_time": 7.0}),
        ("MultiL1SNRDBLoss", {"l1_scale_spec": 0.02}),
        ("MultiL1SNRDBLoss", {"l1_scale_time": 7.0, "l1_scale_spec": 0.02}),
        ("MultiL1SNRDBLoss", {"l1_scale_time": 7.0, "time_loss_params": {"l1_scale": 3.0}}),
    ],
    ids=str,
)
def test_l1_scale(kind: str, scales: dict[str, Any], l1_weight: float, backend: str):
    """The factor of the mean absolute error, also where nothing else is computed."""
    e, t = signals(2, 2, cases.LENGTH)
    with package.use_backend(backend):
        value, gradient = value_and_grad(build(kind, l1_weight=l1_weight, **scales), e, t)
        _, plain = value_and_grad(build(kind, l1_weight=l1_weight), e, t)
    cases.assert_close(value, expected(kind, e, t, l1_weight=l1_weight, **scales)[0].mean(), 1e-10)
    assert (cases.relative(gradient, plain) > 0.01) == (l1_weight > 0)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_l1_scale_reaches_the_fallback(kind: str):
    e, t = signals(2, 30)
    scale = {"l1_scale": 7.0} if kind == "STFTL1SNRDBLoss" else {"l1_scale_spec": 7.0}
    options = {"l1_weight": 0.5, "min_audio_length": 31} | scale
    with pytest.warns(RuntimeWarning):
        value = build(kind, **options)(e, t)
    cases.assert_close(value, expected(kind, e, t, **options)[0].mean(), 1e-10)


def test_l1_scale_gradient_in_closed_form():
    """At l1_weight = 1 the gradient of a waveform is scale sign(e - t) / M, and nothing else."""
    e, t = signals(2, 3, 50)
    loss = build("L1SNRDBLoss", l1_weight=1.0, l1_scale=7.0, reduction="none")
    value, gradient = value_and_grad(loss, e, t)
    want = 7.0 * (e - t).sign() / 150 * cases.incoming(value)[:, None, None]
    cases.assert_gradient(gradient, want, 1e-14)


# stem_dimension

STEMS = {
    "one": (1, [1]),
    "first": (0, [0]),
    "negative": (-1, [3]),
    "list of one": ([2], [2]),
    "even steps": ([0, 2], [0, 2]),
    "neighbours": ([1, 2, 3], [1, 2, 3]),
    "uneven": ([0, 1, 3], [0, 1, 3]),
    "unsorted, negative": ([-1, 0, 1], [0, 1, 3]),
    "tuple": ((3, 1), [1, 3]),
    "all": ([0, 1, 2, 3], [0, 1, 2, 3]),
}


@pytest.mark.parametrize("backend", cases.BACKENDS)
@pytest.mark.parametrize("stems", STEMS.values(), ids=STEMS)
@pytest.mark.parametrize("shape", [(2, 4, cases.LENGTH), (2, 4, 2, cases.LENGTH)], ids=str)
def test_stems(shape: tuple[int, ...], stems: tuple[Any, list[int]], backend: str):
    """The loss of those stems alone, and gradient exactly zero for the others."""
    e, t = signals(*shape)
    option, chosen = stems
    with package.use_backend(backend):
        value, gradient = value_and_grad(build("MultiL1SNRDBLoss", stem_dimension=option), e, t)
        want = value_and_grad(build("MultiL1SNRDBLoss"), e[:, chosen], t[:, chosen])
    assert torch.equal(value, want[0])
    cases.assert_close(
        value, expected("MultiL1SNRDBLoss", e[:, chosen], t[:, chosen])[0].mean(), 1e-10
    )
    assert torch.equal(gradient[:, chosen], want[1])
    others = [i for i in range(4) if i not in chosen]
    assert not gradient[:, others].any()


def test_other_stems_are_not_even_read():
    """What was not asked for may be anything: it is neither checked nor computed."""
    e, t = signals(2, 3, cases.LENGTH)
    e[:, 1] = torch.nan
    value, gradient = value_and_grad(build("MultiL1SNRDBLoss", stem_dimension=[0, 2]), e, t)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("option", [1, [1], [0, 3], [1, 2]], ids=str)
def test_even_stems_are_views(option: Any):
    """No copy of these stems or of others: what is saved for backward is the input's memory."""
    e, t = signals(2, 4, cases.LENGTH, dtype=torch.float32)
    e.requires_grad_()
    saved: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    loss = build("MultiL1SNRDBLoss", stem_dimension=option, spec_weight=0.5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss(e, t)
    memory = {x.untyped_storage().data_ptr() for x in saved if x.dtype == torch.float32}
    assert {e.untyped_storage().data_ptr(), t.untyped_storage().data_ptr()} <= memory


@pytest.mark.parametrize(
    ("shape", "stems", "message"),
    [
        ((2, 4, 60), 4, r"stem_dimension 4 .*4 stems"),
        ((2, 4, 60), [0, -5], r"stem_dimension -5 .*4 stems"),
        ((2, 4, 60), [1, 1], r"stem_dimension.*twice.*\[1, 1\]"),
        ((2, 4, 60), [3, -1], r"stem_dimension.*twice"),
        ((2, 60), 0, r"stem_dimension.*\(2, 60\)"),
    ],
)
def test_stems_that_are_not_there(shape: tuple[int, ...], stems: Any, message: str):
    with pytest.raises(ValueError, match=message):
        build("MultiL1SNRDBLoss", stem_dimension=stems)(*signals(*shape))


# reduction


@pytest.mark.parametrize("backend", cases.BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_reduction(kind: str, reduction: str, backend: str):
    e, t = signals(3, 2, cases.LENGTH)
    rows, _ = expected(kind, e, t, **LEVELLED[kind])
    want = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
    with package.use_backend(backend):
        loss = build(kind, reduction=reduction, **LEVELLED[kind])
        value, gradient = value_and_grad(loss, e, t)
        cases.assert_close(value, want, 1e-10)
        # A row's gradient is that of its own loss, computed alone, times what comes in for it.
        share = cases.incoming(value).expand(3) / (3 if reduction == "mean" else 1)
        for i in range(3):
            one, alone = value_and_grad(build(kind, **LEVELLED[kind]), e[i : i + 1], t[i : i + 1])
            cases.assert_gradient(
                gradient[i : i + 1], alone * share[i] / cases.incoming(one), 1e-12
            )


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("kind", SPECTRAL)
def test_reduction_of_the_fallback(kind: str, reduction: str):
    e, t = signals(3, 30)
    with pytest.warns(RuntimeWarning):
        value = build(kind, reduction=reduction, min_audio_length=31)(e, t)
    rows, _ = expected(kind, e, t, min_audio_length=31)
    cases.assert_close(value, rows if reduction == "none" else rows.sum(), 1e-10)


# grad_scale


@pytest.mark.parametrize("backend", cases.BACKENDS)
@pytest.mark.parametrize("scale", [0.01, 0.3, 77.0])
@pytest.mark.parametrize("kind", KINDS)
def test_grad_scale(kind: str, scale: float, backend: str):
    """The value to the bit, the gradient multiplied once."""
    e, t = signals(2, cases.LENGTH, dtype=torch.float32)
    with package.use_backend(backend):
        value, gradient = value_and_grad(build(kind, **LEVELLED[kind]), e, t)
        same, scaled = value_and_grad(build(kind, grad_scale=scale, **LEVELLED[kind]), e, t)
    assert torch.equal(same, value)
    cases.assert_gradient(scaled, gradient * scale, 1e-6)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_grad_scale_of_the_fallback(kind: str):
    e, t = signals(2, 30)
    options = {"min_audio_length": 31, "l1_weight": 0.3}
    with pytest.warns(RuntimeWarning):
        value, gradient = value_and_grad(build(kind, **options), e, t)
    with pytest.warns(RuntimeWarning):
        same, scaled = value_and_grad(build(kind, grad_scale=0.3, **options), e, t)
    assert torch.equal(same, value)
    cases.assert_gradient(scaled, gradient * 0.3, 1e-14)


# return_components


@pytest.mark.parametrize("backend", cases.BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("l1_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("level", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_components(kind: str, level: bool, l1_weight: float, reduction: str, backend: str):
    """The named parts before weighting: values and names as the oracle has them, detached."""
    options: dict[str, Any] = {"weight": 2.5, "grad_scale": 0.5}
    if kind != "L2SNRLoss":
        options["l1_weight"] = l1_weight
    switches = {
        "L1SNRDBLoss": ["use_regularization"],
        "STFTL1SNRDBLoss": ["use_regularization"],
        "MultiL1SNRDBLoss": ["use_time_regularization", "use_spec_regularization"],
    }
    options |= dict.fromkeys(switches.get(kind, []), level)
    e, t = signals(3, 2, cases.LENGTH)
    e.requires_grad_()
    with package.use_backend(backend):
        loss = build(kind, reduction=reduction, **options)
        value, parts = loss(e, t, return_components=True)
        assert torch.equal(value, loss(e, t))
    del options["grad_scale"]
    _, want = expected(kind, e, t, **options)
    assert set(parts) == set(want)
    for name, rows in want.items():
        assert not parts[name].requires_grad, name
        assert parts[name].dtype == torch.float64
        cases.assert_close(parts[name], rows if reduction == "none" else rows.mean(), 1e-10)
    assert value.requires_grad


def test_components_add_up():
    """What the names promise: the loss can be put together from them."""
    e, t = signals(2, 2, cases.LENGTH)
    options = {"l1_weight": 0.3, "use_spec_regularization": True, "spec_weight": 0.2}
    loss, parts = build("MultiL1SNRDBLoss", **options)(e, t, return_components=True)
    scale = oracle.C / (0.05 + 1e-3)
    time = 0.7 * (parts["time/d1"] + parts["time/level_matching"]) + 0.3 * scale * parts["time/l1"]
    scale = 2 * oracle.C / (0.19 * 0.05 + 1e-3)
    names = [f"stft_{n}_{h}_{w}" for n, h, w in zip(*list(cases.SMALL.values())[:3], strict=True)]
    spec = sum(
        0.7 * (parts[f"{n}/d1"] + 0.1 * parts[f"{n}/level_matching"])
        + 0.3 * scale * parts[f"{n}/l1"]
        for n in names
    )
    cases.assert_close(loss, 0.8 * time + 0.2 * spec / 3, 1e-10)


def test_components_of_the_fallback_and_of_dropped_resolutions():
    for length, least in ((30, 31), (20, 10)):
        e, t = signals(2, length)
        loss = build("MultiL1SNRDBLoss", min_audio_length=least, use_spec_regularization=True)
        with pytest.warns(RuntimeWarning):
            _, parts = loss(e, t, return_components=True)
        _, want = expected(
            "MultiL1SNRDBLoss", e, t, min_audio_length=least, use_spec_regularization=True
        )
        assert set(parts) == set(want)
        for name, rows in want.items():
            cases.assert_close(parts[name], rows.mean(), 1e-10)


def test_components_cost_no_gradient_and_change_none():
    e, t = signals(2, 2, cases.LENGTH)
    plain = value_and_grad(build("MultiL1SNRDBLoss"), e, t)
    loss = build("MultiL1SNRDBLoss")
    asked = value_and_grad(lambda *x: loss(*x, return_components=True)[0], e, t)
    assert all(torch.equal(a, b) for a, b in zip(plain, asked, strict=True))


# Functions


def functional_form(kind: str, **options: Any) -> Any:
    """The function of a loss with the settings of its module."""
    name = {
        "L1SNRLoss": "l1snr_loss",
        "L2SNRLoss": "l2snr_loss",
        "L1SNRDBLoss": "l1snrdb_loss",
        "STFTL1SNRDBLoss": "stft_l1snrdb_loss",
        "MultiL1SNRDBLoss": "multi_l1snrdb_loss",
    }[kind]
    function = getattr(functional, name)
    return lambda *x, **more: function(*x, **(options | more))


@pytest.mark.parametrize("kind", KINDS)
def test_functions_have_the_defaults_of_the_modules(kind: str):
    e, t = signals(2, 2, 1100, dtype=torch.float32)
    for reduction in ("mean", "none"):
        module = getattr(package, kind)("loss", reduction=reduction)
        got = value_and_grad(functional_form(kind, reduction=reduction), e, t)
        want = value_and_grad(module, e, t)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("kind", KINDS[:4])
def test_functions_take_the_settings_of_the_modules(kind: str):
    e, t = signals(2, 2, cases.LENGTH)
    options = cases.settings_of(kind, weight=2.5, grad_scale=0.3, reduction="sum", **LEVELLED[kind])
    if kind in ("L1SNRDBLoss", "STFTL1SNRDBLoss"):
        options |= {"l1_scale": 5.0, "lambda0": 0.7, "lmin": -30.0}
    got = value_and_grad(functional_form(kind, **options), e, t)
    want = value_and_grad(getattr(package, kind)("loss", **options), e, t)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    _, parts = functional_form(kind, **options)(e, t, return_components=True)
    _, wanted = getattr(package, kind)("loss", **options)(e, t, return_components=True)
    assert parts == wanted


def test_multi_function_takes_settings_by_domain():
    e, t = signals(2, 4, cases.LENGTH)
    options = {"weight": 2.0, "spec_weight": 0.2, "stem_dimension": [0, 2], "grad_scale": 0.1}
    time, spec = {"lambda0": 0.7, "l1_weight": 0.1}, {"use_regularization": True, "l1_scale": 3.0}
    function = functional_form(
        "MultiL1SNRDBLoss", time_settings=time, spec_settings=cases.SMALL | spec, **options
    )
    module = build("MultiL1SNRDBLoss", time_loss_params=time, spec_loss_params=spec, **options)
    got, want = value_and_grad(function, e, t), value_and_grad(module, e, t)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_functions_warn_at_every_call():
    """Having no state, they cannot know that they did; and they name who called them."""
    e, t = signals(1, 30)
    for function in (functional.stft_l1snrdb_loss, functional.multi_l1snrdb_loss):
        with cases.recorded() as caught:
            function(e, t)
            function(e, t)
        assert cases.categories(caught) == [RuntimeWarning] * 2
        assert {w.filename for w in caught} == {__file__}


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        ("L1SNRLoss", {"l1_weight": 2.0}, "l1_weight"),
        ("L2SNRLoss", {"tau": -1.0}, "tau"),
        ("L1SNRDBLoss", {"reduction": "median"}, "reduction"),
        ("STFTL1SNRDBLoss", {"grad_scale": 0.0}, "grad_scale"),
        ("MultiL1SNRDBLoss", {"spec_weight": -0.1}, "spec_weight"),
        ("MultiL1SNRDBLoss", {"weight": -0.1}, "weight"),
        ("MultiL1SNRDBLoss", {"stem_dimension": "drums"}, "stem_dimension"),
    ],
)
def test_functions_check_their_settings(kind: str, options: dict[str, Any], name: str):
    with pytest.raises(ValueError, match=name):
        functional_form(kind, **options)(*signals(2, 2, cases.LENGTH))


def test_functions_reject_unknown_settings():
    for kind in KINDS:
        with pytest.raises(TypeError, match="no_such_setting"):
            functional_form(kind, no_such_setting=1)(*signals(2, 2, cases.LENGTH))


# Parts of the combined loss


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
