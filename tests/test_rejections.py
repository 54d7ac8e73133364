"""Settings and input that are refused, as torch-l1-snr 0.2.1 does and with what remedy."""

from __future__ import annotations

import math
from typing import Any

import cases
import pytest
import torch
from cases import KINDS, SPECTRAL, build, needs_upstream, signals, upstream
from torch import Tensor, nn

import torch_l1snr_fast as package

# Checks of settings

NOT_NUMBERS = [True, "0.5", [0.5], 1j]
UNIT = [*NOT_NUMBERS, None, -0.1, 1.1, math.nan, math.inf]
POSITIVE = [*NOT_NUMBERS, None, 0.0, -1.0, math.nan, math.inf]
OPTIONAL = [*NOT_NUMBERS, 0.0, -1.0, math.nan, math.inf]
NON_NEGATIVE = [*NOT_NUMBERS, None, -1.0, math.nan, math.inf]
LISTS = [64, "64", [], [64.0], [True], [0], [-4], [None], {64}, torch.tensor([64])]

REJECTED: dict[str, dict[str, list[Any]]] = {
    "L1SNRLoss": {
        "l1_weight": UNIT, "ref_level": POSITIVE, "weight": NON_NEGATIVE, "grad_scale": POSITIVE,
    },
    "L2SNRLoss": {
        "weight": NON_NEGATIVE, "eps": POSITIVE, "tau": NON_NEGATIVE, "grad_scale": POSITIVE,
    },
    "L1SNRDBLoss": {
        "l1_weight": UNIT, "ref_level": POSITIVE, "weight": NON_NEGATIVE, "grad_scale": POSITIVE,
        "reg_coef": NON_NEGATIVE, "lambda0": NON_NEGATIVE, "delta_lambda": NON_NEGATIVE,
        "l1snr_eps": POSITIVE, "dbrms_eps": POSITIVE,
    },
    "STFTL1SNRDBLoss": {
        "l1_weight": UNIT, "ref_level": POSITIVE, "weight": NON_NEGATIVE, "grad_scale": POSITIVE,
        "spec_reg_coef": NON_NEGATIVE, "lambda0": NON_NEGATIVE, "delta_lambda": NON_NEGATIVE,
        "l1snr_eps": POSITIVE, "dbrms_eps": POSITIVE, "spec_ref_level": OPTIONAL,
        "n_ffts": LISTS, "hop_lengths": LISTS, "win_lengths": LISTS,
        "window_fn": ["boxcar", "Hann", "", None, 3],
    },
    "MultiL1SNRDBLoss": {
        "l1_weight": UNIT, "spec_weight": UNIT, "ref_level": POSITIVE, "weight": NON_NEGATIVE,
        "grad_scale": POSITIVE, "spec_reg_coef": NON_NEGATIVE, "lambda0": NON_NEGATIVE,
        "delta_lambda": NON_NEGATIVE, "l1snr_eps": POSITIVE, "dbrms_eps": POSITIVE,
        "spec_ref_level": OPTIONAL, "n_ffts": LISTS, "hop_lengths": LISTS, "win_lengths": LISTS,
        "window_fn": ["boxcar", None],
    },
}  # fmt: skip
SINGLE = {"n_ffts": [64], "hop_lengths": [16], "win_lengths": [64]}


@needs_upstream
@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        pytest.param(kind, name, value, id=f"{kind}-{name}={value!r}")
        for kind, names in REJECTED.items()
        for name, values in names.items()
        for value in values
    ],
)
def test_rejects_what_upstream_rejects(kind: str, name: str, value: Any):
    """With the same exception, and a message that names the argument and shows the value."""
    options = (SINGLE if kind in SPECTRAL else {}) | {name: value}
    with pytest.raises(Exception) as theirs:  # noqa: PT011 (upstream decides which)
        getattr(upstream, kind)("loss", **options)
    with pytest.raises(theirs.type) as ours:
        getattr(package, kind)("loss", **options)
    message = str(ours.value)
    assert name in message
    shown = value[0] if isinstance(value, list) and len(value) == 1 and name in SINGLE else value
    if value != []:
        assert repr(shown) in message or str(shown) in message


@needs_upstream
@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"n_ffts": [64, 32]}, r"n_ffts.*hop_lengths.*win_lengths.*2.*1"),
        ({"hop_lengths": [16, 8]}, r"n_ffts.*hop_lengths.*win_lengths.*1.*2"),
        ({"win_lengths": [65]}, r"win_length.*65.*64"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", SPECTRAL)
def test_rejects_resolutions_that_do_not_fit(kind: str, options: dict[str, Any], shown: str):
    for module in (upstream, package):
        match = shown if module is package else None
        with pytest.raises(ValueError, match=match):
            getattr(module, kind)("loss", **(SINGLE | options))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("L1SNRLoss", {"eps": -1e-3}),
        ("L1SNRLoss", {"eps": "small"}),
        ("L1SNRLoss", {"reduction": "average"}),
        ("L2SNRLoss", {"reduction": None}),
        ("L1SNRDBLoss", {"l1_scale": 0.0}),
        ("L1SNRDBLoss", {"l1_scale": True}),
        ("L1SNRDBLoss", {"lmin": math.nan}),
        ("L1SNRDBLoss", {"lmin": "-60"}),
        ("STFTL1SNRDBLoss", {"l1_scale": -1.0}),
        ("STFTL1SNRDBLoss", {"min_audio_length": -1}),
        ("MultiL1SNRDBLoss", {"stem_dimension": "vocals"}),
        ("MultiL1SNRDBLoss", {"stem_dimension": []}),
        ("MultiL1SNRDBLoss", {"stem_dimension": [0, True]}),
        ("MultiL1SNRDBLoss", {"stem_dimension": 1.0}),
        ("MultiL1SNRDBLoss", {"reduction": "batchmean"}),
        ("MultiL1SNRDBLoss", {"time_loss_module": nn.L1Loss}),
        ("MultiL1SNRDBLoss", {"time_loss_module": "L2SNRLoss"}),
    ],
    ids=str,
)
def test_rejects_what_upstream_does_not_know_or_check(kind: str, options: dict[str, Any]):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=name) as error:
        build(kind, **options)
    assert str(value) in str(error.value) or type(value).__name__ in str(error.value)


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        ("MultiL1SNRDBLoss", {"l1_scale_time": -1.0}, "l1_scale"),
        ("MultiL1SNRDBLoss", {"l1_scale_spec": 0}, "l1_scale"),
        ("MultiL1SNRDBLoss", {"time_loss_params": {"reg_coef": -1.0}}, "reg_coef"),
        ("MultiL1SNRDBLoss", {"spec_loss_params": {"n_ffts": []}}, "n_ffts"),
    ],
    ids=str,
)
def test_rejects_bad_settings_of_one_domain(kind: str, options: dict[str, Any], name: str):
    with pytest.raises(ValueError, match=name):
        build(kind, **options)


@pytest.mark.parametrize("name", ["time_loss_params", "spec_loss_params"])
def test_unknown_settings_of_one_domain_raise(name: str):
    with pytest.raises(TypeError, match="no_such_setting"):
        build("MultiL1SNRDBLoss", **{name: {"no_such_setting": 1}})


# Checks of input

LONG = torch.zeros(2, 100)
BAD_INPUT = {
    "shapes": (LONG, torch.zeros(2, 101)),
    "same count, other shape": (torch.zeros(2, 2, 50), torch.zeros(2, 100)),
    "broadcastable": (torch.zeros(2, 2, 100), torch.zeros(2, 1, 100)),
    "batch": (LONG, torch.zeros(1, 100)),
    "rank 1": (torch.zeros(100), torch.zeros(100)),
    "rank 0": (torch.zeros(()), torch.zeros(())),
    "empty batch": (torch.zeros(0, 100), torch.zeros(0, 100)),
    "no channels": (torch.zeros(2, 0, 100), torch.zeros(2, 0, 100)),
    "no samples": (torch.zeros(2, 0), torch.zeros(2, 0)),
    "int16": (LONG.short(), LONG.short()),
    "int16 target": (LONG, LONG.short()),
    "int64 estimate": (LONG.long(), LONG),
    "bool": (LONG.bool(), LONG.bool()),
    "complex": (LONG + 0j, LONG + 0j),
    "complex target": (LONG, LONG + 0j),
}


@needs_upstream
@pytest.mark.parametrize("bad", BAD_INPUT.values(), ids=BAD_INPUT)
@pytest.mark.parametrize("kind", KINDS)
def test_rejects_the_input_that_upstream_rejects(kind: str, bad: tuple[Tensor, Tensor]):
    with pytest.raises(Exception) as theirs:  # noqa: PT011 (upstream decides which)
        build(kind, upstream)(*bad)
    with pytest.raises(theirs.type) as ours:
        build(kind)(*bad)
    message = str(ours.value)
    assert "estimates" in message or "actuals" in message
    wrong = bad[0].shape != bad[1].shape
    dtypes = [str(x.dtype) for x in bad if not x.is_floating_point()]
    wanted = [str(tuple(x.shape)) for x in bad] if wrong or not dtypes else dtypes[:1]
    assert all(text in message for text in wanted), message


@pytest.mark.parametrize("kind", KINDS)
def test_rejects_two_devices(kind: str):
    with pytest.raises(RuntimeError, match=r"estimates.*actuals.*same device.*cpu.*meta"):
        build(kind)(LONG, LONG.to("meta"))


@pytest.mark.parametrize("bad", [None, [[0.0]], 3.0], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rejects_what_is_no_tensor(kind: str, bad: Any):
    with pytest.raises(TypeError, match=r"actuals.*Tensor.*" + type(bad).__name__):
        build(kind)(LONG, bad)


def test_dbrms_rejects_what_has_no_level():
    for bad in (torch.zeros(()), torch.zeros(2, 0), torch.zeros(2, 5).int(), None):
        with pytest.raises(ValueError, match="x must be"):
            package.dbrms(bad)


def test_an_error_inside_a_resolution_is_raised(monkeypatch: pytest.MonkeyPatch):
    """torch-l1-snr warns and goes on with a loss of zero."""

    def broken(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("no FFT today")

    for backend, function in (("eager", "torch.fft.rfft"), ("reference", "torch.stft")):
        monkeypatch.setattr(function, broken)
        with package.use_backend(backend), pytest.raises(RuntimeError, match="no FFT today"):
            build("STFTL1SNRDBLoss")(*signals(2, 100))


# Warnings at construction


@needs_upstream
@pytest.mark.parametrize(
    "options",
    [
        {"time_loss_module": nn.L1Loss()},
        {"time_loss_module": nn.L1Loss(), "use_time_regularization": False},
        {"time_loss_module": nn.L1Loss(), "use_time_regularization": False, "time_loss_params": {}},
        {"time_loss_module": nn.L1Loss(), "time_loss_params": {"weight": 2.0}},
        {"time_loss_module": nn.L1Loss(), "l1_weight": 1.0},
        {"time_loss_module": nn.L1Loss(), "l1_weight": 1.0, "use_time_regularization": False},
        {"l1_weight": 1.0},
        {},
    ],
    ids=str,
)
def test_injection_warns_as_upstream_does(options: dict[str, Any]):
    seen = []
    for module in (package, upstream):
        with cases.recorded() as caught:
            build("MultiL1SNRDBLoss", module, **options)
        assert all(w.filename == cases.__file__ for w in caught), "not the caller"
        seen.append(cases.categories(caught))
    assert seen[0] == seen[1]
