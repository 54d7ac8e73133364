"""What is measured: losses, the providers that compute them, and the cases, most telling first."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

import torch_l1snr_fast
from torch_l1snr_fast import backends

UPSTREAM = "torch-l1-snr"
COMPILED = "torch-l1-snr compiled"
IN_PYTORCH = "in PyTorch"
FLOOR = "floor"
OTHER_LOSS = "auraloss"
OURS = {"cpu": "eager", "cuda": "triton"}  # what a user gets by default

FORWARD, TRAINING, GRAPH = "forward", "forward+backward", "CUDA graph"

Step = Callable[[Tensor, Tensor], Any]


class Loss(NamedTuple):
    """A loss that this package, and torch-l1-snr if it has it, build from the same arguments."""

    name: str
    class_name: str
    options: tuple[tuple[str, Any], ...] = ()

    def build(self, package: str, device: torch.device) -> nn.Module:
        make = getattr(importlib.import_module(package), self.class_name)
        loss: nn.Module = make(self.class_name, **dict(self.options))
        return loss.to(device)

    @property
    def spectral(self) -> bool:
        return self.class_name in ("STFTL1SNRDBLoss", "MultiL1SNRDBLoss")


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("L1SNRLoss", "L1SNRLoss"),
        Loss("L2SNRLoss", "L2SNRLoss"),
        Loss("L1SNRDBLoss", "L1SNRDBLoss"),
        Loss("STFTL1SNRDBLoss", "STFTL1SNRDBLoss"),
        Loss("STFTL1SNRDBLoss, level", "STFTL1SNRDBLoss", (("use_regularization", True),)),
        Loss("MultiL1SNRDBLoss", "MultiL1SNRDBLoss"),
        Loss("MultiL1SNRDBLoss, level", "MultiL1SNRDBLoss", (("use_spec_regularization", True),)),
    )
}

COMPLEX = "MultiResolutionComplexSTFTLoss"
OWN = {COMPLEX: Loss(COMPLEX, COMPLEX)}  # that torch-l1-snr does not have
BY_NAME = LOSSES | OWN


def forward(compute: Step) -> Step:
    """The value alone, as in validation."""
    return torch.no_grad()(compute)


def training(compute: Step) -> Step:
    """The value and its gradient with respect to the estimates."""

    def step(estimates: Tensor, actuals: Tensor) -> tuple[Tensor, Tensor]:
        loss = compute(estimates, actuals)
        return loss.detach(), torch.autograd.grad(loss, estimates)[0]

    return step


MODES = {FORWARD: forward, TRAINING: training}


class Provider(NamedTuple):
    """One way to compute a loss; ``exact`` if it is the same loss, to be compared before timing."""

    name: str
    step: Callable[[Loss, str, torch.device], Step]
    serves: Callable[[Loss, torch.device], bool]
    exact: bool = True
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


@lru_cache
def installed(package: str) -> bool:
    """Whether a package can be imported; torchaudio cannot beside just any torch."""
    try:
        importlib.import_module(package)
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def upstream(loss: Loss, mode: str, device: torch.device) -> Step:
    return MODES[mode](loss.build("torch_l1_snr", device))


def compiled_upstream(loss: Loss, mode: str, device: torch.device) -> Step:
    torch.compiler.reset()  # another shape would be compiled for any shape, and be slower
    return MODES[mode](torch.compile(loss.build("torch_l1_snr", device)))


def ours(loss: Loss, mode: str, device: torch.device) -> Step:
    return MODES[mode](loss.build("torch_l1snr_fast", device))


def complex_stft_formula(
    estimates: Tensor,
    actuals: Tensor,
    win_lengths: Sequence[int] = (4096, 2048, 1024, 512, 256),
    n_fft: int = 2048,
    hop_length: int = 147,
) -> Tensor:
    """The loss inside BS-RoFormer, as it is written there."""
    loss = torch.nn.functional.l1_loss(estimates, actuals)
    signals = [x.flatten(0, -2) for x in (estimates, actuals)]
    for length in win_lengths:
        window = torch.hann_window(length, device=estimates.device)
        sizes = (max(length, n_fft), hop_length, length)
        spectra = [torch.stft(x, *sizes, window, return_complex=True) for x in signals]
        loss = loss + torch.nn.functional.l1_loss(*spectra)
    return loss


def in_pytorch(loss: Loss, mode: str, device: torch.device) -> Step:
    return MODES[mode](complex_stft_formula)


def auraloss(loss: Loss, mode: str, device: torch.device) -> Step:
    """The most used multi-resolution STFT loss, at the resolutions of ours: another loss."""
    from auraloss.freq import MultiResolutionSTFTLoss

    ffts = [512, 1024, 2048]
    other = MultiResolutionSTFTLoss(ffts, [n // 4 for n in ffts], ffts).to(device)

    def compute(estimates: Tensor, actuals: Tensor) -> Tensor:
        channels = [x.flatten(1, -2) for x in (estimates, actuals)]
        value: Tensor = other(*channels)
        return value

    return MODES[mode](compute)


def floor(loss: Loss, mode: str, device: torch.device) -> Step:
    """What must move: read both waveforms and, in training, write one; into memory at hand."""
    kept: list[Tensor] = []

    @torch.no_grad()
    def step(estimates: Tensor, actuals: Tensor) -> None:
        if not kept:
            kept.append(torch.empty_like(estimates))
        if mode == TRAINING:
            torch.sub(estimates, actuals, out=kept[0])
        else:
            kept[0].copy_(estimates)  # reads half of it, writes as much

    return step


def torch_fft_route() -> AbstractContextManager[Any]:
    """The Triton backend without its on-chip FFT."""
    from torch_l1snr_fast.kernels import triton
    from torch_l1snr_fast.kernels.triton import offchip

    return mock.patch.object(triton, "stft_route", return_value=offchip)


@contextmanager
def on_machine() -> Iterator[Any]:
    """The Triton backend serves CPU tensors too, by the machine that the tests run on."""
    tests = str(Path(__file__).parents[1] / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    # By the name that tests give it: a second machine would take the launches of the first.
    from machine import emulated

    devices = backends.TRITON_DEVICES | {"cpu"}
    with mock.patch.object(backends, "TRITON_DEVICES", devices), emulated() as driver:
        yield driver


def _on_gpu(loss: Loss, device: torch.device) -> bool:
    return device.type == "cuda"


def _in_upstream(loss: Loss, device: torch.device) -> bool:
    return loss.name in LOSSES and installed("torch_l1_snr")


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(UPSTREAM, upstream, _in_upstream),
        Provider(COMPILED, compiled_upstream, _in_upstream),
        Provider(IN_PYTORCH, in_pytorch, lambda loss, _: loss.name in OWN),
        Provider("eager", ours, lambda *_: True, context=lambda: backend("eager")),
        Provider("reference", ours, lambda *_: True, context=lambda: backend("reference")),
        Provider("triton", ours, _on_gpu, context=lambda: backend("triton")),
        Provider(
            "triton, torch.fft",
            ours,
            lambda loss, device: loss.spectral and _on_gpu(loss, device),
            context=torch_fft_route,
        ),
        Provider(
            OTHER_LOSS,
            auraloss,
            lambda loss, _: loss.name == MULTI and installed("auraloss"),
            exact=False,
        ),
        Provider(FLOOR, floor, lambda *_: True, exact=False),
    )
}


def backend(name: str) -> AbstractContextManager[Any]:
    return torch_l1snr_fast.use_backend(name)


class Case(NamedTuple):
    """A loss at a shape, in a mode, by several providers that are measured interleaved."""

    loss: str
    shape: tuple[int, ...]
    providers: tuple[str, ...]
    mode: str = TRAINING
    dtype: torch.dtype = torch.float32
    memory: bool = False
    processes: int = 1  # that measure it, on a CPU

    def title(self) -> str:
        return f"{self.loss} {shape_text(self.shape)} {dtype_text(self.dtype)} {self.mode}"


def shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


EVERY = (UPSTREAM, "eager", "triton", "triton, torch.fft", FLOOR)
SPEED = (UPSTREAM, "eager", "triton", FLOOR)
HEADLINE = {"cpu": (4, 2, 132300), "cuda": (4, 4, 2, 485100)}
SHAPES = ((2, 4, 2, 352800), (16, 1, 131584), (8, 2, 264600))
SMALL = (2, 1, 8192)
SWEEP = tuple((2, 2, round(8192 * 10 ** (i / 3))) for i in range(7))  # two decades
# Where operators and Python take longer than the samples, every one of torch-l1-snr's losses.
FEW = tuple((2, 1, length) for length in (4096, 8192, 32768, 131072))
CLASSES = tuple(name for name, loss in LOSSES.items() if not loss.options)
MULTI, TIME = "MultiL1SNRDBLoss", "L1SNRDBLoss"  # what most people use, of either kind


def headline_cases(shape: tuple[int, ...]) -> Iterator[Case]:
    """Every loss at one shape, the most used ones first."""
    for name in sorted(LOSSES, key=lambda name: (name != MULTI, name != TIME)):
        yield Case(name, shape, EVERY, memory=True, processes=3)


def cases_alone(shape: tuple[int, ...]) -> Iterator[Case]:
    """Providers after which a CPU's malloc would serve the others without page faults."""
    yield Case(MULTI, shape, (OTHER_LOSS,), memory=True)
    for name, loss in LOSSES.items():
        if not loss.spectral:
            yield Case(name, shape, (COMPILED,), memory=True)


def cpu_cases() -> Iterator[Case]:
    shape = HEADLINE["cpu"]
    yield from headline_cases(shape)
    for name in (MULTI, TIME):
        yield Case(name, shape, SPEED, FORWARD)
    yield Case(MULTI, SHAPES[1], EVERY, memory=True)
    yield Case(MULTI, shape, EVERY, dtype=torch.bfloat16)
    for size in SWEEP:
        for name in (MULTI, TIME):
            yield Case(name, size, SPEED)
    yield from cases_alone(shape)
    yield Case(MULTI, shape, ("reference",), memory=True)
    yield complex_case()
    yield from small_cases()


def small_cases() -> Iterator[Case]:
    for size in FEW:
        for name in CLASSES:
            for mode in MODES:
                yield Case(name, size, (UPSTREAM, "eager"), mode)


def complex_case() -> Case:
    """Eight seconds of stereo."""
    return Case(COMPLEX, (1, 2, 352800), (IN_PYTORCH, "eager", "triton"), memory=True)


def cuda_cases() -> Iterator[Case]:
    shape = HEADLINE["cuda"]
    for case in headline_cases(shape):
        yield case
        yield Case(case.loss, shape, ("triton",), GRAPH)
    yield from cases_alone(shape)
    for size in SHAPES:
        for name in (MULTI, TIME):
            yield Case(name, size, EVERY, memory=True)
            yield Case(name, size, ("triton",), GRAPH)
    for name in LOSSES:
        yield Case(name, SMALL, EVERY)
        yield Case(name, SMALL, ("triton",), GRAPH)
    for dtype in (torch.bfloat16, torch.float16):
        for name in (MULTI, TIME):
            yield Case(name, shape, EVERY, dtype=dtype, memory=True)
    for name in LOSSES:
        yield Case(name, shape, EVERY, FORWARD)
    for size in SWEEP:
        for name in (MULTI, TIME):
            yield Case(name, size, SPEED)
            yield Case(name, size, ("triton",), GRAPH)
    yield complex_case()
    # The one needs much memory, the other a minute to compile.
    yield Case(MULTI, SHAPES[1], ("reference",), memory=True)
    yield Case(MULTI, shape, (COMPILED,), memory=True)


def quick_cases(device: torch.device) -> Iterator[Case]:
    """Seconds, to see that everything works."""
    for name in (MULTI, TIME):
        yield Case(name, SMALL, EVERY, memory=True)
    if device.type == "cuda":
        yield Case(MULTI, SMALL, ("triton",), GRAPH)


def cases(device: torch.device, quick: bool) -> list[Case]:
    """What to measure on a device, in order of value, by the providers that it has."""
    chosen = quick_cases(device) if quick else {"cpu": cpu_cases, "cuda": cuda_cases}[device.type]()
    return [case._replace(providers=served(case, device)) for case in chosen]


def served(case: Case, device: torch.device) -> tuple[str, ...]:
    loss = BY_NAME[case.loss]
    return tuple(name for name in case.providers if PROVIDERS[name].serves(loss, device))
