"""The interface is torch-l1-snr 0.2.1's: signatures, attributes, state, copies."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any, get_type_hints

import cases
import pytest
import torch
from cases import KINDS, SPECTRAL, build, needs_upstream, signals, upstream, value_and_grad
from torch import Tensor, nn

import torch_l1snr_fast as package

EXTRAS = {
    "L1SNRLoss": {"reduction": "mean"},
    "L2SNRLoss": {"reduction": "mean"},
    "L1SNRDBLoss": {"l1_scale": None, "reduction": "mean"},
    "STFTL1SNRDBLoss": {"l1_scale": None, "reduction": "mean"},
    "MultiL1SNRDBLoss": {
        "l1_scale_time": None,
        "l1_scale_spec": None,
        "stem_dimension": None,
        "reduction": "mean",
    },
}


def parameters(function: Callable) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


# Signatures


@needs_upstream
@pytest.mark.parametrize("kind", KINDS)
def test_constructor_is_upstreams_plus_keywords(kind: str):
    """The same positional order, names and defaults; what is added cannot be passed by position."""
    ours, theirs = (parameters(getattr(m, kind)) for m in (package, upstream))
    assert ours[: len(theirs)] == theirs
    added = {name: default for name, parameter_kind, default in ours[len(theirs) :]}
    assert added == EXTRAS[kind]
    assert {k for _, k, _ in ours[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("kind", [*KINDS, "MultiResolutionComplexSTFTLoss"])
def test_settings_are_attributes_of_their_type(kind: str):
    """Declared for editors and type checkers, and each of them kept."""
    loss = getattr(package, kind)("loss")
    accepted = get_type_hints(type(loss).__init__, include_extras=True)
    declared = get_type_hints(type(loss), include_extras=True)
    assert loss._settings
    for name in loss._settings:
        assert declared[name] == accepted[name], name
        assert name in vars(loss)


@needs_upstream
@pytest.mark.parametrize("kind", KINDS)
def test_forward_is_upstreams_plus_return_components(kind: str):
    ours, theirs = (parameters(getattr(m, kind).forward) for m in (package, upstream))
    extra = ("return_components", inspect.Parameter.KEYWORD_ONLY, False)
    assert [p for p in ours if p != extra] == theirs
    assert extra in ours


@needs_upstream
def test_functions_are_upstreams():
    assert parameters(package.dbrms) == parameters(upstream.dbrms)
    ours, theirs = (m.L1SNRDBLoss.compute_adaptive_weight for m in (package, upstream))
    assert parameters(ours) == parameters(theirs)
    assert isinstance(
        inspect.getattr_static(package.L1SNRDBLoss, "compute_adaptive_weight"), staticmethod
    )


@needs_upstream
def test_every_name_of_upstream_is_there():
    assert set(upstream.__all__) <= set(package.__all__)
    for name in package.__all__:
        assert hasattr(package, name)


@needs_upstream
@pytest.mark.parametrize("kind", KINDS)
def test_all_arguments_by_position(kind: str):
    """A full positional call means the same to both."""
    theirs = inspect.signature(getattr(upstream, kind))
    other = {
        "name": "x", "weight": 1.5, "eps": 2e-3, "l1_weight": 0.25, "ref_level": 0.1,
        "grad_scale": 0.5, "tau": 0.1, "lambda0": 0.2, "delta_lambda": 0.3, "l1snr_eps": 4e-3,
        "dbrms_eps": 1e-5, "lmin": -30.0, "use_regularization": True, "reg_coef": 0.7,
        "n_ffts": [32], "hop_lengths": [9], "win_lengths": [30], "window_fn": "hamming",
        "min_audio_length": 50, "spec_reg_coef": 0.6, "mps_cpu_fallback": False,
        "spec_ref_level": 0.03, "check_finite": False, "spec_weight": 0.3,
        "use_time_regularization": False, "use_spec_regularization": True,
        "time_loss_params": {"weight": 2.0}, "spec_loss_params": {"weight": 3.0},
        "time_loss_module": None,
    }  # fmt: skip
    arguments = [other[name] for name in theirs.parameters]
    e, t = signals(2, 100)
    got, want = (value_and_grad(getattr(m, kind)(*arguments), e, t) for m in (package, upstream))
    cases.assert_close(got[0], want[0], 1e-10)
    cases.assert_gradient(got[1], want[1], 1e-8)


# Attributes


def public(module: nn.Module) -> dict[str, Any]:
    """What an instance offers beyond torch.nn.Module, without methods."""
    names = set(dir(module)) - set(dir(nn.Module()))
    found = {n: getattr(module, n) for n in names if not n.startswith("_")}
    return {n: v for n, v in found.items() if not callable(v) or isinstance(v, nn.Module)}


def assert_same_attributes(ours: nn.Module, theirs: nn.Module, missing: set[str]) -> None:
    got, want = public(ours), public(theirs)
    assert set(want) - set(got) == missing
    for name in set(want) - missing:
        if isinstance(want[name], nn.Module):
            assert type(got[name]).__name__ == type(want[name]).__name__, name
            inner = {"spectrogram_transforms"} if name == "spec_loss" else set()
            assert_same_attributes(got[name], want[name], inner)
        else:
            assert got[name] == want[name], name
            assert type(got[name]) is type(want[name]), name


@needs_upstream
@pytest.mark.parametrize("l1_weight", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_attributes(kind: str, l1_weight: float):
    """Every public attribute of upstream, down into the losses inside; transforms aside."""
    options = {"weight": 2.5, "grad_scale": 0.5}
    if kind != "L2SNRLoss":
        options |= {"l1_weight": l1_weight, "ref_level": 0.1}
    if kind in SPECTRAL:
        options |= {
            "spec_ref_level": 0.04,
            "min_audio_length": 77,
            "spec_reg_coef": 0.6,
            "lmin": -50.0,
        }
    missing = {"spectrogram_transforms"} if kind == "STFTL1SNRDBLoss" else set()
    assert_same_attributes(build(kind, **options), build(kind, upstream, **options), missing)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "L2SNRLoss"])
def test_l1_weight_is_read_only(kind: str):
    loss = build(kind, l1_weight=0.25)
    with pytest.raises(AttributeError, match=r"l1_weight.*0\.75"):
        loss.l1_weight = 0.75
    assert loss.l1_weight == 0.25


@pytest.mark.parametrize(
    ("kind", "name", "value", "option"),
    [
        ("L1SNRLoss", "eps", 0.1, "eps"),
        ("L2SNRLoss", "tau", 0.5, "tau"),
        ("L1SNRDBLoss", "reg_coef", 3.0, "reg_coef"),
        ("L1SNRDBLoss", "use_regularization", False, "use_regularization"),
        ("STFTL1SNRDBLoss", "weight", 3.0, "weight"),
        ("STFTL1SNRDBLoss", "l1snr_eps", 0.1, "l1snr_eps"),
        ("MultiL1SNRDBLoss", "spec_weight", 0.9, "spec_weight"),
        ("MultiL1SNRDBLoss", "weight", 0.1, "weight"),
    ],
)
def test_attributes_can_be_scheduled(kind: str, name: str, value: Any, option: str):
    """Trainers change weights between epochs; the next call uses what it finds."""
    e, t = signals(2, 100)
    loss = build(kind)
    before = loss(e, t)
    setattr(loss, name, value)
    after = loss(e, t)
    assert torch.equal(after, build(kind, **{option: value})(e, t))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_list_arguments_are_copied(kind: str):
    """Neither the caller's lists nor the defaults of the signature are shared."""
    sizes = {"n_ffts": [64], "hop_lengths": [16], "win_lengths": [64]}
    cls = getattr(package, kind)
    loss, plain, other = cls("a", **sizes), cls("b"), cls("c")
    inner = (lambda x: x.spec_loss) if kind == "MultiL1SNRDBLoss" else (lambda x: x)
    for name, values in sizes.items():
        values.append(32)
        assert len(getattr(inner(loss), name)) == 1
        getattr(inner(plain), name).append(4)
        assert len(getattr(inner(other), name)) == len(getattr(inner(cls("d")), name)) == 3


def test_a_number_cannot_take_the_place_of_a_part():
    """As nn.Module has it, which is not asked about numbers elsewhere."""
    loss = package.MultiL1SNRDBLoss("loss")
    with pytest.raises(TypeError, match="time_loss"):
        loss.time_loss = 0.5
    assert isinstance(loss.time_loss, package.L1SNRDBLoss)


def test_stem_list_is_copied():
    stems = [0, 2]
    loss = build("MultiL1SNRDBLoss", stem_dimension=stems)
    stems.append(1)
    assert loss.stem_dimension == [0, 2]


# Module behaviour


@pytest.mark.parametrize("kind", KINDS)
def test_no_state(kind: str):
    loss = build(kind)
    loss(*signals(2, 100))
    assert not loss.state_dict()
    assert not list(loss.parameters())
    assert not list(loss.buffers())
    loss.load_state_dict({})


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))]
)
@pytest.mark.parametrize("kind", KINDS)
def test_copies_compute_the_same(kind: str, duplicate: Callable):
    e, t = signals(2, 100)
    loss = build(kind, weight=2.5)
    want = value_and_grad(loss, e, t)
    got = value_and_grad(duplicate(loss), e, t)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_copy_of_a_loss_that_has_warned_stays_silent_and_a_copy_of_a_fresh_one_warns():
    """Once per instance, where a copy takes over what was said."""
    short = signals(1, 20)
    fresh = build("STFTL1SNRDBLoss", min_audio_length=21)
    with pytest.warns(RuntimeWarning):
        copy.deepcopy(fresh)(*short)
    with pytest.warns(RuntimeWarning):
        fresh(*short)
    with cases.recorded() as caught:
        copy.deepcopy(fresh)(*short)
    assert not caught


@pytest.mark.parametrize("kind", KINDS)
def test_forward_ignores_extra_arguments(kind: str):
    """Wrappers pass masks, mixtures and the like to whatever loss they hold."""
    e, t = signals(2, 100)
    loss = build(kind)
    assert torch.equal(loss(e, t, "mixture", 3, mask=None), loss(e, t))


@pytest.mark.parametrize("kind", KINDS)
def test_input_is_never_written(kind: str):
    e, t = signals(2, 2, 100)
    before = e.clone(), t.clone()
    value_and_grad(build(kind), e, t)
    assert torch.equal(e, before[0])
    assert torch.equal(t, before[1])


@pytest.mark.parametrize("kind", SPECTRAL)
def test_windows_are_built_once(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Trainers build their loss every step: after the first, a new one costs no window."""
    built = []
    hann = torch.hann_window

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        built.append(args)
        return hann(*args, **kwargs)

    monkeypatch.setattr(torch, "hann_window", counted)
    sizes = {"n_ffts": [58], "hop_lengths": [13], "win_lengths": [57 - SPECTRAL.index(kind)]}
    e, t = signals(2, 100)
    value_and_grad(build(kind, **sizes), e, t)
    assert len(built) == 1, "the first call builds the window, and one is enough"
    for _ in range(3):
        value_and_grad(build(kind, **sizes), e, t)
    assert len(built) == 1


def test_cached_windows_survive_inference_mode():
    """A window built under inference_mode must not be an inference tensor when training follows."""
    sizes = {"n_ffts": [62], "hop_lengths": [13], "win_lengths": [61]}
    e, t = signals(2, 100)
    loss = build("STFTL1SNRDBLoss", use_regularization=True, **sizes)
    with torch.inference_mode():
        loss(e, t)
    for backend in ("eager", "reference"):
        with package.use_backend(backend):
            _, gradient = value_and_grad(loss, e, t)
            assert gradient.isfinite().all()


def test_cached_windows_ignore_the_default_dtype_and_device():
    sizes = {"n_ffts": [62], "hop_lengths": [13], "win_lengths": [59]}
    e, t = signals(2, 100)
    want = cases.expected("STFTL1SNRDBLoss", e, t, **sizes)[0].mean()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            got = build("STFTL1SNRDBLoss", **sizes)(e, t)
    finally:
        torch.set_default_dtype(torch.float32)
    cases.assert_close(got, want, 1e-10)
