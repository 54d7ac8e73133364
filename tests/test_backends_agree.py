"""Eager code and the reference, over lengths, rows, dtypes and threads."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from cases import ALL_ON, KINDS, SPECTRAL, build, signals, value_and_grad
from torch import Tensor

import torch_l1snr_fast as package
from torch_l1snr_fast.kernels.eager import few, waveform

SIZES = [
    # n_fft, hop, win_length
    (64, 16, 64), (64, 64, 64), (64, 1, 64), (64, 16, 40), (64, 16, 1), (64, 20, 33),
    (63, 16, 63), (37, 11, 37), (37, 11, 20), (31, 31, 31), (13, 1, 13), (50, 7, 50),
    (24, 50, 24), (24, 25, 10), (37, 90, 37), (2, 1, 2), (3, 1, 3), (1, 1, 1), (1, 3, 1), (4, 3, 2),
    (100, 25, 100), (97, 13, 80),
]  # fmt: skip


def compare_backends(loss: Any, e: Tensor, t: Tensor, value: float, gradient: float) -> None:
    with package.use_backend("reference"):
        want = value_and_grad(loss, e.double(), t.double())
    with package.use_backend("eager"):
        got = value_and_grad(loss, e, t)
    cases.assert_close(got[0], want[0], value)
    cases.assert_gradient(got[1], want[1], gradient)


@pytest.mark.parametrize("length", [101, 128])
@pytest.mark.parametrize("level", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_backends_agree_on_every_kind_of_frame(
    sizes: tuple[int, int, int], level: bool, length: int
):
    """Odd, prime and tiny transforms; hops that divide nothing or leave gaps; short windows."""
    options = dict(zip(cases.SMALL, ([n] for n in sizes), strict=False)) | {"min_audio_length": 1}
    loss = build("STFTL1SNRDBLoss", use_regularization=level, l1_weight=0.2, **options)
    compare_backends(loss, *signals(2, 2, length), 1e-11, 1e-10)


@pytest.mark.parametrize("extra", [0, 1, 2, 15, 16, 17])
@pytest.mark.parametrize("n_fft", [32, 33])
def test_backends_agree_just_above_the_shortest_audio(n_fft: int, extra: int):
    """There the reflected borders reach over the whole signal."""
    options = {"n_ffts": [n_fft], "hop_lengths": [5], "win_lengths": [n_fft], "min_audio_length": 1}
    loss = build("STFTL1SNRDBLoss", use_regularization=True, **options)
    compare_backends(loss, *signals(2, n_fft // 2 + 1 + extra), 1e-11, 1e-10)


@pytest.mark.parametrize("window", ["hann", "hamming", "blackman", "bartlett", "kaiser"])
@pytest.mark.parametrize("n_fft", [64, 37])
def test_backends_agree_on_every_window(window: str, n_fft: int):
    options = {"n_ffts": [n_fft], "hop_lengths": [10], "win_lengths": [n_fft - 4]}
    loss = build("STFTL1SNRDBLoss", use_regularization=True, window_fn=window, **options)
    compare_backends(loss, *signals(2, 2, 200), 1e-11, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *cases.HALVES], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree_in_every_dtype(kind: str, dtype: torch.dtype):
    """Against the reference in float64 on the same samples."""
    e, t = signals(2, 2, cases.LENGTH, dtype=dtype)
    exact = dtype == torch.float64
    bound = 1e-11 if exact else cases.float32_bound(kind, e, t, **ALL_ON[kind])
    unit = torch.finfo(dtype).eps / 2
    compare_backends(build(kind, **ALL_ON[kind]), e, t, bound, 1e-10 if exact else unit + 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, *cases.HALVES], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_reference_gradient_has_the_estimates_dtype(kind: str, dtype: torch.dtype):
    e, t = signals(2, 2, cases.LENGTH, dtype=dtype)
    with package.use_backend("reference"):
        got = value_and_grad(build(kind, **ALL_ON[kind]), e, t)
        want = value_and_grad(build(kind, **ALL_ON[kind]), e.double(), t.double())
    assert got[0].dtype == torch.float32
    assert got[1].dtype == dtype
    cases.assert_gradient(got[1], want[1], torch.finfo(dtype).eps / 2 + 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree_on_long_audio(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Split into blocks, so that block borders are passed in both domains."""
    monkeypatch.setattr(waveform, "BLOCK", 1 << 16)
    e, t = signals(1, 2, 200001, dtype=torch.float32)
    bound = 2 * cases.float32_bound(kind, e, t, **ALL_ON[kind])
    compare_backends(build(kind, **ALL_ON[kind]), e, t, bound, 1e-3)


@pytest.mark.parametrize("length", [5, 16, 53, 64])  # less than a chunk, one, some and a rest, some
@pytest.mark.parametrize("kind", ["L1SNRLoss", "L2SNRLoss", "L1SNRDBLoss"])
def test_measures_added_up_one_by_one(kind: str, length: int, monkeypatch: pytest.MonkeyPatch):
    """As of many numbers; of channels that lie apart, too."""
    monkeypatch.setattr(waveform, "TOGETHER", 0)
    monkeypatch.setattr(waveform, "CHUNK", 16)
    e, t = signals(3, 4, length)
    compare_backends(build(kind), e, t, 1e-12, 1e-12)
    compare_backends(build(kind), e[:, ::2].mT.contiguous().mT, t[:, ::2], 1e-12, 1e-12)


@pytest.mark.parametrize("length", [200001, 1 << 18])
@pytest.mark.parametrize("kind", ["noise", "constant", "loud at first"])
def test_sums_of_squares_of_many_numbers(kind: str, length: int):
    """A lane adds up 32 numbers of one sign, each with half a unit in the last place at most."""
    x = {
        "noise": torch.randn(2, 1, length),
        "constant": torch.full((2, 1, length), 0.1234567),
        "loud at first": torch.randn(2, 1, length) * 0.99 ** torch.arange(length).sqrt(),
    }[kind]
    want = x.double().square().sum((1, 2))
    unit = torch.finfo(torch.float32).eps / 2
    bound = (32 + 16) * unit  # a root and its square, and the sum of chunks
    error = waveform.total(x, 2, torch.empty(0)).double() / want - 1
    assert float(error.abs().max()) < bound


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_as_many(kind: str, reduction: str, monkeypatch: pytest.MonkeyPatch):
    """Python's numbers or tensors: the same loss, gradient and components; infinite ones too."""
    e, t = signals(3, 2, cases.LENGTH)
    options = ALL_ON[kind] | {"reduction": reduction}
    silent = {"L1SNRLoss": {"eps": 0.0}, "L2SNRLoss": {"tau": 0.0}}.get(kind, {})
    for estimates, settings in ((0.3 * e, options), (t, options | silent)):
        loss = build(kind, **settings)
        found = []
        for rows in (32, 0):
            monkeypatch.setattr(few, "ROWS", rows)
            _, components = loss(estimates, t, return_components=True)
            found.append((*value_and_grad(loss, estimates, t), *components.values()))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("rows", [1, 7, 700])
def test_backends_agree_on_many_signals(rows: int):
    """Enough of them to be handled in groups."""
    loss = build("MultiL1SNRDBLoss", use_spec_regularization=True)
    compare_backends(loss, *signals(rows, 3, 90), 1e-11, 1e-10)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads: int):
    """Of which each sums frames of its own; some are left over."""
    before = torch.get_num_threads()
    loss = build("MultiL1SNRDBLoss", use_spec_regularization=True)
    torch.set_num_threads(threads)
    try:
        compare_backends(loss, *signals(1, 1, 90007), 1e-11, 1e-10)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [32, 0])  # of which the objective is Python's numbers
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_rows(kind: str, reduction: str, rows: int, monkeypatch: pytest.MonkeyPatch):
    """Two by two, and one alone: all results, and bad samples, are those of all rows at once."""
    monkeypatch.setattr(few, "ROWS", rows)
    e, t = signals(5, 2, cases.LENGTH)
    checked = kind in SPECTRAL
    if checked:
        e[0, 0, 3], e[4, 1, 7] = float("nan"), float("inf")
    found = []
    for size in (1 << 19, 4 * cases.LENGTH):
        monkeypatch.setattr(waveform, "BLOCK", size)
        fresh = build(kind, reduction=reduction, **ALL_ON[kind])
        leaf = e.clone().requires_grad_()
        with cases.recorded() as warned:
            value, components = fresh(leaf, t, return_components=True)
        assert [str(w.message).split(" samples")[0][-2:] for w in warned] == [" 2"] * checked
        (gradient,) = torch.autograd.grad(value, leaf, cases.incoming(value))
        found.append((value, gradient, *components.values()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15, equal_nan=True)
