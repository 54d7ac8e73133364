"""torch-l1-snr 0.2.1 decides: its values, gradients and dtypes over options, shapes and layouts.

float64 is compared to 1e-10 (values) and 1e-8 (gradients, by norm). float32 and half precision are
judged against torch-l1-snr in float64 on the same samples, because its own float32 difference of
two spectra has wrong signs in small bins; the bound on values is derived in cases.float32_bound.
"""

from __future__ import annotations

import random
from typing import Any

import cases
import oracle
import pytest
import torch
from cases import (
    BAD,
    KINDS,
    OPTIONS,
    SPECTRAL,
    WAVEFORM,
    build,
    signals,
    spoiled,
    upstream,
    value_and_grad,
)
from torch import Tensor, nn

import torch_l1snr_fast as package

pytestmark = cases.needs_upstream

SHAPES = {"BT": (3, cases.LENGTH), "BCT": (2, 2, cases.LENGTH), "BSCT": (2, 3, 2, cases.LENGTH)}


def option_ids(kind: str, options: dict[str, Any]) -> str:
    return f"{kind}-{','.join(f'{k}={v}' for k, v in options.items()) or 'defaults'}"


EVERY_OPTION = [
    pytest.param(kind, options, id=option_ids(kind, options))
    for kind, several in OPTIONS.items()
    for options in several
]


def both(kind: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    return build(kind, **options), build(kind, upstream, **options)


def assert_equal_in_float64(ours: nn.Module, theirs: nn.Module, e: Tensor, t: Tensor) -> None:
    got, want = value_and_grad(ours, e, t), value_and_grad(theirs, e, t)
    assert got[0].dtype == want[0].dtype == got[1].dtype == torch.float64
    cases.assert_close(got[0], want[0], 1e-10)
    cases.assert_gradient(got[1], want[1], 1e-8)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("kind", "options"), EVERY_OPTION)
def test_float64(kind: str, options: dict[str, Any], shape: tuple[int, ...]):
    assert_equal_in_float64(*both(kind, **options), *signals(*shape))


@pytest.mark.parametrize(("kind", "options"), EVERY_OPTION)
def test_float32(kind: str, options: dict[str, Any]):
    e, t = signals(2, 2, cases.LENGTH, dtype=torch.float32)
    ours, theirs = both(kind, **options)
    value, gradient = value_and_grad(ours, e, t)
    assert value.dtype == gradient.dtype == torch.float32
    want, want_gradient = value_and_grad(theirs, e.double(), t.double())
    bound = cases.float32_bound(kind, e, t, **cases.without_grad_scale(options))
    assert bound < 2e-4 * max(1.0, float(want.abs()) / 10) * options.get("reg_coef", 1.0)
    cases.assert_close(value, want, bound)
    cases.assert_gradient(gradient, want_gradient, 1e-3)


@pytest.mark.parametrize(("kind", "options"), EVERY_OPTION)
def test_upstream_agrees_with_the_oracle(kind: str, options: dict[str, Any]):
    """Both oracles say the same, so that neither is trusted alone."""
    e, t = signals(2, 2, cases.LENGTH)
    rows, _ = cases.expected(kind, e, t, **cases.without_grad_scale(options))
    cases.assert_close(build(kind, upstream, **options)(e, t), rows.mean(), 1e-10)


def random_options(kind: str, seed: int) -> dict[str, Any]:
    """A draw from the whole space of settings; reproducible by its seed."""
    draw = random.Random(f"{kind}{seed}")
    w = draw.choice([0.0, draw.random(), 1.0])
    options: dict[str, Any] = {"weight": draw.uniform(0.1, 3), "grad_scale": draw.uniform(0.1, 3)}
    if kind == "L2SNRLoss":
        return options | {
            "eps": 10 ** draw.uniform(-8, -2),
            "tau": draw.choice([0.0, draw.random()]),
        }
    options |= {"l1_weight": w, "ref_level": 10 ** draw.uniform(-3, 0)}
    eps = 10 ** draw.uniform(-6, -1)
    if kind == "L1SNRLoss":
        return options | {"eps": eps}
    options |= {
        "l1snr_eps": eps,
        "dbrms_eps": 10 ** draw.uniform(-10, -4),
        "lambda0": draw.random(),
        "delta_lambda": draw.uniform(0, 2),
        "lmin": draw.uniform(-80, -10),
    }
    regularize = [draw.random() < 0.5, draw.random() < 0.7]
    if kind == "L1SNRDBLoss":
        return options | {"use_regularization": regularize[0], "reg_coef": draw.uniform(0, 2)}
    n_ffts = [draw.randint(2, 90) for _ in range(draw.randint(1, 3))]
    options |= {
        "n_ffts": n_ffts,
        "win_lengths": [draw.randint(2, n) if draw.random() < 0.5 else n for n in n_ffts],
        "hop_lengths": [draw.randint(1, n + 5) for n in n_ffts],
        "window_fn": draw.choice(["hann", "hamming", "blackman", "bartlett", "kaiser"]),
        "spec_reg_coef": draw.uniform(0, 2),
        "spec_ref_level": draw.choice([None, 10 ** draw.uniform(-3, 0)]),
    }
    if kind == "STFTL1SNRDBLoss":
        return options | {"use_regularization": regularize[1]}
    return options | {
        "spec_weight": draw.random(),
        "use_time_regularization": regularize[0],
        "use_spec_regularization": regularize[1],
    }


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("kind", KINDS)
def test_random_settings(kind: str, seed: int):
    options = random_options(kind, seed)
    draw = random.Random(seed)
    shape = draw.choice([(), (1,), (2,), (2, 2)])
    length, error = draw.randint(100, 260), 10 ** draw.uniform(-3, 0.5)
    e, t = signals(draw.randint(1, 3), *shape, length, seed=seed, error=error)
    assert_equal_in_float64(*both(kind, **options), e * draw.choice([1.0, 0.01, 3.0]), t)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_default_resolutions_on_a_real_crop(kind: str):
    """The published sizes, and a length at which the last hop is not full."""
    e, t = signals(1, 2, 5000)
    ours, theirs = (getattr(module, kind)("loss") for module in (package, upstream))
    assert_equal_in_float64(ours, theirs, e, t)


# Layouts

LAYOUTS = {
    "sliced": lambda x: x[..., 5:-7],
    "offset channel": lambda x: x[:, 1:],
    "every other sample": lambda x: x[..., ::2],
    "permuted": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "batch last": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "expanded over channels": lambda x: x[:, :1].expand(-1, 3, -1),
    "expanded over batch": lambda x: x[:1].expand(4, -1, -1),
    "flipped": lambda x: x.flip(0)[:, :, 1:],
}


@pytest.mark.parametrize("sides", ["both", "estimates", "actuals"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_layouts(kind: str, layout: Any, sides: str):
    """The gradient reaches the leaf behind the view."""
    options = {} if kind in ("L1SNRLoss", "L2SNRLoss") else {"l1_weight": 0.2}
    results = []
    for loss in both(kind, **options):
        leaf, t = signals(2, 2, cases.LENGTH)
        leaf.requires_grad_()
        views = [layout(leaf), layout(t)]
        if sides != "both":
            plain = 1 if sides == "estimates" else 0
            views[plain] = views[plain].contiguous()
        before = [v.detach().clone() for v in views]
        value = loss(*views)
        value.backward(cases.incoming(value))
        assert all(torch.equal(v, b) for v, b in zip(views, before, strict=True)), "input changed"
        results.append((value, leaf.grad))
    (value, gradient), (want, want_gradient) = results
    cases.assert_close(value, want, 1e-10)
    cases.assert_gradient(gradient, want_gradient, 1e-8)


# Edges


def silent(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def tail_silent(x: Tensor) -> Tensor:
    """Frames that are silent beside frames that are not: padding at the end of a track."""
    x = x.clone()
    x[..., cases.LENGTH // 3 :] = 0.0
    return x


def first_row_silent(x: Tensor) -> Tensor:
    x = x.clone()
    x[0] = 0.0
    return x


EDGES = {
    "silent estimate": lambda e, t: (silent(e), t),
    "silent target": lambda e, t: (e, silent(t)),
    "both silent": lambda e, t: (silent(e), silent(t)),
    "equal": lambda e, t: (t, t),
    "one row silent": lambda e, t: (e, first_row_silent(t)),
    "one row equal": lambda e, t: (torch.cat([t[:1], e[1:]]), t),
    "tails silent": lambda e, t: (tail_silent(e), tail_silent(t)),
    "tail of the target silent": lambda e, t: (e, tail_silent(t)),
    "error of -80 dB": lambda e, t: (t + 1e-4 * (e - t), t),
    "error of -140 dB": lambda e, t: (t + 1e-7 * (e - t), t),
    "opposite": lambda e, t: (-t, t),
    "quiet": lambda e, t: (e * 1e-6, t * 1e-6),
    "loud": lambda e, t: (e * 1e3, t * 1e3),
    "estimate too quiet": lambda e, t: (e * 1e-3, t),
    "estimate much too quiet": lambda e, t: (e * 1e-8, t),
    "estimate too loud": lambda e, t: (e * 1e3, t),
    "target below lmin": lambda e, t: (e * 1e-5, t * 1e-3),
}
EDGE_OPTIONS = {
    "L1SNRLoss": {"l1_weight": 0.2},
    "L2SNRLoss": {},
    "L1SNRDBLoss": {"l1_weight": 0.2},
    "STFTL1SNRDBLoss": {"use_regularization": True, "l1_weight": 0.2},
    "MultiL1SNRDBLoss": {"use_spec_regularization": True},
}


@pytest.mark.parametrize("edge", EDGES.values(), ids=EDGES)
@pytest.mark.parametrize("kind", KINDS)
def test_edges(kind: str, edge: Any):
    e, t = edge(*signals(2, 2, cases.LENGTH))
    assert_equal_in_float64(*both(kind, **EDGE_OPTIONS[kind]), e, t)
    value, gradient = value_and_grad(build(kind, **EDGE_OPTIONS[kind]), e, t)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("edge", EDGES.values(), ids=EDGES)
@pytest.mark.parametrize("kind", KINDS)
def test_edges_in_float32(kind: str, edge: Any):
    e, t = (x.float() for x in edge(*signals(2, 2, cases.LENGTH)))
    ours, theirs = both(kind, **EDGE_OPTIONS[kind])
    value, gradient = value_and_grad(ours, e, t)
    want, want_gradient = value_and_grad(theirs, e.double(), t.double())
    cases.assert_close(value, want, cases.float32_bound(kind, e, t, **EDGE_OPTIONS[kind]))
    if edge is EDGES["error of -140 dB"] and kind in ("L1SNRDBLoss", "MultiL1SNRDBLoss"):
        # Levels 1e-7 dB apart: which is higher is below float32, and with it a gradient's sign.
        return
    cases.assert_gradient(gradient, want_gradient, 1e-3)


@pytest.mark.parametrize("kind", WAVEFORM)
@pytest.mark.parametrize("length", [1, 2])
def test_shortest_waveforms(kind: str, length: int):
    assert_equal_in_float64(*both(kind), *signals(3, length))


# Short audio

# Two lengths each, from the shortest to the longest that is so with SMALL: (longer, shorter,
# min_audio_length). n_fft/2 + 1 is 33, 26 and 17.
SHORT = {
    "every resolution": (40, 33, 10),
    "one dropped by n_fft": (32, 26, 10),
    "two dropped": (25, 17, 10),
    "none fits": (16, 10, 10),
    "below min_audio_length": (40, 64, 65),
    "at min_audio_length": (65, 66, 65),
    "a single sample": (1, 1, 0),
}


def lengths_of(short: tuple[int, int, int]) -> list[int]:
    return sorted({short[0], short[1]})


@pytest.mark.parametrize("short", SHORT.values(), ids=SHORT)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"l1_weight": 0.3, "spec_reg_coef": 0.7},
        {"l1_weight": 1.0},
        {"weight": 3.0, "lambda0": 0.5, "delta_lambda": 2.0, "lmin": -20.0, "grad_scale": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", SPECTRAL)
def test_short_audio(kind: str, options: dict[str, Any], short: tuple[int, int, int]):
    """Values, gradients and warnings where resolutions are dropped or the waveform stands in."""
    name = "use_regularization" if kind == "STFTL1SNRDBLoss" else "use_spec_regularization"
    for length in lengths_of(short):
        e, t = signals(2, 2, length)
        seen = []
        for loss in both(kind, min_audio_length=short[2], **{name: True}, **options):
            with cases.recorded() as caught:
                result = value_and_grad(loss, e, t)
                first = cases.categories(caught)
                value_and_grad(loss, e, t)
            assert cases.categories(caught) == first, "warned twice"
            seen.append((result, first))
        (got, warned), (want, want_warned) = seen
        assert warned == want_warned
        cases.assert_close(got[0], want[0], 1e-10)
        cases.assert_gradient(got[1], want[1], 1e-8)


def test_each_cause_warns_once_and_each_instance_anew():
    """Dropping, falling back and repairing are separate warnings of one instance."""
    for module in (package, upstream):
        for _ in range(2):
            loss = build("STFTL1SNRDBLoss", module, min_audio_length=20)
            with cases.recorded() as caught:
                for length in (301, 28, 19, 60, 20, 12, 39):
                    loss(*signals(1, length))
                bad, t = signals(1, 301)
                bad[0, 3] = torch.nan
                loss(bad, t)
                loss(bad, t)
            assert cases.categories(caught) == [RuntimeWarning] * 3


# Non-finite input


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_regularization": True, "l1_weight": 0.3},
        {"l1_weight": 1.0},
        {"min_audio_length": 302},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stft_loss_repairs_and_warns_once(
    bad: tuple[float, str], options: dict[str, Any], dtype: torch.dtype
):
    e, t = spoiled(bad, dtype)
    results = []
    finite = e.isfinite()
    for loss in both("STFTL1SNRDBLoss", **options):
        with cases.recorded() as caught:
            result = value_and_grad(loss, e, t)
            first = cases.categories(caught)
            value_and_grad(loss, e, t)
        assert cases.categories(caught) == first
        results.append((result, first))
        e, t = e.double(), t.double()
    (got, warned), (want, want_warned) = results
    assert warned == want_warned
    assert RuntimeWarning in warned
    assert got[1].isfinite().all()
    assert not got[1][~finite].any(), "a repaired sample has a gradient"
    exact = dtype == torch.float64
    cases.assert_close(got[0], want[0], 1e-10 if exact else 1e-4)
    cases.assert_gradient(got[1], want[1], 1e-8 if exact else 1e-3)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("kind", [*WAVEFORM, "MultiL1SNRDBLoss"])
def test_waveform_losses_propagate(kind: str, bad: tuple[float, str]):
    """Not repaired, not hidden: the loss is as bad as upstream's, and so is the gradient."""
    e, t = spoiled(bad)
    with cases.recorded():
        (got, gradient), (want, want_gradient) = (value_and_grad(x, e, t) for x in both(kind))
    assert not got.isfinite()
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-10, atol=0)
    assert not gradient[~want_gradient.isfinite()].isfinite().any()
    cases.assert_gradient(gradient[1], want_gradient[1], 1e-8)


# Dtypes


@pytest.mark.parametrize("dtype", cases.HALVES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("l1_weight", [0.0, 1.0])
def test_half_precision(kind: str, dtype: torch.dtype, l1_weight: float):
    """Computed in float32 from the half samples; the gradient is rounded once, to their dtype."""
    options = {} if kind == "L2SNRLoss" else {"l1_weight": l1_weight}
    # Loud enough that no gradient is subnormal in float16.
    e, t = signals(2, cases.LENGTH, dtype=dtype)
    value, gradient = value_and_grad(build(kind, **options), e, t)
    keeps = kind == "L1SNRDBLoss" and l1_weight == 1.0
    assert value.dtype == (dtype if keeps else torch.float32)
    assert gradient.dtype == dtype
    want, want_gradient = value_and_grad(build(kind, upstream, **options), e.double(), t.double())
    bound = cases.float32_bound(kind, e.float(), t.float(), **options)
    unit = torch.finfo(dtype).eps / 2
    if keeps:
        bound += unit * float(want.abs())
        want_gradient = want_gradient * (float(cases.incoming(value)) / float(cases.incoming(want)))
    cases.assert_close(value, want, bound)
    cases.assert_gradient(gradient, want_gradient, unit + 1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
    ],
)
def test_mixed_dtypes(kind: str, dtypes: tuple[torch.dtype, torch.dtype]):
    """The wider of both decides about the loss; the gradient keeps the estimates' dtype."""
    e, t = signals(2, cases.LENGTH)
    e, t = e.to(dtypes[0]), t.to(dtypes[1])
    value, gradient = value_and_grad(build(kind), e, t)
    assert value.dtype == torch.promote_types(*dtypes)
    assert gradient.dtype == dtypes[0]
    want, want_gradient = value_and_grad(build(kind, upstream), e.double(), t.double())
    bound = 1e-10 if value.dtype == torch.float64 else cases.float32_bound(kind, e, t)
    cases.assert_close(value, want, bound)
    exact = 1e-8 if value.dtype == torch.float64 else 1e-3
    cases.assert_gradient(gradient, want_gradient, exact + torch.finfo(dtypes[0]).eps)


@pytest.mark.parametrize("kind", WAVEFORM)
@pytest.mark.parametrize("dtype", [*cases.HALVES, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("l1_weight", [0.0, 0.5, 1.0])
def test_dtype_of_the_loss_is_upstreams(kind: str, dtype: torch.dtype, l1_weight: float):
    options = {} if kind == "L2SNRLoss" else {"l1_weight": l1_weight}
    ours, theirs = (loss(*signals(2, 50, dtype=dtype)) for loss in both(kind, **options))
    assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("kind", SPECTRAL)
@pytest.mark.parametrize("dtype", cases.HALVES, ids=str)
@pytest.mark.parametrize("l1_weight", [0.0, 0.5, 1.0])
def test_dtype_of_the_fallback_is_upstreams(kind: str, dtype: torch.dtype, l1_weight: float):
    options = {"l1_weight": l1_weight, "min_audio_length": 51}
    with cases.recorded():
        ours, theirs = (loss(*signals(2, 50, dtype=dtype)) for loss in both(kind, **options))
    assert ours.dtype == theirs.dtype


# Functions


@pytest.mark.parametrize("shape", [(3,), (3, 50), (2, 2, 50), (2, 3, 2, 50)], ids=str)
@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_dbrms(shape: tuple[int, ...], eps: float):
    x = signals(*shape)[0]
    results = []
    for module in (package, upstream):
        leaf = x.clone().requires_grad_()
        level = module.dbrms(leaf, eps)
        level.backward(cases.incoming(level))
        results.append((level.detach(), leaf.grad))
    cases.assert_close(results[0][0], results[1][0], 1e-10)
    cases.assert_close(results[0][0], oracle.dbrms(x.numpy(), eps), 1e-10)
    cases.assert_gradient(results[0][1], results[1][1], 1e-8)
    assert package.dbrms(x.bfloat16()).dtype == torch.bfloat16
    cases.assert_close(package.dbrms(torch.zeros(2, 5)), [-80.0, -80.0], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_compute_adaptive_weight(dtype: torch.dtype):
    """A grid of levels that crosses every switch: lmin, equality, and the clip at one."""
    levels = torch.linspace(-85.0, 0.0, 18, dtype=dtype)
    l_est, l_ref = (x.flatten() for x in torch.meshgrid(levels, levels, indexing="ij"))
    l_est.requires_grad_()
    r = (l_est - l_ref).abs()
    arguments = (l_est, l_ref, -60.0, 0.1, 0.9, r)
    got = package.L1SNRDBLoss.compute_adaptive_weight(*arguments)
    want = upstream.L1SNRDBLoss.compute_adaptive_weight(*arguments)
    assert not got.requires_grad
    assert got.dtype == want.dtype
    assert torch.equal(got, want)
    assert got.unique().numel() > 10
