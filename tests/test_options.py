"""What is added to torch-l1-snr: options and components."""

from __future__ import annotations

from typing import Any

import cases
import oracle
import pytest
import torch
from cases import KINDS, LEVELLED, SPECTRAL, build, expected, signals, value_and_grad
from torch import Tensor

import torch_l1snr_fast as package
from torch_l1snr_fast import autograd

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
def test_even_stems_are_views(option: Any, monkeypatch: pytest.MonkeyPatch):
    """No copy of these stems or of others: what is computed on is the input's memory."""
    e, t = signals(2, 4, cases.LENGTH, dtype=torch.float32)
    e.requires_grad_()
    seen: list[int] = []
    compute = autograd.loss

    def spy(estimates: Tensor, actuals: Tensor, *rest: Any) -> Any:
        seen.extend(x.untyped_storage().data_ptr() for x in (estimates, actuals))
        return compute(estimates, actuals, *rest)

    monkeypatch.setattr(autograd, "loss", spy)
    build("MultiL1SNRDBLoss", stem_dimension=option, spec_weight=0.5)(e, t)
    assert seen == [e.untyped_storage().data_ptr(), t.untyped_storage().data_ptr()]


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
