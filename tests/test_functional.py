"""The functions compute what the modules do, with their defaults, settings and checks."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from cases import KINDS, LEVELLED, build, signals, value_and_grad

import torch_l1snr_fast as package
from torch_l1snr_fast import functional


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
