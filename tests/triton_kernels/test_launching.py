"""Launches that are kept: a repeated one does not ask Triton, and none is another's.

Each comparison is with what is prepared anew and launched by Triton, bit by bit; on the machine,
which watches both, what a launch did not write shows as unwritten.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from checks import (
    BLEND,
    ENERGY,
    LEVEL,
    SPECTRUM,
    SPECTRUM_LEVEL,
    SPECTRUM_PURE,
    WAVEFORM,
    launches,
    run,
    signals,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton import knobs
from triton.runtime import driver

from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.complex_plan import ComplexPlan
from torch_l1snr_fast.kernels.plan import Plan, Resolution
from torch_l1snr_fast.kernels.triton import common, complex_stft, launching
from torch_l1snr_fast.kernels.triton.launching import Launch, prepared

RESOLUTIONS = (Resolution(256, 64, 256), Resolution(256, 128, 200))
MULTI = Plan(LEVEL, SPECTRUM_LEVEL, RESOLUTIONS, sanitize_spectrum=True)
# Of two launches, the first of double frames too.
COMPLEX = ComplexPlan(
    2.5, 0.7, (Resolution(1024, 400, 1024), Resolution(256, 47, 200), Resolution(512, 256, 512))
)
ONE = COMPLEX._replace(resolutions=(Resolution(256, 100, 256),))
# By torch.fft, with a route on chip beside it.
OFF_CHIP = MULTI._replace(resolutions=(Resolution(300, 100, 280), RESOLUTIONS[0]))
PLANS = [
    MULTI,
    OFF_CHIP,
    OFF_CHIP._replace(spectrum=SPECTRUM, sanitize_spectrum=False),
    Plan(WAVEFORM, SPECTRUM, RESOLUTIONS),
    Plan(None, SPECTRUM, RESOLUTIONS, reduction="none"),
    Plan(BLEND, None, sanitize_waveform=True),
    Plan(ENERGY, None),
    ONE,
]


@contextmanager
def asked() -> Iterator[list[str]]:
    """Kernels that Triton is asked to launch inside."""
    names: list[str] = []
    launch = common.launch

    def note(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(kernel.fn.__name__)
        return launch(kernel, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "launch", note)
        yield names


# All that is kept, by module and name.
PREPARED = {
    "waveform": ("_statistics", "_gradient"),
    "onchip": ("_statistics", "_gradient"),
    "offchip": ("_statistics", "_gradient"),
    "unknown": ("_find",),
    "objective": ("_work",),
    "complex_stft": ("_works",),
    "complex_stft.difference": ("_difference",),
}


@contextmanager
def watched() -> Iterator[list[str]]:
    """Kernels launched inside, each by Triton and prepared anew."""
    names: list[str] = []
    launch = triton.JITFunction.run

    def note(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(kernel.fn.__name__)
        return launch(kernel, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.JITFunction, "run", note)
        for module, functions in PREPARED.items():
            there = sys.modules[f"{kernels.__name__}.{module}"]
            for name in functions:
                patch.setattr(there, name, getattr(there, name).__wrapped__)
        yield names


def single(*shape: int, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    return signals(*shape, dtype=torch.float32, device=device, seed=seed)


def computed(plan: Plan | ComplexPlan, e: Tensor, t: Tensor) -> list[Tensor]:
    """All results of a forward and backward pass, the gradient last."""
    if isinstance(plan, ComplexPlan):
        means, gradient = complex_stft.complex_stft(plan, e, t, True)
        assert gradient is not None
        return [means, gradient]
    result = run(kernels, plan, e, t)
    return [*result.evaluation, result.gradient]


def as_by_triton(plan: Plan | ComplexPlan, e: Tensor, t: Tensor) -> list[str]:
    """A forward and backward pass; what Triton was asked for that all of it was not before."""
    with asked() as names:
        got = computed(plan, e, t)
    with watched() as every:
        want = computed(plan, e, t)
    assert every
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)
    return names


@pytest.mark.parametrize("plan", PLANS)
def test_repeated(plan: Plan | ComplexPlan, device: torch.device):
    """Of other waveforms, too."""
    as_by_triton(plan, *single(2, 2, 777, device=device))
    before = len(driver.active.records) if device.type == "cpu" else 0
    with asked() as names:
        computed(plan, *single(2, 2, 777, device=device, seed=1))
    assert names == []
    e, t = single(2, 2, 777, device=device, seed=1)
    if device.type == "cpu":  # the machine sees each of them
        seen = [record.kernel for record in driver.active.records[before:]]
        with watched() as every:
            computed(plan, e, t)
        assert seen == every
    assert as_by_triton(plan, e, t) == []


def test_scheduled_numbers_are_of_the_objective_alone(device: torch.device):
    e, t = single(2, 2, 777, device=device)
    as_by_triton(MULTI, e, t)
    for weight in (0.5, 0.25):
        terms = {"weight": weight, "eps": weight / 100, "reg_coef": weight, "lambda0": weight}
        plan = MULTI._replace(
            waveform=LEVEL._replace(**terms),
            spectrum=SPECTRUM_LEVEL._replace(**terms),
            grad_scale=weight,
        )
        assert as_by_triton(plan, e, t) == ["objective_kernel"]


# What must choose another launch, or another compiled kernel

CHANGES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "estimates of another dtype": lambda e, t: (e.half(), t),
    "actuals of another dtype": lambda e, t: (e, t.bfloat16()),
    "estimates misaligned": lambda e, t: (further(e, 1), t),
    "actuals misaligned": lambda e, t: (e, further(t, 3)),
    "estimates' rows apart": lambda e, t: (e.repeat(1, 2, 1)[:, :2], t),
    "actuals' rows apart": lambda e, t: (e, t.repeat(1, 2, 1)[:, :2]),
    "estimates' channels apart": lambda e, t: (e.mT.contiguous().mT.repeat(1, 1, 2)[..., :300], t),
    "actuals' channels the same": lambda e, t: (e, t[:, :1].expand(-1, 2, -1)),
    "shorter": lambda e, t: (e[..., :299].contiguous(), t[..., :299].contiguous()),
    "fewer rows": lambda e, t: (e[:1], t[:1]),
    "fewer channels": lambda e, t: (e[:, :1].contiguous(), t[:, :1].contiguous()),
}


def further(x: Tensor, offset: int) -> Tensor:
    """The same, so many elements behind where memory is allocated."""
    memory = x.new_empty(x.numel() + offset)
    there = memory[offset:].view(x.shape)
    there.copy_(x)
    return there


@pytest.mark.parametrize(
    "plan", [MULTI._replace(resolutions=RESOLUTIONS[:1]), PLANS[1], *PLANS[5:]]
)
@pytest.mark.parametrize("change", CHANGES)
def test_other_waveforms(plan: Plan | ComplexPlan, change: str, device: torch.device):
    e, t = single(2, 2, 300, device=device)
    as_by_triton(plan, e, t)
    first = computed(plan, e, t)
    changed = CHANGES[change](e, t)
    as_by_triton(plan, *changed)
    with asked() as names:
        computed(plan, *changed)
        again = computed(plan, e, t)
    assert names == []
    assert torch.equal(again[-1], first[-1])


def test_rows_further_apart_than_32_bits(apart, device: torch.device):
    e, t = signals(3, 1, 45, dtype=torch.float16, device=device)
    plan = Plan(ENERGY, None)
    as_by_triton(plan, e, t)
    assert as_by_triton(plan, *apart(e, t))
    assert as_by_triton(plan, *apart(e, t)) == []


@pytest.mark.parametrize(
    "other",
    [
        MULTI._replace(reduction="none"),
        MULTI._replace(sanitize_spectrum=False),
        MULTI._replace(spectrum=SPECTRUM),
        MULTI._replace(waveform=WAVEFORM),
        MULTI._replace(resolutions=RESOLUTIONS[::-1]),
        MULTI._replace(waveform=LEVEL._replace(eps=1e-5)),
        MULTI._replace(grad_scale=0.3),
    ],
)
def test_other_options(other: Plan, device: torch.device):
    e, t = single(2, 1, 300, device=device)
    for plan in (MULTI, other, MULTI):
        as_by_triton(plan, e, t)


@pytest.mark.parametrize(
    "other",
    [
        ONE._replace(waveform_weight=0.0),
        ONE._replace(weight=0.2),
        ONE._replace(resolutions=(Resolution(256, 101, 256),)),
        ONE._replace(resolutions=(Resolution(256, 100, 199),)),
    ],
)
def test_other_options_of_complex_spectra(other: ComplexPlan, device: torch.device):
    e, t = single(2, 1, 300, device=device)
    for plan in (ONE, other, ONE):
        as_by_triton(plan, e, t)
    means, gradient = complex_stft.complex_stft(ONE, e, t, False)  # an evaluation
    assert torch.equal(means, computed(ONE, e, t)[0])
    assert gradient is None


FFT = OFF_CHIP._replace(resolutions=OFF_CHIP.resolutions[:1])


@pytest.mark.parametrize(
    "other",
    [
        FFT._replace(sanitize_spectrum=False),
        FFT._replace(spectrum=SPECTRUM),
        FFT._replace(spectrum=SPECTRUM_PURE),
        FFT._replace(resolutions=(Resolution(302, 100, 280),)),
        FFT._replace(resolutions=(Resolution(300, 101, 280),)),
        FFT._replace(resolutions=(Resolution(300, 100, 279),)),
        FFT._replace(resolutions=(Resolution(300, 100, 280, "hamming"),)),
    ],
)
def test_other_options_by_torch_fft(other: Plan, device: torch.device):
    e, t = single(2, 1, 400, device=device)
    for plan in (FFT, other, FFT):
        as_by_triton(plan, e, t)
    e, t = signals(2, 1, 400, dtype=torch.float64, device=device)
    as_by_triton(other, e, t)
    sums = kernels.statistics(other, e, t, save=False).partials
    for ours, theirs in zip(sums, kernels.statistics(other, e, t, save=True).partials, strict=True):
        assert torch.equal(ours, theirs)


def test_slabs_of_signals_and_of_frames(monkeypatch: pytest.MonkeyPatch, device: torch.device):
    """Each has a launch of its own."""
    e, t = single(2, 2, 600, device=device)
    plan = FFT._replace(resolutions=(Resolution(30, 2, 30),))  # 301 frames of a signal
    usual = common.config()
    as_by_triton(plan, e, t)
    for changes in ({"transient": 300_000}, {"lanes": 32, "transient": 1}):
        monkeypatch.setattr(common, "CONFIG", usual._replace(**changes))
        assert as_by_triton(plan, e, t).count("frame_kernel") > 1
        assert as_by_triton(plan, e, t) == []
    monkeypatch.setattr(common, "CONFIG", None)
    assert as_by_triton(plan, e, t) == []


@pytest.mark.slow
def test_several_launches_of_complex_spectra(device: torch.device):
    e, t = single(2, 2, 777, device=device)
    as_by_triton(COMPLEX, e, t)
    assert as_by_triton(COMPLEX, e, t) == []


def test_other_sizes(monkeypatch: pytest.MonkeyPatch, device: torch.device):
    e, t = single(2, 1, 700, device=device)
    usual = common.config()
    as_by_triton(MULTI, e, t)
    for changes in (
        {"prefetch": False},
        {"prefetch_forward": True},
        {"lanes": 32},
        {"registers": 128},
        {"sums": 8},
    ):
        monkeypatch.setattr(common, "CONFIG", usual._replace(**changes))
        assert as_by_triton(MULTI, e, t)
    monkeypatch.setattr(common, "CONFIG", None)
    assert as_by_triton(MULTI, e, t) == []


def test_prepared_in_a_mode(device: torch.device):
    """Windows and such, which a launch holds, are plain tensors whatever is at work then."""
    plan = MULTI._replace(resolutions=(Resolution(256, 64, 180),))
    with launches(), FakeTensorMode(allow_non_fake_inputs=True):
        run(kernels, plan, *(torch.empty(2, 1, 500, device=device) for _ in range(2)))
    assert as_by_triton(plan, *single(2, 1, 500, device=device))


# One launch by itself


@triton.jit
def copy_kernel(x, pair, y, n, SCALE: tl.constexpr):  # noqa: N803
    """y = SCALE x + the first of a pair's tensors + n."""
    i = tl.arange(0, 128)
    value = SCALE * tl.load(x + i).to(tl.float64) + tl.load(pair[0] + i).to(tl.float64) + n
    tl.store(y + i, value)


def launch_of(n: int = 5) -> Launch:
    return Launch(copy_kernel, programs=1, threads=32, n=n, SCALE=2)


def assert_copies(launch: Launch, x: Tensor, pair: tuple[Tensor, Tensor], n: int = 5) -> list[str]:
    y = torch.empty(128, dtype=torch.float64, device=x.device)
    with asked() as names:
        launch(x=x, pair=pair, y=y)
    assert torch.equal(y, 2 * x.double() + pair[0].double() + n)
    return names


def numbers(device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.arange(128, device=device).to(dtype)


@pytest.mark.parametrize("where", ["argument", "tuple"])
def test_dtype_and_alignment_of_each_tensor(where: str, device: torch.device):
    """What is aligned, Triton may load in vectors, which of a misaligned one is a fault."""
    launch, usual = launch_of(), numbers(device)
    for other in (usual, further(usual, 1), usual.half(), usual.long(), further(usual.half(), 3)):
        x, pair = (other, (usual, usual)) if where == "argument" else (usual, (other, usual))
        assert assert_copies(launch, x, pair) == ["copy_kernel"]
        assert assert_copies(launch, x, pair) == []
    assert assert_copies(launch, usual, (usual, usual)) == []


def test_numbers_that_exceed_32_bits(device: torch.device):
    kept, x = prepared(launch_of), numbers(device)
    for n in (1, 16, 2**31 - 1, 2**31, 1):
        assert_copies(kept(n), x, (x, x), n)
        assert assert_copies(kept(n), x, (x, x), n) == []


def test_other_device():
    """A kernel is compiled for one, and loaded there."""
    if torch.cuda.is_available():
        if torch.cuda.device_count() < 2:
            pytest.skip("there is one")
        launch = launch_of()
        for index in (0, 1, 0):
            x = numbers(torch.device("cuda", index))
            with common.on_device(x):
                assert_copies(launch, x, (x, x))
        return
    from machine import emulated

    launch, x, memory_of = launch_of(), numbers(torch.device("cpu")), driver.active.memory_of
    assert_copies(launch, x, (x, x))
    with emulated(arch=80) as other:
        other.memory_of = memory_of
        assert assert_copies(launch, x, (x, x)) == ["copy_kernel"]
        assert assert_copies(launch, x, (x, x)) == []
    assert assert_copies(launch, x, (x, x)) == []
    assert {kernel.metadata.target.arch for kernel in launch.compiled.values()} == {80, 90}


def test_stream_of_the_call(monkeypatch: pytest.MonkeyPatch, device: torch.device):
    launch, x = launch_of(), numbers(device)
    assert_copies(launch, x, (x, x))
    (kernel,) = launch.compiled.values()
    given: list[Any] = []
    monkeypatch.setattr(kernel, "_run", lambda *args: given.append(args))
    for stream in (7, 8):
        monkeypatch.setattr(driver.active, "get_current_stream", lambda _, s=stream: s)
        launch(x=x, pair=(x, x), y=numbers(device, torch.float64))
    assert [args[3] for args in given] == [7, 8]


# Where Triton does more than launch, it is left to do so


def hook(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    def add(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(getattr(knobs.runtime, name), "calls", [lambda *_: None])

    return add


MORE: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "before a launch": hook("launch_enter_hook"),
    "after a launch": hook("launch_exit_hook"),
    "debug": lambda patch: patch.setattr(knobs.runtime, "debug", True),
    "run": lambda patch: patch.setattr(triton.JITFunction, "run", lambda *_, **__: None),
    "kernel": lambda patch: patch.setattr(copy_kernel, "pre_run_hooks", [lambda *_, **__: None]),
}
if hasattr(knobs.compilation, "instrumentation_mode"):
    MORE["instrumentation"] = lambda patch: patch.setattr(
        knobs.compilation, "instrumentation_mode", "consan"
    )
if hasattr(knobs.runtime, "add_stages_inspection_hook"):
    MORE["stages"] = lambda patch: patch.setattr(
        knobs.runtime, "add_stages_inspection_hook", lambda *_: ("", "")
    )


@pytest.mark.parametrize("more", MORE)
def test_more_than_a_launch(more: str, monkeypatch: pytest.MonkeyPatch, device: torch.device):
    launch, x = launch_of(), numbers(device)
    assert_copies(launch, x, (x, x))
    assert assert_copies(launch, x, (x, x)) == []
    names: list[str] = []
    monkeypatch.setattr(launching, "launch", lambda kernel, *_, **__: names.append(kernel.__name__))
    with pytest.MonkeyPatch.context() as patch:
        MORE[more](patch)
        launch(x=x, pair=(x, x), y=numbers(device, torch.float64))
    assert names == ["copy_kernel"]
    monkeypatch.undo()
    assert assert_copies(launch, x, (x, x)) == []


def test_hooks_are_told_of_a_repeated_launch(device: torch.device):
    launch, x = launch_of(), numbers(device)
    assert_copies(launch, x, (x, x))
    told: list[str] = []

    def note(metadata: Any) -> None:
        told.append(metadata.get()["name"])

    knobs.runtime.launch_enter_hook.add(note)
    try:
        assert_copies(launch, x, (x, x))
    finally:
        knobs.runtime.launch_enter_hook.remove(note)
    assert told == ["copy_kernel"]
