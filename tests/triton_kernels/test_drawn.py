"""Compiled kernels on drawn options, shapes and layouts, against the definition in float64."""

from __future__ import annotations

from typing import Any

import cases
import oracle
import pytest
import torch
from cases import KINDS, SPECTRAL, value_and_grad
from checks import layouts
from hypothesis import given, settings
from hypothesis import strategies as st
from test_properties import drawn_settings, log

import torch_l1snr_fast as package

# n_fft and hop_length of both routes: with hops of n/4 and n/2 on-chip, the others by torch.fft.
RESOLUTIONS = [(256, 64), (256, 128), (512, 128), (64, 16), (50, 20), (30, 45)]
# Of a constant signal most bins are zero, where the sign is that of a rounding error.
LAYOUTS = ["as it is", *(layouts(torch.zeros(1, 1, 1)).keys() - {"constant"})]


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    return layouts(x).get(layout, x)


@st.composite
def drawn_options(draw: Any, kind: str) -> dict[str, Any]:
    options: dict[str, Any] = draw(drawn_settings(kind))
    if kind in SPECTRAL:
        sizes = draw(st.lists(st.sampled_from(RESOLUTIONS), min_size=1, max_size=3, unique=True))
        options |= {
            "n_ffts": [n for n, _ in sizes],
            "hop_lengths": [hop for _, hop in sizes],
            "win_lengths": [n - draw(st.integers(0, n // 2)) for n, _ in sizes],
            "spec_reg_coef": draw(st.floats(0.0, 1.0)),
        }
    return options


@st.composite
def drawn_signals(draw: Any) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (draw(st.integers(*x)) for x in ((1, 3), (1, 3), (257, 700)))
    error, seed = draw(log(-2, 1)), draw(st.integers(0, 999))
    return cases.signals(*shape, error=error, seed=seed, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_drawn(kind: str, small, device: torch.device):
    layout = st.sampled_from(sorted(LAYOUTS))

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(drawn_options(kind), drawn_signals(), layout, layout)
    def holds(
        options: dict[str, Any], pair: tuple[torch.Tensor, torch.Tensor], of_e: str, of_t: str
    ) -> None:
        module = getattr(package, kind)("loss", reduction="none", **options)

        def loss(e: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return module(laid_out(e, of_e), laid_out(t, of_t))

        with package.use_backend("triton"):
            value, gradient = value_and_grad(loss, *(x.to(device) for x in pair))
        with package.use_backend("reference"):
            _, wanted = value_and_grad(loss, *(x.double() for x in pair))
        e, t = laid_out(pair[0], of_e), laid_out(pair[1], of_t)
        rows, _ = oracle.loss(kind, e, t, **options)
        cases.assert_close(value.cpu(), rows, cases.float32_bound(kind, e, t, **options))
        cases.assert_gradient(gradient.cpu(), wanted, 1e-3)

    holds()
