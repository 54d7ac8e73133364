"""Bad, silent, short and half-precision input, casts around the loss: what the package promises.

Without torch-l1-snr; test_upstream.py compares the same ground with it.
"""

from __future__ import annotations

import re
from typing import Any

import cases
import pytest
import torch
from cases import BAD, KINDS, SPECTRAL, build, signals, spoiled, value_and_grad

import torch_l1snr_fast as package


@pytest.mark.parametrize("kind", KINDS)
def test_equal_signals_have_zero_gradient(kind: str):
    """|x| has gradient 0 at 0, exactly: silence and padding make that common."""
    _, t = signals(2, 2, cases.LENGTH)
    _, gradient = value_and_grad(build(kind), t, t)
    assert not gradient.any()


@pytest.mark.parametrize(
    ("length", "options", "cause"),
    [
        (30, {"min_audio_length": 31}, r"length 30 .*min_audio_length \(31\)"),
        (
            32,  # one less than what the border of the smallest transform takes
            {"n_ffts": [64, 128, 256], "win_lengths": [64, 128, 256]},
            r"length 32 .*\[64, 128, 256\]",
        ),
        (48, {"n_ffts": [64, 96, 32], "win_lengths": [64, 96, 32]}, r"length 48 .*\[96\]"),
        (40, {"hop_lengths": [41, 16, 8]}, r"length 40 .*\[64\]"),
    ],
    ids=["min_audio_length", "none fits", "dropped by n_fft", "dropped by hop"],
)
@pytest.mark.parametrize("kind", SPECTRAL)
def test_warning_names_the_cause_and_the_caller(
    kind: str, length: int, options: dict[str, Any], cause: str
):
    options = {"min_audio_length": 10} | options
    loss = build(kind, **options)
    with cases.recorded() as caught:
        loss(*signals(1, length))
    (warning,) = caught
    assert warning.category is RuntimeWarning
    assert warning.filename == __file__, "the warning points into the library"
    with pytest.warns(RuntimeWarning, match=cause):
        build(kind, **options)(*signals(1, length))


@pytest.mark.parametrize("kind", SPECTRAL)
def test_warning_of_bad_samples_counts_them_and_names_the_caller(kind: str):
    e, t = signals(2, cases.LENGTH)
    e[0, :3], t[1, 5] = torch.nan, torch.inf
    with cases.recorded() as caught:
        getattr(package, kind)("the loss", **cases.SMALL)(e, t)
    (warning,) = caught
    assert warning.category is RuntimeWarning
    assert warning.filename == __file__, "the warning points into the library"
    assert re.search("the loss(_spec)?: 4 samples.*check_finite=False", str(warning.message))


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("options", [{}, {"l1_weight": 1.0}, {"use_regularization": True}], ids=str)
def test_unchecked_input_shows(bad: tuple[float, str], options: dict[str, Any]):
    """check_finite=False: torch-l1-snr drops the resolution; here loss and gradient both tell."""
    e, t = spoiled(bad)
    with cases.recorded() as caught:
        value, gradient = value_and_grad(
            build("STFTL1SNRDBLoss", check_finite=False, **options), e, t
        )
    assert not caught
    assert not value.isfinite()
    assert not gradient[0].isfinite().all()
    assert gradient[1].isfinite().all(), "a bad row spoils another"


@pytest.mark.parametrize("kind", SPECTRAL)
@pytest.mark.parametrize("size", [3e38, 1e37])
def test_overflow_shows(kind: str, size: float):
    """Finite samples whose sums are not: no resolution is dropped, no gradient silently zero."""
    e, t = signals(2, cases.LENGTH, dtype=torch.float32)
    e[0] = size
    with cases.recorded():
        value, gradient = value_and_grad(build(kind), e, t)
    assert not value.isfinite()
    assert not gradient[0].isfinite().all()
    assert gradient[1].isfinite().all()


@pytest.mark.parametrize("backend", cases.BACKENDS)
@pytest.mark.parametrize(
    ("n_fft", "hop", "length", "place"),
    [
        pytest.param(8, 40, 100, 20, id="between frames 0 to 3 and 36 to 43"),
        pytest.param(8, 8, 15, 13, id="after the last frame, which ends at 11"),
        pytest.param(9, 6, 15, 14, id="in the last frame"),
    ],
)
def test_bad_sample_outside_of_frames_is_noticed(
    n_fft: int, hop: int, length: int, place: int, backend: str
):
    """Large hops leave samples unread; torch-l1-snr's scan sees them all."""
    e, t = signals(1, length)
    e[0, place] = torch.nan
    sizes = {"n_ffts": [n_fft], "win_lengths": [n_fft], "hop_lengths": [hop]}
    loss = build("STFTL1SNRDBLoss", min_audio_length=8, **sizes)
    with package.use_backend(backend), cases.recorded() as caught:
        value, gradient = value_and_grad(loss, e, t)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert cases.categories(caught) == [RuntimeWarning]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(kind: str, dtype: torch.dtype):
    e, t = signals(2, cases.LENGTH, dtype=dtype)
    plain = value_and_grad(build(kind), e, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = value_and_grad(build(kind), e, t)
    for a, b in zip(plain, cast, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cast", ["half", "double", "bfloat16", "float"])
def test_casting_the_loss_changes_nothing(kind: str, cast: str, dtype: torch.dtype):
    """A trainer that calls model.half() reaches its losses too; torch-l1-snr then returns -0.0."""
    e, t = signals(2, cases.LENGTH, dtype=dtype)
    plain = value_and_grad(build(kind), e, t)
    after = value_and_grad(getattr(build(kind), cast)(), e, t)
    assert all(torch.equal(a, b) for a, b in zip(plain, after, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *cases.HALVES], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_values_in_every_dtype(kind: str, dtype: torch.dtype):
    """The exact loss of the samples as they are, computed in float32 or better."""
    e, t = signals(2, 2, cases.LENGTH, dtype=dtype)
    value = build(kind)(e, t)
    exact = dtype == torch.float64
    assert value.dtype == (dtype if exact else torch.float32)
    bound = 1e-10 if exact else cases.float32_bound(kind, e, t)
    cases.assert_close(value, cases.expected(kind, e, t)[0].mean(), bound)


@pytest.mark.parametrize("backend", cases.BACKENDS)
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("options", [{}, {"l1_weight": 1.0}, {"min_audio_length": 302}], ids=str)
def test_repaired_samples(bad: tuple[float, str], options: dict[str, Any], backend: str):
    """NaN counts as silence and Inf as full scale; neither gets a gradient."""
    e, t = spoiled(bad)
    clean = [x.nan_to_num(nan=0.0, posinf=1.0, neginf=-1.0) for x in (e, t)]
    loss = build("STFTL1SNRDBLoss", use_regularization=True, **options)
    with package.use_backend(backend), cases.recorded() as caught:
        got, want = value_and_grad(loss, e, t), value_and_grad(loss, *clean)
    assert caught
    assert torch.equal(got[0], want[0])
    cases.assert_gradient(got[1], want[1] * e.isfinite(), 1e-12)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("kind", ["L1SNRLoss", "L2SNRLoss", "L1SNRDBLoss", "MultiL1SNRDBLoss"])
def test_waveforms_are_not_repaired(kind: str, bad: tuple[float, str]):
    e, t = spoiled(bad)
    with cases.recorded():
        value, gradient = value_and_grad(build(kind), e, t)
    assert not value.isfinite()
    assert not gradient[0].isfinite().all()
    assert gradient[1].isfinite().all(), "a bad row spoils another"
