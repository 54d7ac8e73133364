"""Signals whose loss and gradient are known without a program."""

from __future__ import annotations

import math
from typing import Any

import cases
import pytest
import torch
from cases import KINDS, WAVEFORM, signals, value_and_grad
from torch import Tensor

import torch_l1snr_fast as package

C = 10.0 / math.log(10.0)
ONE = {"n_ffts": [32], "hop_lengths": [8], "win_lengths": [32], "min_audio_length": 32}


@pytest.fixture(autouse=True, params=cases.BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    with package.use_backend(request.param):
        yield


def constant(level: float, *shape: int) -> Tensor:
    return torch.full(shape or (2, 2, 100), level, dtype=torch.float64)


def cosine(frequency: float, length: int = 320, phase: float = 0.0) -> Tensor:
    n = torch.arange(length, dtype=torch.float64)
    return torch.cos(2 * math.pi * frequency * n + phase).reshape(1, length)


# Waveforms


@pytest.mark.parametrize("gain", [0.5, 0.9, 1.1, 2.0, -1.0])
def test_scaled_target(gain: float):
    """e = g t: the error is |g - 1| of the target, and its level |20 log10 g| away."""
    _, t = signals(2, 2, cases.LENGTH)
    t = t * 10  # so that the epsilons are far below
    e = gain * t
    d1 = 10 * math.log10(abs(gain - 1))
    level = abs(20 * math.log10(abs(gain)))
    loss = package.L1SNRDBLoss("x", l1snr_eps=1e-12, dbrms_eps=1e-15, delta_lambda=0.0, lambda0=0.5)
    cases.assert_close(package.L1SNRLoss("x", eps=1e-12)(e, t), d1, 1e-8)
    cases.assert_close(package.L2SNRLoss("x", eps=1e-15, tau=0.0)(e, t), 2 * d1, 1e-8)
    cases.assert_close(loss(e, t), d1 + 0.5 * level, 1e-8)


@pytest.mark.parametrize("gain", [0.5, 0.9, 1.1, 2.0])
def test_scaled_target_in_spectra(gain: float):
    """Both parts lose the same, and the level of magnitudes is as far as that of samples."""
    _, t = signals(2, 2, cases.LENGTH)
    loss = package.STFTL1SNRDBLoss(
        "x", use_regularization=True, l1snr_eps=1e-12, dbrms_eps=1e-20, lambda0=0.5,
        delta_lambda=0.0, spec_reg_coef=0.4, **cases.SMALL,
    )  # fmt: skip
    want = 20 * math.log10(abs(gain - 1)) + 0.4 * 0.5 * abs(20 * math.log10(gain))
    cases.assert_close(loss(gain * t, t), want, 1e-6)


@pytest.mark.parametrize(("e", "t"), [(0.3, 0.1), (0.0, 0.2), (-0.1, 0.1), (0.2, 0.0)])
def test_constants(e: float, t: float):
    """Values and gradients of constant signals, with every epsilon in its place."""
    x, y = constant(e), constant(t)
    error = abs(e - t)
    value, gradient = value_and_grad(package.L1SNRLoss("x"), x, y)
    cases.assert_close(value, 10 * math.log10((error + 1e-3) / (t + 1e-3)), 1e-12)
    slope = C / (error + 1e-3) * math.copysign(1.0, e - t) / x.numel()
    cases.assert_close(gradient / cases.incoming(value), constant(slope), 1e-12)

    value, gradient = value_and_grad(package.L2SNRLoss("x"), x, y)
    power = error**2 + 1e-3 * t**2 + 1e-6
    cases.assert_close(value, 10 * math.log10(power / (t**2 + 1e-6)), 1e-12)
    slope = C / power * 2 * (e - t) / x.numel()
    cases.assert_close(gradient / cases.incoming(value), constant(slope), 1e-11)

    value, gradient = value_and_grad(package.L1SNRLoss("x", l1_weight=1.0), x, y)
    cases.assert_close(value, error, 1e-15)
    want = constant(math.copysign(1.0, e - t) / x.numel()) * cases.incoming(value)
    cases.assert_close(gradient, want, 1e-15)


@pytest.mark.parametrize("factor", [0.1, 0.01, 1e-9, 3.0])
def test_level_matching(factor: float):
    """lambda |L_est - L_ref| of constants, and its gradient with lambda taken as a number."""
    t, e = 0.5, 0.5 * factor
    l_est, l_ref = (10 * math.log10(v**2 + 1e-8) for v in (e, t))
    distance = abs(l_est - l_ref)
    share = min(distance / (l_ref + 60), 1.0)
    lam = 0.1 + (float(torch.tensor(0.9)) * share if factor < 1 else 0.0)
    x, y = constant(e), constant(t)
    with_level = value_and_grad(package.L1SNRDBLoss("x"), x, y)
    without = value_and_grad(package.L1SNRDBLoss("x", use_regularization=False), x, y)
    cases.assert_close(with_level[0] - without[0], lam * distance, 1e-10)
    slope = lam * math.copysign(1.0, l_est - l_ref) * C * 2 * e / (e**2 + 1e-8) / x.numel()
    got = (with_level[1] - without[1]) / cases.incoming(with_level[0])
    assert cases.relative(got, constant(slope)) < 1e-9


def test_silence():
    """A silent target: D1 is the error over eps; a silent estimate of a loud target: 0 dB."""
    silent, loud = constant(0.0), constant(0.5)
    cases.assert_close(package.L1SNRLoss("x")(loud, silent), 10 * math.log10(0.501 / 0.001), 1e-12)
    cases.assert_close(package.L1SNRLoss("x")(silent, loud), 0.0, 1e-12)
    for kind in WAVEFORM[:1] + WAVEFORM[2:]:
        value, gradient = value_and_grad(getattr(package, kind)("x"), silent, silent)
        assert value == 0.0
        assert not gradient.any()
    # L2SNR: eps over eps.
    assert package.L2SNRLoss("x")(silent, silent) == 0.0


@pytest.mark.parametrize("kind", ["STFTL1SNRDBLoss", "MultiL1SNRDBLoss"])
def test_a_silent_estimate_reads_zero_exactly(kind: str):
    """|e - t| and |t| are then the same numbers, whose sums must not be rounded differently."""
    _, t = signals(2, 1, 40009, dtype=torch.float32)
    level = "use_time_regularization" if kind == "MultiL1SNRDBLoss" else "use_regularization"
    loss = getattr(package, kind)("x", **{level: False})
    assert loss(torch.zeros_like(t), t) == 0.0


def test_perfect_estimates_reach_the_floor():
    _, t = signals(1, 2, cases.LENGTH)
    mean = float(t.abs().mean())
    cases.assert_close(package.L1SNRLoss("x")(t, t), 10 * math.log10(1e-3 / (mean + 1e-3)), 1e-10)
    loud = package.L2SNRLoss("x", eps=1e-12)(100 * t, 100 * t)
    cases.assert_close(loud, -30.0, 1e-6)


def test_gradient_of_l1_does_not_depend_on_the_size_of_the_error():
    """Where errors differ a thousandfold, their gradients do not: only signs count."""
    e, t = signals(1, cases.LENGTH)
    for kind in ("L1SNRLoss", "L1SNRDBLoss"):
        loss = getattr(package, kind)(
            "x", **({"use_regularization": False} if "DB" in kind else {})
        )
        _, gradient = value_and_grad(loss, e, t)
        assert gradient.abs().unique().numel() == 1
        assert torch.equal(gradient.sign(), -(e - t).sign()) or torch.equal(
            gradient.sign(), (e - t).sign()
        )


# Spectra


def spectral_l1(**options: Any) -> package.STFTL1SNRDBLoss:
    return package.STFTL1SNRDBLoss("x", l1_weight=1.0, **(ONE | options))


def gain_of(n_fft: int) -> float:
    """Sum of a periodic Hann window over its L2 norm: n/2 over sqrt(3n/8)."""
    return (n_fft / 2) / math.sqrt(3 * n_fft / 8)


@pytest.mark.parametrize("bin_", [3, 8, 12])
def test_cosine_in_one_bin(bin_: int):
    """Under a Hann window a cosine at the centre of a bin fills it and half of both neighbours.

    The frame starts n/2 early, so every frame that the borders do not reach starts at phase
    -pi bin + 2 pi bin hop frame / n; with hop = n/4 the real parts are known cosines of it.
    The signal is even about both ends, so reflecting it continues it and all frames are alike.
    """
    length, n, hop, amplitude = 321, 32, 8, 0.2
    e = amplitude * cosine(bin_ / n, length)
    t = torch.zeros_like(e)
    frames = length // hop + 1
    total_re = total_im = 0.0
    for frame in range(frames):
        phase = 2 * math.pi * bin_ * (frame * hop - n / 2) / n
        for share in (1.0, 0.5, 0.5):  # the bin; its neighbours, of opposite sign
            total_re += share * abs(math.cos(phase)) * amplitude / 2 * gain_of(n)
            total_im += share * abs(math.sin(phase)) * amplitude / 2 * gain_of(n)
    count = frames * (n // 2 + 1)
    want = 0.5 * (total_re + total_im) / count
    # 1e-6: the window is stored in float32, and its leakage elsewhere with it.
    cases.assert_close(spectral_l1()(e, t), want, 1e-6 * want + 3e-8)


def test_direct_current():
    """A constant fills bin 0 with A sum(w), its neighbour with half of that; all is real."""
    n, level = 32, 0.25
    e = constant(level, 1, 1, 320)
    loss = package.STFTL1SNRDBLoss("x", **ONE)
    value, parts = loss(e, torch.zeros_like(e), return_components=True)
    mean = 1.5 * level * gain_of(n) / (n // 2 + 1)
    cases.assert_close(parts["stft_32_8_32/l1"], 0.5 * mean, 1e-6 * mean)
    # Re: mean over eps. Im: nothing over nothing, but for what the float32 window leaks: at most
    # 32 taps of 0.29 wrong by 2^-25 each, over the eps of 1e-3.
    leaked = n * 0.29 * 2**-25 * level / 1e-3
    cases.assert_close(value, 10 * math.log10((mean + 1e-3) / 1e-3), C * leaked)


def test_nyquist():
    """The highest frequency fills the last bin, which has a neighbour on one side only."""
    n, level = 32, 0.25
    e = level * cosine(0.5, 321)
    mean = 1.5 * level * gain_of(n) / (n // 2 + 1)
    cases.assert_close(spectral_l1()(e, torch.zeros_like(e)), 0.5 * mean, 1e-6 * mean)


def test_impulse():
    """Each frame that sees it has magnitude |w| in every bin, so the window tells the level."""
    n, hop, length, size = 32, 8, 320, 0.7
    e = torch.zeros(1, length, dtype=torch.float64)
    e[0, 160] = size
    w = torch.hann_window(n, dtype=torch.float64)
    w = w / w.square().sum().sqrt()
    taps = [
        w[160 + n // 2 - f * hop]
        for f in range(length // hop + 1)
        if 0 <= 160 + n // 2 - f * hop < n
    ]
    assert len(taps) == 4
    count = (n // 2 + 1) * (length // hop + 1)
    power = size**2 * sum(float(x) ** 2 for x in taps) * (n // 2 + 1) / count
    loss = package.STFTL1SNRDBLoss("x", use_regularization=True, **ONE)
    _, parts = loss(e, torch.zeros_like(e), return_components=True)
    cases.assert_close(parts["stft_32_8_32/dbrms_estimates"], 10 * math.log10(power + 1e-8), 1e-5)
    cases.assert_close(parts["stft_32_8_32/dbrms_actuals"], -80.0, 1e-9)


def test_gradient_of_an_impulse_in_direct_current():
    """One frame, one bin pattern: the adjoint written out as a sum, for odd and even sizes."""
    for n in (8, 9):
        sizes = {"n_ffts": [n], "hop_lengths": [3], "win_lengths": [n], "min_audio_length": 1}
        e, t = signals(1, 20)
        value, gradient = value_and_grad(spectral_l1(window_fn="hamming", **sizes), e, t)
        w = torch.hamming_window(n).double()
        w = (w / w.square().sum().sqrt()).float().double()
        pad, bins, length = n // 2, n // 2 + 1, 20
        frames = (length + 2 * pad - n) // 3 + 1
        want = torch.zeros(length, dtype=torch.float64)
        place = [
            abs(i - pad) for i in range(length + 2 * pad)
        ]  # where each padded sample came from
        place = [2 * (length - 1) - i if i >= length else i for i in place]
        d = (e - t)[0]
        k = torch.arange(bins, dtype=torch.float64)
        for f in range(frames):
            index = place[f * 3 : f * 3 + n]
            angle = 2 * math.pi * k[:, None] * torch.arange(n) / n
            re, im = torch.cos(angle) * w, -torch.sin(angle) * w
            im[0] = 0.0
            if n % 2 == 0:
                im[-1] = 0.0
            x = d[index]
            want.index_add_(0, torch.tensor(index), (re * (re @ x).sign()[:, None]).sum(0))
            want.index_add_(0, torch.tensor(index), (im * (im @ x).sign()[:, None]).sum(0))
        want = want[None] * 0.5 / (bins * frames) * cases.incoming(value)
        cases.assert_gradient(gradient, want, 1e-10)


# Both


def test_combination_of_known_parts():
    """(1 - s) time + s spec, both from the same scaled target."""
    _, t = signals(1, 2, cases.LENGTH)
    loss = package.MultiL1SNRDBLoss(
        "x",
        weight=3.0,
        spec_weight=0.25,
        use_time_regularization=False,
        l1snr_eps=1e-12,
        **cases.SMALL,
    )
    d1 = 10 * math.log10(0.1)
    cases.assert_close(loss(1.1 * t, t), 3 * (0.75 * d1 + 0.25 * 2 * d1), 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_swapping_signs_changes_nothing(kind: str):
    e, t = signals(2, 2, cases.LENGTH)
    loss = cases.build(kind)
    assert torch.equal(loss(-e, -t), loss(e, t))
