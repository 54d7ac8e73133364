"""Facts that hold for any signal, shape and setting, tried on drawn ones."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import oracle
import pytest
import torch
from cases import KINDS, SPECTRAL, signals, value_and_grad
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_l1snr_fast as package

# derandomize: a run in CI draws what a run here draws.
many = settings(max_examples=50, deadline=None, derandomize=True)
number = st.floats


def log(low: float, high: float) -> st.SearchStrategy[float]:
    """Between 10^low and 10^high, evenly over the decades."""
    return st.floats(low, high).map(lambda x: 10.0**x)


@st.composite
def drawn_settings(draw: Any, kind: str, level: bool = True) -> dict[str, Any]:
    options: dict[str, Any] = {"weight": draw(number(0.1, 4.0))}
    if kind == "L2SNRLoss":
        return options | {"eps": draw(log(-8, -2)), "tau": draw(st.sampled_from([0.0, 1e-3, 0.5]))}
    options["l1_weight"] = draw(st.one_of(st.sampled_from([0.0, 1.0]), number(0.0, 1.0)))
    options["ref_level"] = draw(log(-3, 0))
    if kind == "L1SNRLoss":
        return options | {"eps": draw(log(-6, -1))}
    options |= {
        "l1snr_eps": draw(log(-6, -1)),
        "dbrms_eps": draw(log(-10, -4)),
        "lambda0": draw(number(0.0, 1.0)),
        "delta_lambda": draw(number(0.0, 2.0)) if level else 0.0,
        "lmin": draw(number(-80.0, -10.0)),
    }
    regularize = [draw(st.booleans()) for _ in range(2)]
    if kind == "L1SNRDBLoss":
        scale = draw(st.one_of(st.none(), log(-2, 2)))
        return options | {"use_regularization": regularize[0], "l1_scale": scale}
    sizes = draw(
        st.lists(
            st.tuples(st.integers(1, 40), st.integers(1, 50), st.integers(0, 39)),
            min_size=1,
            max_size=3,
        )
    )
    options |= {
        "n_ffts": [n for n, _, _ in sizes],
        "hop_lengths": [hop for _, hop, _ in sizes],
        "win_lengths": [max(1, n - less) for n, _, less in sizes],
        # bartlett and hann of length 1 or 2 have zeros, which torch and the definition share.
        "window_fn": draw(st.sampled_from(["hann", "hamming", "blackman", "bartlett", "kaiser"])),
        "min_audio_length": draw(st.integers(0, 20)),
        "spec_reg_coef": draw(number(0.0, 2.0)),
    }
    if kind == "STFTL1SNRDBLoss":
        return options | {"use_regularization": regularize[0]}
    return options | {
        "spec_weight": draw(number(0.0, 1.0)),
        "use_time_regularization": regularize[0],
        "use_spec_regularization": regularize[1],
    }


@st.composite
def drawn_signals(draw: Any, rows: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    batch = rows or draw(st.integers(1, 3))
    middle = draw(st.sampled_from([(), (1,), (2,), (2, 3)]))
    length = draw(st.integers(41, 120))
    e, t = signals(batch, *middle, length, seed=draw(st.integers(0, 999)), error=draw(log(-3, 1)))
    return e * draw(log(-2, 1)), t


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Dropped resolutions warn; here they are just another case."""
    with cases.recorded():
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_oracle(kind: str):
    @many
    @given(drawn_settings(kind), drawn_signals())
    def holds(options: dict[str, Any], pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        rows, parts = oracle.loss(kind, *pair, **options)
        loss = getattr(package, kind)("loss", reduction="none", **options)
        value, got = loss(*pair, return_components=True)
        bound = 1e-10 * max(1.0, float(np.abs(rows).max()))
        cases.assert_close(value, rows, bound)
        assert set(got) == set(parts)
        for name, want in parts.items():
            cases.assert_close(got[name], want, 1e-10 * max(1.0, float(np.abs(want).max())))

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_eager_equals_reference(kind: str):
    @many
    @given(drawn_settings(kind), drawn_signals())
    def holds(options: dict[str, Any], pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        loss = getattr(package, kind)("loss", reduction="sum", **options)
        results = []
        for backend in ("eager", "reference"):
            with package.use_backend(backend):
                results.append(value_and_grad(loss, *pair))
        (got, gradient), (want, want_gradient) = results
        cases.assert_close(got, want, 1e-10 * max(1.0, float(want.abs())))
        cases.assert_gradient(gradient, want_gradient, 1e-8)

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_slope(kind: str):
    """Along a drawn direction, by a central difference; lambda is constant (delta_lambda = 0)."""

    @many
    @given(drawn_settings(kind, level=False), drawn_signals(), st.integers(0, 99))
    def holds(options: dict[str, Any], pair: tuple[torch.Tensor, torch.Tensor], seed: int) -> None:
        e, t = pair
        loss = getattr(package, kind)("loss", **options)
        value, gradient = value_and_grad(loss, e, t)
        gradient = gradient / cases.incoming(value)
        direction = signals(*e.shape, seed=1000 + seed)[1]
        # A step so short that hardly a sample or bin changes its sign on the way.
        step = 1e-7 * float((e - t).abs().mean() / direction.abs().mean())
        slope = (loss(e + step * direction, t) - loss(e - step * direction, t)) / (2 * step)
        scale = float(gradient.norm() * direction.norm())
        rounding = 1e-14 * max(1.0, float(value.abs())) / step
        assert float((slope - (gradient * direction).sum()).abs()) <= 1e-4 * scale + rounding

    holds()


@pytest.mark.parametrize("kind", ["L1SNRLoss", "STFTL1SNRDBLoss"])
def test_gradient_along_the_error(kind: str):
    """Euler: |d| is homogeneous, so <gradient, d> is known from the means alone."""

    @many
    @given(drawn_settings(kind), drawn_signals())
    def holds(options: dict[str, Any], pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        e, t = pair
        options = options | ({"use_regularization": False} if kind in SPECTRAL else {})
        w, eps = options["l1_weight"], options.get("eps", options.get("l1snr_eps"))
        loss = getattr(package, kind)("loss", reduction="none", **options)
        value, gradient = value_and_grad(loss, e, t)
        got = (gradient * (e - t)).flatten(1).sum(1) / cases.incoming(value)

        errors, scale = (
            [oracle.row_mean(np.abs((e - t).numpy()))],
            oracle.C / (options["ref_level"] + eps),
        )
        parts, sizes = 1, [None]
        if kind in SPECTRAL:
            lists = (options[k] for k in ("n_ffts", "hop_lengths", "win_lengths"))
            length = e.shape[-1]
            sizes = [s for s in zip(*lists, strict=True) if oracle.usable(length, *s[:2])]
            if not sizes or length < options["min_audio_length"]:
                return
            spectra = [oracle.stft((e - t).numpy(), *s, options["window_fn"]) for s in sizes]
            errors = [oracle.row_mean(np.abs(p)) for x in spectra for p in (x.real, x.imag)]
            parts, scale = 2, 2 * oracle.C / (0.19 * options["ref_level"] + eps)
        scale = 1.0 if w == 1.0 else scale
        want = sum(
            (1 - w) * (oracle.C * error / (error + eps) if w < 1 else 0.0)
            + w * scale * error / parts
            for error in errors
        )
        want = options["weight"] * want / len(sizes)
        cases.assert_close(got, want, 1e-9 * max(1.0, float(np.abs(want).max())))

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_independent(kind: str):
    """In any order, and whatever the others are: each row's loss and gradient are its own."""

    @many
    @given(drawn_settings(kind), drawn_signals(rows=3), st.permutations(range(3)))
    def holds(
        options: dict[str, Any], pair: tuple[torch.Tensor, torch.Tensor], order: list[int]
    ) -> None:
        e, t = pair
        loss = getattr(package, kind)("loss", reduction="none", **options)

        g = torch.tensor([0.7, -1.3, 0.4], dtype=torch.float64)

        def run(e: torch.Tensor, t: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
            e = e.clone().requires_grad_()
            rows = loss(e, t)
            return rows.detach(), torch.autograd.grad(rows, e, g)[0]

        value, gradient = run(e, t, g)
        permuted, permuted_gradient = run(e[order], t[order], g[order])
        bound = 1e-12 * max(1.0, float(value.abs().max()))
        cases.assert_close(permuted, value[order], bound)
        cases.assert_gradient(permuted_gradient, gradient[order], 1e-10)
        one, one_gradient = run(e[1:2], t[1:2], g[1:2])
        cases.assert_close(one, value[1:2], bound)
        cases.assert_gradient(one_gradient, gradient[1:2], 1e-10)

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_one_population(kind: str):
    """A row's channels and sources are averaged together: their order and grouping do not count."""

    @many
    @given(drawn_settings(kind), st.integers(0, 99), st.integers(45, 90))
    def holds(options: dict[str, Any], seed: int, length: int) -> None:
        e, t = signals(2, 6, length, seed=seed)
        loss = getattr(package, kind)("loss", **options)
        value, gradient = value_and_grad(loss, e, t)
        bound = 1e-12 * max(1.0, float(value.abs()))
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        other, other_gradient = value_and_grad(loss, e[:, order], t[:, order])
        cases.assert_close(other, value, bound)
        cases.assert_gradient(other_gradient, gradient[:, order], 1e-10)
        for shape in ((2, 2, 3, length), (2, 3, 2, length)):
            grouped, grouped_gradient = value_and_grad(loss, e.reshape(shape), t.reshape(shape))
            cases.assert_close(grouped, value, bound)
            cases.assert_gradient(grouped_gradient.reshape(e.shape), gradient, 1e-12)

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_unit_of_the_signal(kind: str):
    """With the epsilons and levels in the same unit, the loss does not know which unit it is."""

    @many
    @given(drawn_settings(kind), drawn_signals(), log(-2, 2))
    def holds(
        options: dict[str, Any], pair: tuple[torch.Tensor, torch.Tensor], gain: float
    ) -> None:
        if options.get("l1_weight") == 1.0 or options.get("l1_scale") is not None:
            return  # these are in the signal's unit by intention
        e, t = pair
        scaled = dict(options)
        for name in ("eps", "l1snr_eps", "ref_level"):
            if name in scaled:
                scaled[name] *= gain**2 if kind == "L2SNRLoss" else gain
        if "dbrms_eps" in scaled:
            scaled["dbrms_eps"] *= gain**2
            scaled["lmin"] += 20 * np.log10(gain)
        plain = value_and_grad(getattr(package, kind)("loss", **options), e, t)
        other = value_and_grad(getattr(package, kind)("loss", **scaled), e * gain, t * gain)
        cases.assert_close(other[0], plain[0], 1e-9 * max(1.0, float(plain[0].abs())))
        cases.assert_gradient(other[1] * gain, plain[1], 1e-8)

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_weight_multiplies_everything(kind: str):
    @many
    @given(drawn_settings(kind), drawn_signals(), log(-2, 2))
    def holds(
        options: dict[str, Any], pair: tuple[torch.Tensor, torch.Tensor], factor: float
    ) -> None:
        cls = getattr(package, kind)
        plain = value_and_grad(cls("loss", **options), *pair)
        weight = options["weight"] * factor
        other = value_and_grad(cls("loss", **(options | {"weight": weight})), *pair)
        cases.assert_close(
            other[0], factor * plain[0], 1e-12 * max(1.0, factor * float(plain[0].abs()))
        )
        cases.assert_gradient(other[1], factor * plain[1], 1e-12)

    holds()
