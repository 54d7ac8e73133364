"""What the whole backend promises: dtypes, strides, launches, memory, nothing written to."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from checks import (
    ENERGY,
    LEVEL,
    MULTI,
    PURE,
    SPECTRUM,
    WAVEFORM,
    check,
    launches,
    layouts,
    run,
    signals,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import torch_l1snr_fast as package
from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.plan import Plan, Resolution
from torch_l1snr_fast.kernels.triton import fft, offchip, stft
from torch_l1snr_fast.kernels.triton.objective import settings

HALF = (torch.bfloat16, torch.float16)
DEFAULT = MULTI._replace(resolutions=tuple(Resolution(n, n // 4, n) for n in (512, 1024, 2048)))


@pytest.fixture
def as_chosen(off_chip, monkeypatch: pytest.MonkeyPatch) -> None:
    """The route that a user gets."""
    monkeypatch.setattr(kernels, "stft_route", stft.stft_route)


@pytest.fixture(autouse=True)
def off_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "stft_route", lambda *_: offchip)


# Dtypes. A float32 sum of few terms and an FFT of 32 samples are good to some 2^-24; the gradient
# is a few signs, none of which lies near a zero here, times a coefficient.


def test_float32(small, device: torch.device):
    check(MULTI, *signals(2, 1, 45, dtype=torch.float32, device=device), bound=2e-6)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision(dtype: torch.dtype, small, device: torch.device):
    """Read as it is, computed in float32, rounded once."""
    e, t = signals(2, 1, 37, dtype=dtype, device=device)
    for plan in (MULTI, Plan(LEVEL, None)):
        got = run(kernels, plan, e, t)
        want = run(kernels, plan, e.float(), t.float())
        assert torch.equal(got.evaluation.loss, want.evaluation.loss)
        assert torch.equal(got.gradient, want.gradient.to(dtype))


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float64),
        (torch.float64, torch.float32),
    ],
    ids=str,
)
def test_mixed_dtypes(dtypes: tuple[torch.dtype, torch.dtype], small, device: torch.device):
    e, t = signals(2, 1, 45, device=device)
    e, t = e.to(dtypes[0]), t.to(dtypes[1])
    bound = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float32: 2e-6}
    check(Plan(WAVEFORM, None), e, t, bound=bound.get(e.dtype, 1e-12))
    check(MULTI, e, t, bound=bound.get(e.dtype, 1e-12))


# Layouts


@pytest.mark.parametrize("name", layouts(torch.ones(2, 2, 3)))
def test_layouts(name: str, small, device: torch.device):
    e, t = signals(2, 2, 25, device=device)
    plan = Plan(ENERGY, SPECTRUM, (Resolution(16, 9, 16),), sanitize_spectrum=True)
    want = run(kernels, plan, layouts(e)[name].contiguous(), t)
    got = run(kernels, plan, layouts(e)[name], t)
    assert torch.equal(got.gradient, want.gradient)
    want = run(kernels, plan, e, layouts(t)[name].contiguous())
    got = run(kernels, plan, e, layouts(t)[name])
    assert torch.equal(got.gradient, want.gradient)


def test_no_copies_of_neighbouring_samples(device: torch.device):
    for name in ("sliced", "rows apart", "expanded", "one row for all"):
        e, t = (layouts(x)[name] for x in signals(2, 2, 60, device=device))
        with launches() as names:
            kernels.statistics(Plan(LEVEL, None), e, t, save=True)
        assert names == ["waveform_statistics_kernel"]


# Repeatability


def test_same_bits_again_and_saved_tensors_untouched(small, device: torch.device):
    e, t = signals(2, 1, 45, dtype=torch.float32, device=device)
    found = kernels.statistics(MULTI, e, t, save=True)
    saved = [None if s is None else s.clone() for s in found.saved]
    value = kernels.objective(MULTI, found.partials, 1, 45, torch.float32)
    first, second = (
        kernels.gradient(MULTI, found.saved, value.coefficients, e, e.dtype) for _ in range(2)
    )
    assert torch.equal(first, second)
    for kept, copy in zip(found.saved, saved, strict=True):
        assert kept is copy or torch.equal(kept, copy)
    again = kernels.statistics(MULTI, e, t, save=True)
    for a, b in zip(found.partials, again.partials, strict=True):
        assert torch.equal(a, b)


def test_nothing_is_saved_for_evaluation(small, device: torch.device):
    e, t = signals(2, 1, 45, device=device)
    saving, not_saving = (kernels.statistics(MULTI, e, t, save=s) for s in (True, False))
    assert set(not_saving.saved) == {None}
    for a, b in zip(saving.partials, not_saving.partials, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["L1SNRDBLoss", "MultiL1SNRDBLoss"])
def test_gradcheck_of_the_losses(kind: str, small, device: torch.device):
    """Through the autograd.Function, by finite differences in float64."""
    stft = {"n_ffts": [8, 9], "hop_lengths": [3, 4], "win_lengths": [8, 7], "min_audio_length": 9}
    options = stft | {"use_spec_regularization": True} if kind == "MultiL1SNRDBLoss" else {}
    # lambda is detached, so what depends on it would not be found by differences.
    loss = getattr(package, kind)("loss", delta_lambda=0.0, **options)
    e, t = signals(2, 1, 13, device=device)
    with package.use_backend("triton"):
        torch.autograd.gradcheck(lambda x: loss(x, t), e.requires_grad_(), fast_mode=True)


# Launches and memory, of the real configuration; kernels are not run


def launched(plan: Plan, dtype: torch.dtype = torch.float32) -> tuple[list[str], list[str]]:
    """Forward and backward, windows and settings being at hand."""
    e, t = signals(2, 2, 4801, dtype=dtype)
    settings(plan, e.device)
    for res in plan.resolutions:
        res.window(torch.float32, e.device)
        fft.twiddles(res.n_fft, e.device)
    with launches() as forward:
        found = kernels.statistics(plan, e, t, save=True)
        value = kernels.objective(plan, found.partials, 2, 4801, torch.float32)
    with launches() as backward:
        kernels.gradient(plan, found.saved, value.coefficients, e, torch.float32)
    return forward, backward


def test_launches_of_the_default_loss():
    """22, against 283 of torch-l1-snr."""
    forward, backward = launched(DEFAULT)
    spectrum = ["frame_kernel", "_fft_r2c", "spectrum_statistics_kernel"]
    first = ["waveform_statistics_kernel", "unknown_kernel"]
    assert forward == [*first, *3 * spectrum, "objective_kernel"]
    spectrum = ["spectrum_gradient_kernel", "_fft_c2c", "overlap_add_kernel"]
    assert backward == ["waveform_gradient_kernel", *3 * spectrum]


@pytest.mark.usefixtures("as_chosen")
def test_launches_of_the_default_loss_on_chip():
    """The gradient of the waveform term is computed with that of the first resolution."""
    forward, backward = launched(DEFAULT)
    spectra = 3 * ["stft_statistics_kernel"]
    assert forward == ["waveform_statistics_kernel", *spectra, "objective_kernel"]
    assert backward == 3 * ["stft_gradient_kernel"]


@pytest.mark.parametrize("term", [WAVEFORM, LEVEL, ENERGY, PURE])
def test_launches_in_the_waveform_domain(term):
    expected = ["waveform_statistics_kernel", "objective_kernel"], ["waveform_gradient_kernel"]
    for dtype in (torch.float32, torch.bfloat16):
        assert launched(Plan(term, None), dtype) == expected


class Memory(TorchDispatchMode):
    """Bytes of the tensors made inside: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[int, int]] = {}  # storage: references, bytes
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            known = isinstance(x, Tensor) and x.untyped_storage()._cdata in self.live
            if known or (isinstance(x, Tensor) and not func.is_view):
                self.hold(x)
        return out

    def hold(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        references, size = self.live.get(storage._cdata, (0, storage.nbytes()))
        self.live[storage._cdata] = references + 1, size
        self.bytes += size if references == 0 else 0
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(x, self.drop, storage._cdata)

    def drop(self, storage: int) -> None:
        references, size = self.live.pop(storage)
        if references > 1:
            self.live[storage] = references - 1, size
        else:
            self.bytes -= size


def peaks(plan: Plan, *shape: int) -> tuple[float, float, float]:
    """Of forward, of backward beside the gradient, and saved: in floats per sample."""
    samples = torch.Size(shape).numel()
    settings(plan, torch.device("cpu"))
    for res in plan.resolutions:
        res.window(torch.float32, torch.device("cpu"))
        fft.twiddles(res.n_fft, torch.device("cpu"))
    with launches(), FakeTensorMode(allow_non_fake_inputs=True):
        e, t = torch.empty(shape), torch.empty(shape)
        with Memory() as forward:
            found = kernels.statistics(plan, e, t, save=True)
            value = kernels.objective(plan, found.partials, *shape[1:], torch.float32)
        saved = sum(s.nbytes for s in found.saved if s is not None)
        with Memory() as backward:
            kernels.gradient(plan, found.saved, value.coefficients, e, e.dtype)
    return tuple(x / (4 * samples) for x in (forward.peak, backward.peak - 4 * samples, saved))


def test_memory_of_the_default_loss():
    """4 x 4 x 2 signals of 11 s: at most 10 floats a sample beside inputs and gradient, 1 saved."""
    forward, backward, saved = peaks(DEFAULT, 4, 8, 485100)
    assert saved < 0.86
    assert forward < 10
    assert backward + saved < 10
    # Longer, it is bounded by the slabs: half a gigabyte beside what is saved.
    forward, backward, saved = peaks(DEFAULT, 2, 2, 50_000_000)
    assert max(forward - saved, backward) * 4 * 2e8 < 1.1 * 2**29


@pytest.mark.usefixtures("as_chosen")
def test_memory_of_the_default_loss_on_chip():
    """Signs and sums, and n_fft floats a signal for the borders."""
    forward, backward, saved = peaks(DEFAULT, 4, 8, 485100)
    assert saved < 0.86
    assert forward < 0.87
    assert backward + saved < 0.87


def test_memory_in_the_waveform_domain():
    for term in (WAVEFORM, LEVEL, PURE):
        forward, backward, saved = peaks(Plan(term, None), 4, 8, 485100)
        assert saved < 0.064
        assert forward < saved + 0.01
        assert backward == 0


# More than 2^31 elements


def test_rows_further_apart_than_32_bits(small, apart, device: torch.device):
    e, t = signals(3, 1, 45, dtype=torch.float16, device=device)
    got, want = run(kernels, MULTI, *apart(e, t)), run(kernels, MULTI, e, t)
    assert torch.equal(got.evaluation.loss, want.evaluation.loss)
    assert torch.equal(got.gradient, want.gradient)
