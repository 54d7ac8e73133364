"""Settings as configurations and trainers hold them: mappings, sequences, scalars, tensors."""

from __future__ import annotations

import pickle
import re
from typing import Any

import cases
import numpy as np
import pytest
import torch
from cases import KINDS, build, needs_upstream, signals, upstream, value_and_grad
from ml_collections import ConfigDict, FrozenConfigDict
from omegaconf import ListConfig, OmegaConf
from torch import Tensor, nn

import torch_l1snr_fast as package


@pytest.mark.parametrize(
    "as_given",
    [
        ConfigDict,
        FrozenConfigDict,
        OmegaConf.create,
        lambda x: list(x.items()),
        lambda x: iter(x.items()),
        dict,
    ],
    ids=["ConfigDict", "frozen", "OmegaConf", "pairs", "iterator", "dict"],
)
def test_settings_of_one_domain(as_given: Any):
    time, spec = {"lambda0": 0.7, "weight": 3.0}, {"l1snr_eps": 0.1, "use_regularization": True}
    e, t = signals(2, cases.LENGTH)
    want = build("MultiL1SNRDBLoss", time_loss_params=time, spec_loss_params=spec)(e, t)
    given = {"time_loss_params": as_given(time), "spec_loss_params": as_given(spec)}
    assert torch.equal(build("MultiL1SNRDBLoss", **given)(e, t), want)
    assert not torch.equal(build("MultiL1SNRDBLoss")(e, t), want)


@pytest.mark.parametrize("name", ["time_loss_params", "spec_loss_params"])
@pytest.mark.parametrize("value", [3, "lambda0", [1, 2]], ids=str)
def test_what_are_no_settings(name: str, value: Any):
    with pytest.raises(ValueError, match=f"{name} must be a dict.*{re.escape(str(value))}"):
        build("MultiL1SNRDBLoss", **{name: value})


@pytest.mark.parametrize(
    "given_as",
    [ListConfig, tuple, lambda sizes: [np.int64(x) for x in sizes]],
    ids=["ListConfig", "tuple", "numpy"],
)
def test_sequences_of_any_kind(given_as: Any):
    sizes = {"n_ffts": [64, 32], "hop_lengths": [16, 8], "win_lengths": [64, 30]}
    e, t = signals(2, 3, cases.LENGTH)
    for kind in cases.SPECTRAL:
        want = build(kind, **sizes)(e, t)
        given = {k: given_as(v) for k, v in sizes.items()}
        loss = build(kind, **given)
        assert torch.equal(loss(e, t), want)
    want = build("MultiL1SNRDBLoss", stem_dimension=[0, 2])(e, t)
    loss = build("MultiL1SNRDBLoss", stem_dimension=given_as([0, 2]))
    assert torch.equal(loss(e, t), want)


@pytest.mark.parametrize("config", [ConfigDict, FrozenConfigDict, OmegaConf.create])
@pytest.mark.parametrize("kind", cases.SPECTRAL)
def test_all_settings_from_a_configuration(kind: str, config: Any):
    """As trainers unpack it; and none of it lives on in the loss."""
    options = {
        "name": "loss",
        "weight": 0.5,
        "l1_weight": 0.1,
        "window_fn": "hamming",
        **cases.SMALL,
    }
    if kind == "MultiL1SNRDBLoss":
        options |= {"spec_weight": 0.3, "time_loss_params": {"lambda0": 0.7}}
        options |= {"stem_dimension": [1, 2]}
    e, t = signals(2, 3, cases.LENGTH)
    got = getattr(package, kind)(**config(options))
    assert torch.equal(got(e, t), getattr(package, kind)(**options)(e, t))
    assert "config" not in str(vars(got)).lower()
    assert torch.equal(pickle.loads(pickle.dumps(got))(e, t), got(e, t))


NUMBERS = ["weight", "eps", "l1_weight", "ref_level", "grad_scale", "tau", "lambda0", "lmin"]
NUMBERS += ["delta_lambda", "l1snr_eps", "dbrms_eps", "reg_coef", "spec_reg_coef", "spec_weight"]


@pytest.mark.parametrize("scalar", [np.float32, np.float64, np.float16, np.int64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_scalars_of_numpy(kind: str, scalar: Any):
    """Kept as Python's own numbers, which hash, compile and pickle as such."""
    names = [name for name in NUMBERS if name in package.__dict__[kind]._settings]
    given = {name: scalar(-30 if name == "lmin" else 1) for name in names}
    if scalar is not np.int64:
        given |= {name: scalar(0.25) for name in names if name != "lmin"}
    loss, want = build(kind, **given), build(kind, **{k: v.item() for k, v in given.items()})
    assert all(type(getattr(loss, name)) in (int, float) for name in names)
    e, t = signals(2, cases.LENGTH)
    assert torch.equal(loss(e, t), want(e, t))


@pytest.mark.parametrize("value", [np.bool_(True), np.str_("0.5"), np.array([0.5]), 1 + 0j])
def test_what_is_no_number(value: Any):
    with pytest.raises(ValueError, match="eps must be a non-negative number"):
        build("L1SNRLoss", eps=value)


# Learnt weights


@needs_upstream
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("grad_scale", [1.0, 0.25])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_learnt(kind: str, grad_scale: float, reduction: str):
    """Its gradient is the loss without it; that of the estimates is what a number would give."""
    e, t = signals(2, 2, cases.LENGTH)
    weight = nn.Parameter(torch.tensor(2.5, dtype=torch.float64))
    loss = build(kind, weight=weight, grad_scale=grad_scale, reduction=reduction)
    value, gradient = value_and_grad(loss, e, t)
    plain = build(kind, weight=2.5, grad_scale=grad_scale, reduction=reduction)
    want, want_gradient = value_and_grad(plain, e, t)
    cases.assert_close(value, want, 1e-12)
    cases.assert_gradient(gradient, want_gradient, 1e-12)
    unweighted = build(kind, reduction=reduction)(e, t)
    cases.assert_close(weight.grad, (cases.incoming(value) * unweighted).sum() * grad_scale, 1e-12)
    assert dict(loss.named_parameters()) == {"weight": weight}
    theirs = build(kind, upstream, grad_scale=grad_scale)
    theirs.weight = nn.Parameter(weight.detach().clone())
    if reduction == "mean":
        value_and_grad(theirs, e, t)
        cases.assert_close(weight.grad, theirs.weight.grad, 1e-10)


def test_weights_of_the_domains_are_learnt():
    e, t = signals(2, 2, cases.LENGTH)
    weights = [nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (0.5, 2.0, 0.3)]
    loss = build(
        "MultiL1SNRDBLoss",
        time_loss_params={"weight": weights[0]},
        spec_loss_params={"weight": weights[1]},
        spec_weight=weights[2],
    )
    value, gradient = value_and_grad(loss, e, t)
    plain = build("MultiL1SNRDBLoss", spec_weight=0.3)
    plain.time_loss.weight, plain.spec_loss.weight = 0.5, 2.0
    want, want_gradient = value_and_grad(plain, e, t)
    cases.assert_close(value, want, 1e-12)
    cases.assert_gradient(gradient, want_gradient, 1e-12)
    time, spec = build("L1SNRDBLoss")(e, t), build("STFTL1SNRDBLoss")(e, t)
    incoming = cases.incoming(value)
    for parameter, slope in zip(
        weights, (0.7 * time, 0.3 * spec, 2.0 * spec - 0.5 * time), strict=True
    ):
        cases.assert_close(parameter.grad, incoming * slope, 1e-12)


def test_a_weight_is_a_tensor_of_any_shape_with_one_number():
    e, t = signals(2, cases.LENGTH)
    want = build("L1SNRLoss", weight=2.0)(e, t)
    loss = build("L1SNRLoss")
    loss.weight = torch.tensor([2.0], dtype=torch.float64)
    assert torch.equal(loss(e, t), want)
    loss.weight = 1.0
    assert torch.equal(loss(e, t), build("L1SNRLoss")(e, t))


@pytest.mark.parametrize("weight", [torch.ones(2), torch.tensor(1), torch.ones(0)], ids=str)
def test_a_weight_of_several_numbers_raises(weight: Tensor):
    with pytest.raises(ValueError, match=r"weight as a tensor must be one.*reduction=\"none\""):
        build("L1SNRLoss", weight=weight)


@pytest.mark.parametrize("name", ["eps", "ref_level", "grad_scale"])
def test_other_settings_as_tensors_raise(name: str):
    loss = build("L1SNRLoss")
    with pytest.raises(ValueError, match=f"{name}.item"):
        setattr(loss, name, torch.tensor(0.5))
