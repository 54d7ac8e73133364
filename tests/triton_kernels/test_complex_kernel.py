"""MultiResolutionComplexSTFTLoss by its kernel, over every boundary of frames and stretches."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from checks import layouts
from torch import Tensor

import torch_l1snr_fast as package
from torch_l1snr_fast import complex_stft as module
from torch_l1snr_fast.kernels.complex_plan import ComplexPlan
from torch_l1snr_fast.kernels.plan import Resolution
from torch_l1snr_fast.kernels.triton import complex_stft as fused
from torch_l1snr_fast.kernels.triton.launching import Launch

# Of means, relative: as of the sums in test_onchip, whose transforms these are, and 2^-22.9 of a
# reciprocal root.
MEANS = 7e-7
# Of the gradient's norm. A direction is as wrong as its bin by its modulus: 6.6 x 2^-24 rms, and of
# noise's bins few are far below the rms, which costs a factor of about 2; roots, windows and adding
# up are below that.
GRADIENT = 2e-6

SMALL: dict[str, Any] = {"win_lengths": [256], "n_fft": 256, "hop_lengths": 47}
# One of the windows is of double frames: the other's transform does them too.
DOUBLE: dict[str, Any] = {"win_lengths": [512, 200], "n_fft": 256, "hop_lengths": 47}
# Stretches are of at least 512 samples, the last with what is left.
RESOLUTIONS: dict[str, tuple[dict[str, Any], int]] = {
    "one hop in a quarter of frames": (SMALL, 1100),
    "just long enough": (SMALL, 129),
    "one stretch": (SMALL, 1023),
    "stretches end where frames do": (SMALL | {"hop_lengths": 64}, 1024),
    "hops of half a frame": (SMALL | {"hop_lengths": 128}, 1100),
    "windows in longer transforms": (
        {"win_lengths": [100, 31, 1], "n_fft": 256, "hop_lengths": [50, 128, 100]},
        1100,
    ),
    "double frames": (DOUBLE, 1100),
    "double frames, just long enough": (DOUBLE, 257),
    "double frames, hops of half of them, not in their order": (
        {"win_lengths": [200, 512, 256], "n_fft": 256, "hop_lengths": [90, 256, 128]},
        1100,
    ),
    "two launches, not in their order": (
        {"win_lengths": [200, 1024, 256], "n_fft": 256, "hop_lengths": [90, 400, 128]},
        1100,
    ),
    "2048": ({"win_lengths": [1500], "n_fft": 2048, "hop_lengths": 700}, 1100),
    "4096": ({"win_lengths": [4096], "n_fft": 4096, "hop_lengths": 2000}, 2100),
}


def signals(*shape: int, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    e, t = cases.signals(*shape, seed=seed, dtype=torch.float32)
    return e.to(device), t.to(device)


def plan_of(**settings: Any) -> ComplexPlan:
    return package.MultiResolutionComplexSTFTLoss("loss", **settings)._plan()


def compute(e: Tensor, t: Tensor, save: bool = True, **settings: Any) -> Any:
    return fused.complex_stft(plan_of(**settings), e, t, save)


def expected(e: Tensor, t: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    plan = plan_of(**settings)
    x = e.detach().double().requires_grad_()
    means = module.reference(plan, x, t.double())
    (gradient,) = torch.autograd.grad(module.weighted(plan, means).sum(), x)
    return means.detach(), gradient


def check(e: Tensor, t: Tensor, **settings: Any) -> None:
    means, gradient = compute(e, t, **settings)
    want, want_gradient = expected(e, t, **settings)
    assert means.dtype == gradient.dtype == torch.float32
    assert float(((means - want) / want).abs().max()) <= MEANS
    cases.assert_gradient(gradient, want_gradient, GRADIENT)
    # One wrong sample would drown in the norm.
    worst = (gradient - want_gradient).abs().amax() / want_gradient.abs().amax()
    assert float(worst) <= 8 * GRADIENT


LARGE = ("2048", "4096")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in RESOLUTIONS],
)
def test_means_and_gradient(name: str, device: torch.device):
    settings, length = RESOLUTIONS[name]
    weights = {"weight": 0.7, "waveform_weight": 2.5}
    check(*signals(1, 1, length, device=device), **settings, **weights)


def test_evaluation(device: torch.device):
    """The means alone: frames that reach into a stretch from before it are not read."""
    e, t = signals(1, 2, 1100, device=device)
    for settings in (SMALL, SMALL | {"hop_lengths": 128}, DOUBLE):
        means, gradient = compute(e, t, save=False, **settings)
        want, _ = expected(e, t, **settings)
        assert float(((means - want) / want).abs().max()) <= MEANS
        assert gradient is None


def test_rows_and_channels(device: torch.device):
    check(*signals(2, 3, 600, device=device), **(SMALL | {"hop_lengths": 100}))


@pytest.mark.parametrize(
    ("estimates", "actuals"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float16),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_dtypes(estimates: torch.dtype, actuals: torch.dtype, device: torch.device):
    e, t = signals(1, 1, 300, device=device)
    check(e.to(estimates), t.to(actuals), **(SMALL | {"hop_lengths": 128}))


def test_layouts(device: torch.device):
    e, t = signals(2, 2, 300, device=device)
    settings = SMALL | {"hop_lengths": 128}
    for (name, e_view), t_view in zip(layouts(e).items(), layouts(t).values(), strict=True):
        got = compute(e_view, t_view, **settings)
        want = compute(e_view.contiguous(), t_view.contiguous(), **settings)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), name


def test_rows_far_apart(apart: Any, device: torch.device):
    e, t = (x.half() for x in signals(3, 1, 200, device=device))
    settings = SMALL | {"hop_lengths": 128}
    want = compute(e, t, **settings)
    got = compute(*apart(e, t), **settings)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_silent_frames_get_nothing_of_their_partners(device: torch.device):
    """The difference ends amid the signal: of a pair one frame sounds, one is zero."""
    # The first silent frame is the first of its pair, or the second; or no frame has a partner.
    for length, settings in ((340, SMALL), (387, SMALL), (340, DOUBLE)):
        e, t = signals(1, 1, 900, device=device)
        e[..., length:] = t[..., length:]
        _, gradient = compute(e, t, **settings)
        _, want = expected(e, t, **settings)
        cases.assert_gradient(gradient, want, GRADIENT)
        silent = want == 0
        assert silent.sum() > 40
        assert not gradient[silent].any()
        means, gradient = compute(t, t, **settings)
        assert not means.any()
        assert not gradient.any()


def test_a_transform_serves_frames_of_its_size_and_of_twice_that():
    def launches(*sizes: int) -> list[tuple[int, list[int]]]:
        return fused.launches(tuple(Resolution(n, 64, n) for n in sizes))

    assert launches(4096, 2048, 2048) == [(2048, [0, 1, 2])]
    assert launches(256, 4096, 512, 256) == [(256, [2, 0, 3]), (2048, [1])]
    assert launches(1024, 256) == [(256, [1]), (1024, [0])]


def test_unknown_samples_show(device: torch.device):
    e, t = signals(2, 1, 400, device=device)
    e[0, 0, 100] = torch.nan
    means, gradient = compute(e, t, **(SMALL | {"hop_lengths": 100}))
    assert means.isnan()[:, 0].all()
    assert means.isfinite()[:, 1].all()
    assert gradient[0].isnan().any()
    assert gradient[1].isfinite().all()


def test_module(device: torch.device, monkeypatch: pytest.MonkeyPatch):
    """From the module to the launch, with an incoming gradient; what is not supported, by eager."""
    e, t = signals(2, 2, 400, device=device)
    launched: list[Any] = []
    launch = Launch.__call__

    def note(self: Launch, **tensors: Any) -> None:
        launched.append(self.kernel)
        launch(self, **tensors)

    monkeypatch.setattr(Launch, "__call__", note)
    for options in (SMALL, SMALL | {"n_fft": 320}, SMALL | {"hop_lengths": 129}):
        launched.clear()
        loss = package.MultiResolutionComplexSTFTLoss("loss", **options, reduction="none")
        with package.use_backend("triton"):
            got = cases.value_and_grad(loss, e, t)
        with package.use_backend("reference"):
            want = cases.value_and_grad(loss, e.double(), t.double())
        assert float(((got[0] - want[0]) / want[0]).abs().max()) <= MEANS
        cases.assert_gradient(got[1], want[1].float(), GRADIENT)
        assert len(launched) == (2 if options is SMALL else 0)  # the differences' is one
