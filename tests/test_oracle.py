"""The oracle against numbers worked out by hand: it must not need the library to be right."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch

TWO_ROWS = np.array([[0.3, -0.1, 0.2, -0.2], [0.0, 0.0, 0.4, -0.4]])
TARGET = np.array([[0.1, 0.1, -0.2, 0.2], [0.0, 0.0, 0.0, 0.0]])
# Row 0: errors .2 .2 .4 .4, mean .3; targets .1 .1 .2 .2, mean .15. Row 1: mean error .2, target 0.


def test_l1snr_by_hand():
    rows, parts = oracle.l1snr(TWO_ROWS, TARGET, eps=0.05)
    np.testing.assert_allclose(rows, [10 * math.log10(0.35 / 0.2), 10 * math.log10(0.25 / 0.05)])
    np.testing.assert_allclose(parts["time/l1"], [0.3, 0.2])


def test_l1snr_blend_by_hand():
    rows, _ = oracle.l1snr(TWO_ROWS, TARGET, eps=0.05, l1_weight=0.25, ref_level=0.15, weight=2.0)
    d1 = 10 * math.log10(0.35 / 0.2)
    l1 = 0.3 * (10 / math.log(10)) / 0.2
    assert rows[0] == pytest.approx(2 * (0.75 * d1 + 0.25 * l1))


def test_pure_l1_is_the_raw_mean():
    for loss in (oracle.l1snr, oracle.l1snrdb):
        rows, parts = loss(TWO_ROWS, TARGET, l1_weight=1.0)
        np.testing.assert_allclose(rows, [0.3, 0.2])
        assert list(parts) == ["time/l1"]


def test_l2snr_by_hand():
    # Row 0: squares .04 .04 .16 .16, mean .1; target .01 .01 .04 .04, mean .025.
    rows, _ = oracle.l2snr(TWO_ROWS, TARGET, eps=0.075, tau=1.0)
    assert rows[0] == pytest.approx(10 * math.log10((0.1 + 0.025 + 0.075) / (0.025 + 0.075)))


def test_silence_reads_minus_80_dbrms():
    np.testing.assert_allclose(oracle.dbrms(np.zeros((2, 5))), [-80.0, -80.0])
    np.testing.assert_allclose(oracle.dbrms(np.full((1, 2, 5), 0.1), eps=0.0), [-20.0])


@pytest.mark.parametrize(
    ("l_est", "l_ref", "lmin", "weight"),
    [
        pytest.param(-30.0, -20.0, -60.0, 0.1 + 0.9 * 10 / 40, id="too quiet"),
        pytest.param(-80.0, -20.0, -60.0, 0.1 + 0.9, id="silent: clipped at one"),
        pytest.param(-10.0, -20.0, -60.0, 0.1, id="too loud"),
        pytest.param(-90.0, -70.0, -60.0, 0.1, id="target below lmin"),
        pytest.param(-70.0, -59.0, -60.0, 0.1 + 0.9, id="target just above lmin"),
        pytest.param(-20.0, -20.0, -60.0, 0.1, id="equal"),
    ],
)
def test_adaptive_weight_by_hand(l_est: float, l_ref: float, lmin: float, weight: float):
    got = oracle.adaptive_weight(np.array([l_est]), np.array([l_ref]), lmin, 0.1, 0.9)
    assert got[0] == pytest.approx(weight, abs=1e-7)  # 0.9 is rounded to float32


def test_level_matching_by_hand():
    e, t = np.full((1, 4), 0.01), np.full((1, 4), 0.1)
    rows, parts = oracle.l1snrdb(e, t, reg_coef=0.5, dbrms_eps=1e-30)
    assert parts["time/lambda"][0] == pytest.approx(0.1 + 0.9 * 20 / 40)
    assert parts["time/level_matching"][0] == pytest.approx(20 * (0.1 + 0.9 * 20 / 40))
    assert rows[0] == pytest.approx(parts["time/d1"][0] + 0.5 * 20 * (0.1 + 0.9 * 20 / 40))


@pytest.mark.parametrize("name", ["hann", "hamming", "blackman", "bartlett"])
def test_windows_are_the_textbook_ones(name: str):
    """torch's windows are periodic: the symmetric one of length n + 1 without its last sample."""
    numpy_name = {"hann": "hanning"}.get(name, name)
    textbook = getattr(np, numpy_name)(13)[:-1]
    np.testing.assert_allclose(
        oracle.window(name, 12), textbook / np.sqrt((textbook**2).sum()), atol=2e-7
    )


def test_kaiser_window_is_the_textbook_one():
    textbook = np.kaiser(13, 12.0)[:-1]
    np.testing.assert_allclose(
        oracle.window("kaiser", 12), textbook / np.sqrt((textbook**2).sum()), atol=2e-7
    )


@pytest.mark.parametrize(("n_fft", "win_length"), [(8, 8), (8, 5), (7, 7), (7, 4)])
def test_stft_is_the_sum_it_stands_for(n_fft: int, win_length: int):
    """Each bin written out as a sum, with the reflected sample looked up one by one."""
    x = np.random.default_rng(0).standard_normal(21)
    hop, length, pad = 3, 21, n_fft // 2
    w = oracle.window("hamming", win_length)
    got = oracle.stft(x[None], n_fft, hop, win_length, "hamming")[0]
    assert got.shape == (n_fft // 2 + 1, (length + 2 * pad - n_fft) // hop + 1)
    for k in range(got.shape[0]):
        for frame in range(got.shape[1]):
            total = 0j
            for j in range(win_length):
                place = j + (n_fft - win_length) // 2  # in the frame
                i = abs(frame * hop + place - pad)  # in the signal, reflected at the left border
                i = 2 * (length - 1) - i if i >= length else i  # and at the right one
                total += w[j] * x[i] * np.exp(-2j * math.pi * k * place / n_fft)
            assert got[k, frame] == pytest.approx(total, abs=1e-12)


def test_window_has_unit_energy_so_white_noise_keeps_its_level():
    """The STFT is divided by the window's L2 norm, not by sqrt(n_fft): a trap in the definition."""
    x = np.random.default_rng(0).standard_normal((1, 20000))
    spectrum = oracle.stft(x, 64, 64, 64)[..., 1:-1, :]
    assert np.mean(np.abs(spectrum) ** 2) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(
    ("length", "n_fft", "hop", "fits"),
    [
        (33, 64, 16, True),
        (32, 64, 16, False),
        (40, 64, 41, False),
        (41, 64, 41, True),
        (5, 9, 1, True),
    ],
)
def test_usable(length: int, n_fft: int, hop: int, fits: bool):
    assert oracle.usable(length, n_fft, hop) is fits


def test_stft_loss_averages_over_what_fits_and_falls_back_when_nothing_does():
    e, t = np.random.default_rng(0).standard_normal((2, 1, 20))
    sizes = {"n_ffts": (8, 64), "hop_lengths": (4, 16), "win_lengths": (8, 64)}
    one = {"n_ffts": (8,), "hop_lengths": (4,), "win_lengths": (8,), "min_audio_length": 1}
    both, parts = oracle.stft_l1snrdb(e, t, min_audio_length=1, **sizes)
    np.testing.assert_array_equal(both, oracle.stft_l1snrdb(e, t, **one)[0])
    assert set(parts) == {"stft_8_4_8/d1", "stft_8_4_8/l1"}
    short, parts = oracle.stft_l1snrdb(e, t, min_audio_length=21, use_regularization=True, **sizes)
    np.testing.assert_array_equal(short, oracle.l1snrdb(e, t, reg_coef=0.1)[0])
    assert "fallback/d1" in parts


def test_stft_loss_from_its_parts():
    e, t = np.random.default_rng(0).standard_normal((2, 1, 2, 20))
    one = {"n_ffts": (8,), "hop_lengths": (4,), "win_lengths": (8,), "min_audio_length": 1}
    rows, _ = oracle.stft_l1snrdb(e, t, l1_weight=0.5, ref_level=0.2, **one)
    x, y = oracle.stft(e, 8, 4, 8), oracle.stft(t, 8, 4, 8)
    want = 0.0
    for a, b in ((x.real, y.real), (x.imag, y.imag)):
        err, ref = np.abs(a - b).mean(), np.abs(b).mean()
        want += 0.5 * 10 * math.log10((err + 1e-3) / (ref + 1e-3))
        want += 0.5 * 0.5 * err * 2 * (10 / math.log(10)) / (0.19 * 0.2 + 1e-3)
    assert rows[0] == pytest.approx(want)


def test_multi_is_the_weighted_sum():
    e, t = np.random.default_rng(0).standard_normal((2, 2, 600))
    rows, _ = oracle.multi_l1snrdb(e, t, weight=3.0, spec_weight=0.2, lambda0=0.4)
    time = oracle.l1snrdb(e, t, lambda0=0.4)[0]
    spec = oracle.stft_l1snrdb(
        e, t, n_ffts=(512, 1024), hop_lengths=(128, 256), win_lengths=(512, 1024)
    )[0]
    np.testing.assert_allclose(rows, 3 * (0.8 * time + 0.2 * spec))


def test_takes_tensors():
    x = torch.tensor(TWO_ROWS, dtype=torch.float32)
    rows, _ = oracle.loss("L1SNRLoss", x, torch.tensor(TARGET))
    assert rows.dtype == np.float64
