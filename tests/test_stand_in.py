"""Standing in for torch-l1-snr: imports, versions, pickled criteria, checkpoints."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from cases import KINDS, SPECTRAL, build, signals, upstream, value_and_grad
from torch import nn

import torch_l1snr_fast as package

EXAMPLES = Path(__file__).parent / "data" / "early_readme.md"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", EXAMPLES.read_text(), re.DOTALL)


# The page calls backward() on estimates that ask for no gradient. That fails with any loss, so here
# every first torch.randn, which makes the estimates, asks for it.
WITH_LEAVES = """
import itertools, torch
torch.randn = lambda *shape, make=torch.randn, turn=itertools.cycle([True, False]): make(
    *shape, requires_grad=next(turn)
)
"""


def test_usage_examples_of_the_early_readme():
    """They run with nothing but the name in the import changed."""
    assert len(examples()) == 3
    code = [WITH_LEAVES]
    for source in examples():
        assert source.count("torch_l1snr") == 1
        code += [source.replace("torch_l1snr", "torch_l1snr_fast")]
        code += ["assert loss.isfinite() and loss.requires_grad and loss_fn.__module__.startswith("]
        code += ["    'torch_l1snr_fast')", "print('gradient', estimates.grad is not None)"]
    result = python("\n".join(code))
    assert result.returncode == 0, result.stderr
    assert re.findall(r"(\w+) True", result.stdout) == ["gradient", "gradient"]
    assert result.stdout.count("Loss: ") == 3


def test_usage_examples_run_as_they_are_after_installing():
    code = [
        "import torch_l1snr_fast; torch_l1snr_fast.install_as_torch_l1_snr()",
        WITH_LEAVES,
        *examples(),
        "assert type(loss_fn) is torch_l1snr_fast.MultiL1SNRDBLoss",
    ]
    result = python("\n".join(code))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Loss: ") == 3


def test_installing_redirects_every_way_to_import():
    code = """
import sys
import torch_l1snr_fast as fast
fast.install_as_torch_l1_snr()
import torch_l1_snr
import torch_l1_snr.l1snr as module
import torch_l1snr
from torch_l1_snr import MultiL1SNRDBLoss, dbrms
from torch_l1_snr.l1snr import L1SNRLoss, L2SNRLoss, L1SNRDBLoss, STFTL1SNRDBLoss
from torch_l1_snr.l1snr import dbrms as level
from torch_l1snr import L1SNRLoss as early
from torch_l1snr.l1snr import L1SNRLoss as earlier
import importlib
assert importlib.import_module("torch_l1_snr").MultiL1SNRDBLoss is fast.MultiL1SNRDBLoss
assert MultiL1SNRDBLoss is fast.MultiL1SNRDBLoss
assert L1SNRLoss is early is earlier is fast.L1SNRLoss is module.L1SNRLoss
assert L2SNRLoss is fast.L2SNRLoss and L1SNRDBLoss is fast.L1SNRDBLoss
assert STFTL1SNRDBLoss is fast.STFTL1SNRDBLoss
assert dbrms is level is fast.dbrms
assert torch_l1_snr.l1snr.MultiL1SNRDBLoss is fast.MultiL1SNRDBLoss
assert set(torch_l1_snr.__all__) >= {"L1SNRLoss", "L2SNRLoss", "dbrms"}
assert "torchaudio" not in sys.modules
import pickle
assert type(pickle.loads(pickle.dumps(L1SNRLoss("x")))) is fast.L1SNRLoss
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_the_version_is_that_of_what_it_stands_for():
    """Trainers compare it, and look for the package before they import it."""
    code = """
import importlib.util
import torch_l1snr_fast as fast
fast.install_as_torch_l1_snr()
import torch_l1_snr
assert torch_l1_snr.__version__ == "0.2.1" != fast.__version__
assert importlib.util.find_spec("torch_l1_snr") is not None
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


# Pickles

PICKLED: dict[str, list[dict[str, Any]]] = {
    "L1SNRLoss": [{"weight": 2.5, "eps": 1e-2, "l1_weight": 0.3, "ref_level": 0.1}],
    "L2SNRLoss": [{"weight": 2.5, "tau": 0.1, "grad_scale": 0.5}],
    "L1SNRDBLoss": [{"l1snr_eps": 1e-2, "reg_coef": 0.4, "l1_weight": 0.3}, {"l1_weight": 1.0}],
    "STFTL1SNRDBLoss": [
        {"l1snr_eps": 1e-2, "use_regularization": True, "window_fn": "hamming"},
        {"l1_weight": 1.0},
        {"min_audio_length": 302, "spec_reg_coef": 0.7, "use_regularization": True},
    ],
    "MultiL1SNRDBLoss": [
        {"spec_weight": 0.2, "lambda0": 0.7, "use_spec_regularization": True, "l1_weight": 0.3},
        {"spec_loss_params": {"l1snr_eps": 0.1}, "window_fn": "blackman"},
        {"l1_weight": 1.0},
    ],
}


def as_ours(loss: nn.Module, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """What a pickle of torch-l1-snr becomes after the stand-in has been installed."""
    pickled = pickle.dumps(loss)
    for name in ("torch_l1_snr", "torch_l1_snr.l1snr", "torch_l1snr", "torch_l1snr.l1snr"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name))
    package.install_as_torch_l1_snr()
    return pickle.loads(pickled)


@cases.needs_upstream
@pytest.mark.parametrize(
    ("kind", "options"), [(kind, options) for kind in KINDS for options in PICKLED[kind]]
)
def test_a_pickled_criterion_computes_the_same(
    kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    theirs = build(kind, upstream, **options)
    ours = as_ours(theirs, monkeypatch)
    assert type(ours) is getattr(package, kind)
    pair = signals(2, 2, cases.LENGTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        got, want = value_and_grad(ours, *pair), value_and_grad(theirs, *pair)
    cases.assert_close(got[0], want[0], 1e-10)
    cases.assert_gradient(got[1], want[1], 1e-8)
    assert vars(ours).keys() == vars(build(kind, **options)).keys()
    built = build(kind, **options)
    settings = {k: v for k, v in vars(built).items() if not k.startswith("_")}
    if "spec_loss_params" not in options:
        assert {k: vars(ours)[k] for k in settings} == settings
    again = pickle.loads(pickle.dumps(ours))
    assert torch.equal(value_and_grad(again, *pair)[1], got[1])


@cases.needs_upstream
def test_a_pickled_criterion_keeps_what_was_changed_and_what_it_has_warned_of(
    monkeypatch: pytest.MonkeyPatch,
):
    theirs = build("MultiL1SNRDBLoss", upstream)
    theirs.weight, theirs.time_loss.l1snr_loss.eps = nn.Parameter(torch.tensor(2.0)), 0.2
    short = signals(2, 10)
    with pytest.warns(RuntimeWarning, match="time-domain"):
        theirs(*short)
    ours = as_ours(theirs, monkeypatch)
    assert dict(ours.named_parameters()).keys() == {"weight"}
    with cases.recorded() as caught:
        ours(*short)
    assert not caught
    pair = signals(2, cases.LENGTH)
    cases.assert_close(ours(*pair), theirs(*pair), 1e-10)


# Checkpoints


@pytest.mark.parametrize("kind", SPECTRAL)
def test_windows_in_an_old_checkpoint_are_passed_over(kind: str):
    """torch-l1-snr before 0.2 kept its windows there; other unknown keys are still errors."""
    model = nn.ModuleDict({"net": nn.Linear(2, 2), "criterion": build(kind)})
    part = "criterion" if kind == "STFTL1SNRDBLoss" else "criterion.spec_loss"
    state = dict(model.state_dict())
    for i in range(3):
        state[f"{part}.spectrogram_transforms.{i}.window"] = torch.ones(64)
    model.load_state_dict(state)
    state[f"{part}.no_such_part.weight"] = torch.ones(1)
    with pytest.raises(RuntimeError, match="no_such_part"):
        model.load_state_dict(state)
