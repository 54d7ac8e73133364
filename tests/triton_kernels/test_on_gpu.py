"""Real sizes on a device, and what only a device can show: graphs, streams, synchronisation.

What does not need a device runs on the machine too, where there is none.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import (
    ENERGY,
    LEVEL,
    MULTI,
    PURE,
    WAVEFORM,
    assert_close,
    incoming,
    run,
    run_reference,
    signals,
)
from torch import Tensor, nn

import torch_l1snr_fast as package
from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.plan import Plan, Resolution
from torch_l1snr_fast.kernels.triton import offchip

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import every_kernel
from benchmarks import kernels as compiled

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
needs_gpu = pytest.mark.gpu
pytestmark = [pytest.mark.gpu] if ON_GPU else []

DEFAULT = MULTI._replace(resolutions=tuple(Resolution(n, n // 4, n) for n in (512, 1024, 2048)))
OTHER = MULTI._replace(resolutions=(Resolution(1001, 300, 900), Resolution(4097, 1500, 4097)))
PLANS = {
    "d1": Plan(WAVEFORM, None),
    "level": Plan(LEVEL, None),
    "energy": Plan(ENERGY, None),
    "pure": Plan(PURE, None),
    "default": DEFAULT,
    "other": OTHER,
}
SHAPE = (4, 8, 485100) if ON_GPU else (2, 1, 2500)
LENGTH = 44100 if ON_GPU else 301

TINY = {"n_ffts": [256], "hop_lengths": [64], "win_lengths": [256], "min_audio_length": 200}
STFT: dict[str, Any] = {} if ON_GPU else TINY
COMPLEX = {} if ON_GPU else {"win_lengths": [256], "n_fft": 256, "hop_lengths": 100}
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "L1SNRLoss": ("L1SNRLoss", {}),
    "L2SNRLoss": ("L2SNRLoss", {}),
    "L1SNRDBLoss": ("L1SNRDBLoss", {}),
    "STFTL1SNRDBLoss": ("STFTL1SNRDBLoss", {"use_regularization": True, **STFT}),
    "MultiL1SNRDBLoss": ("MultiL1SNRDBLoss", STFT),
    "unchecked": ("MultiL1SNRDBLoss", {"check_finite": False, **STFT}),
    "level": ("MultiL1SNRDBLoss", {"use_spec_regularization": True, **STFT}),
    "complex": ("MultiResolutionComplexSTFTLoss", COMPLEX),
}
SPECTRAL = ("STFTL1SNRDBLoss", "MultiL1SNRDBLoss", "level")
CASES = [(name, "default") for name in LOSSES] + [(name, "torch.fft") for name in SPECTRAL]
if not ON_GPU:  # where a minute is enough
    CASES = [(name, "default") for name in ("L1SNRDBLoss", "level", "complex")]
    CASES += [("level", "torch.fft")]


@pytest.fixture(autouse=True)
def triton_backend() -> None:
    package.use_backend("triton")  # undone by conftest


def by_torch_fft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "stft_route", lambda *_: offchip)


@pytest.fixture(params=CASES, ids="-".join)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every loss, and by the route through torch.fft those that have one."""
    name, route = request.param
    if route == "torch.fft":
        by_torch_fft(monkeypatch)
    return name


@pytest.fixture
def loss(name: str) -> nn.Module:
    return build(name)


def build(name: str, **options: Any) -> nn.Module:
    kind, own = LOSSES[name]
    return getattr(package, kind)("loss", **own, **options)


def pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    e, t = signals(*(shape or (2, 2, LENGTH)), dtype=dtype, device=DEVICE, seed=seed)
    return e.requires_grad_(), t


def step(loss: nn.Module, e: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Value, and gradient for an incoming gradient that is not one."""
    value = loss(e, t)
    return value.detach(), torch.autograd.grad(1.7 * value, e)[0]


def assert_same_bits(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


# Real sizes


def assert_near_reference(plan: Plan, e: Tensor, t: Tensor) -> None:
    got, want = run(kernels, plan, e, t), run_reference(plan, e, t)
    assert_close("loss", got.evaluation.loss, want.evaluation.loss, 1e-5)
    # float32 gives one sign in some 3e6 another value than float64; each moves 2 of 1.
    error = (got.gradient.double() - want.gradient).norm(dim=2)
    assert (error <= 3e-3 * want.gradient.norm(dim=2)).all()


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize(
    "shape", [SHAPE, (3, 2, 264601), (1, 1, 4099)][: 3 if ON_GPU else 1], ids=str
)
def test_plans(name: str, shape: tuple[int, int, int]):
    assert_near_reference(PLANS[name], *signals(*shape, dtype=torch.float32, device=DEVICE))


def test_default_plan_by_torch_fft(monkeypatch: pytest.MonkeyPatch):
    by_torch_fft(monkeypatch)
    assert_near_reference(DEFAULT, *signals(*SHAPE, dtype=torch.float32, device=DEVICE))


REAL = [(1, 2, 44100), (4, 2, 132300)]


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("shape", [REAL[0], pytest.param(REAL[1], marks=pytest.mark.slow)], ids=str)
def test_default_loss_of_real_size(shape: tuple[int, int, int], dtype: torch.dtype):
    """Forward and backward, against float64 of the same samples."""
    loss = package.MultiL1SNRDBLoss("loss")
    e, t = pair(*shape, dtype=dtype)
    got = step(loss, e, t)
    with package.use_backend("reference"):
        want = step(loss, e.detach().double().requires_grad_(), t.double())
    assert_close("loss", got[0], want[0], 1e-5)
    # As above, and rounded to the dtype.
    rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    error = (got[1].double() - want[1]).norm(dim=2)
    assert (error <= (3e-3 + rounding) * want[1].norm(dim=2)).all()


def test_float64_of_real_size():
    e, t = signals(2, 2, 100_003 if ON_GPU else 10_003, device=DEVICE)
    got, want = run(kernels, OTHER, e, t), run_reference(OTHER, e, t)
    assert_close("loss", got.evaluation.loss, want.evaluation.loss, 1e-12)
    assert_close("gradient", got.gradient, want.gradient, 1e-10, dim=(1, 2))


# How a trainer uses a loss


def test_same_bits_every_time(loss: nn.Module):
    e, t = pair()
    first = step(loss, e, t)
    for _ in range(20 if ON_GPU else 2):
        assert_same_bits(step(loss, e, t), first)


def test_layouts(loss: nn.Module):
    """Slices, channels that come last, and one estimate for all rows."""
    e, t = (x.detach() for x in pair(2, 4, LENGTH))
    layouts = (
        lambda x: x[:, 1:3, 5:-2],
        lambda x: x.mT.contiguous().mT,
        lambda x: x[:1].expand(3, -1, -1),
        lambda x: x.view(2, 2, 2, -1).transpose(0, 1),
    )
    for layout in layouts:
        a, b = layout(e), layout(t)
        want = step(loss, a.contiguous().requires_grad_(), b.contiguous())
        assert_same_bits(step(loss, a.requires_grad_(), b), want)


def test_backward_twice(loss: nn.Module):
    e, t = pair()
    value = loss(e, t)
    (first,) = torch.autograd.grad(value, e, retain_graph=True)
    (second,) = torch.autograd.grad(value, e)
    assert torch.equal(first, second)
    assert first.any()


def test_incoming_gradient_of_stride_zero(name: str):
    e, t = pair()
    value = build(name, reduction="none")(e, t)
    incoming = torch.tensor(0.7, device=DEVICE).expand_as(value)
    (got,) = torch.autograd.grad(value, e, incoming, retain_graph=True)
    (want,) = torch.autograd.grad(value, e, incoming.contiguous())
    assert torch.equal(got, want)


def test_second_derivatives_and_those_of_the_target(loss: nn.Module):
    """By the reference, which alone can."""
    e, t = pair(dtype=torch.float64)
    t.requires_grad_()

    def derivatives() -> tuple[Tensor, ...]:
        first = torch.autograd.grad(loss(e, t.detach()), e, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), e)
        return *first, *second, *torch.autograd.grad(loss(e, t), (e, t))

    got = derivatives()
    with package.use_backend("reference"):
        want = derivatives()
    for a, b in zip(got, want, strict=True):
        assert_close("derivative", a, b, 1e-9)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.unflatten(-1, (-1, 64))).flatten(-2)


def trained(backend: str, dtype: torch.dtype, steps: int) -> list[float]:
    """Losses of a small model in automatic mixed precision, on changing data."""
    model = Model().to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=dtype == torch.float16)
    criterion = build("MultiL1SNRDBLoss")
    length = 64 * (LENGTH // 64)
    values = []
    with package.use_backend(backend):
        for seed in range(steps):
            mixture, target = pair(2, 2, length, seed=seed % 2)
            with torch.autocast(DEVICE.type, dtype):
                estimates = model(mixture.detach())
                value = criterion(estimates, target)
            assert estimates.dtype == dtype
            optimizer.zero_grad()
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
            values.append(value.detach())
    return torch.stack(values).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_training_in_mixed_precision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic mode asks for it
    steps = 100 if ON_GPU else 4
    got, want = (trained(backend, dtype, steps) for backend in ("triton", "reference"))
    assert sum(got[-2:]) < sum(got[:2])
    rounding = 20 * math.log10(1 + torch.finfo(torch.bfloat16).eps)  # of the estimates, in decibels
    for a, b in zip(got, want, strict=True):
        assert a == pytest.approx(b, abs=rounding)


def test_in_a_compiled_graph(loss: nn.Module):
    torch.use_deterministic_algorithms(False)  # which changes the code that is generated
    torch._dynamo.reset()
    backend = "inductor" if ON_GPU else "aot_eager"
    compiled = torch.compile(lambda e, t: loss(torch.tanh(e), t), fullgraph=True, backend=backend)
    e, t = pair()
    got, want = step(compiled, e, t), step(lambda e, t: loss(torch.tanh(e), t), e, t)
    assert_close("loss", got[0], want[0], 1e-5)
    # The compiler's tanh rounds otherwise, which turns single signs.
    assert (got[1] - want[1]).norm() <= 1e-2 * want[1].norm()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_distributed_data_parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    backend = "nccl" if ON_GPU else "gloo"
    place = f"file://{tmp_path}/store"
    torch.distributed.init_process_group(backend, init_method=place, rank=0, world_size=1)
    try:
        plain, criterion = Model().to(DEVICE), build("MultiL1SNRDBLoss")
        model = nn.parallel.DistributedDataParallel(Model().to(DEVICE))
        mixture, target = pair(2, 2, 64 * (LENGTH // 64))
        for network in (plain, model):
            criterion(network(mixture.detach()), target).backward()
        assert_same_bits(
            tuple(p.grad for p in model.parameters()), tuple(p.grad for p in plain.parameters())
        )
    finally:
        torch.distributed.destroy_process_group()


# What compute-sanitizer is to watch


def test_every_kernel_is_launched_and_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(every_kernel, "CASES", compiled.CASES[:1])
    monkeypatch.setattr(every_kernel, "LENGTH", 300)
    assert every_kernel.run_all() == 1
    said = capsys.readouterr().out
    assert "3 kernels" in said
    assert "never launched: complex_stft_kernel difference_kernel frame_kernel" in said
    monkeypatch.setattr(every_kernel, "all_kernels", set)
    assert every_kernel.run_all() == 0
    monkeypatch.setattr(every_kernel, "BOUNDS", {torch.float32: 1e-12})
    assert every_kernel.run_all() == 1


@pytest.mark.slow
@pytest.mark.versions
def test_every_kernel():
    """All that is compiled for sm_90 elsewhere, beside the eager backend."""
    assert every_kernel.run_all() == 0


# What only a GPU shows


@needs_gpu
def test_no_synchronisation_on_a_stream_of_its_own(loss: nn.Module):
    e, t = pair()
    want = step(loss, e, t)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                got = step(loss, e, t)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert_same_bits(got, want)


@needs_gpu
def test_many_streams_at_once(loss: nn.Module):
    """Work that is queued on one stream must not use another's memory before it is done."""
    pairs = [pair(seed=seed) for seed in range(4)]
    wanted = [step(loss, *each) for each in pairs]
    streams = [torch.cuda.Stream() for _ in pairs]
    torch.cuda.synchronize()
    for _ in range(5):
        results = []
        for stream, each in zip(streams, pairs, strict=True):
            with torch.cuda.stream(stream):
                results.append(step(loss, *each))
        torch.cuda.synchronize()
        for got, want in zip(results, wanted, strict=True):
            assert_same_bits(got, want)


@needs_gpu
def test_graph_replays_with_changed_inputs(loss: nn.Module):
    e, t = pair()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(loss, e, t)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step(loss, e, t)
    for seed in (1, 2):
        changed = pair(seed=seed)
        with torch.no_grad():
            for x, y in zip((e, t), changed, strict=True):
                x.copy_(y)
        graph.replay()
        assert_same_bits(replayed, step(loss, *changed))


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_not_on_the_current_device(loss: nn.Module):
    e, t = pair()
    with torch.cuda.device(0):
        want = step(loss, e, t)
        far = e.detach().to("cuda:1").requires_grad_()
        got = step(loss, far, t.to("cuda:1"))
    assert got[1].device == far.device
    assert_same_bits(tuple(x.to(DEVICE) for x in got), want)


@needs_gpu
@pytest.mark.parametrize("name", PLANS)
def test_memory(name: str):
    """Peak beside inputs and gradient, in floats per sample."""
    e, t = signals(*SHAPE, dtype=torch.float32, device=DEVICE)
    run(kernels, PLANS[name], e, t)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run(kernels, PLANS[name], e, t)
    peak = torch.cuda.max_memory_allocated() - before - result.gradient.nbytes
    bound = {"default": 1.0, "other": 10.0}.get(name, 0.1)
    assert peak <= bound * e.nbytes


@needs_gpu
@pytest.mark.parametrize("plan", [PLANS["level"], DEFAULT], ids=["level", "default"])
def test_more_than_2_to_the_31_elements(plan: Plan):
    plan = plan._replace(reduction="none")
    shape = (2, 1, 2**30 + 2**10 if ON_GPU else 2500)
    e, t = (torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    got = run(kernels, plan, e, t)
    for row in (0, 1):
        want = run(kernels, plan, e[row:][:1], t[row:][:1])
        assert_close("loss", got.evaluation.loss[row], want.evaluation.loss[0], 1e-5)
    # For an incoming gradient of one, that of the last row of two being another than that of one.
    end, wanted = (
        x.gradient[-1, 0, -1000:].double() / incoming(plan, rows, DEVICE)[-1]
        for x, rows in ((got, 2), (want, 1))
    )
    assert end.any()
    assert_close("gradient", end, wanted, 0.02)
