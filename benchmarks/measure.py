"""Time and memory of the providers of a case, after their results have been compared."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from .clock import Clock
from .registry import BY_NAME, COMPILED, GRAPH, PROVIDERS, TRAINING, UPSTREAM, Case, Step

CACHE = 128 << 20  # bytes that two rounds of input buffers exceed; the largest cache has less
SAMPLE_MS = 10.0  # of one timed block of calls, at least
SECONDS = {"cpu": 1.5, "cuda": 2.0}  # for a case, within these numbers of samples of a provider
SAMPLES = {"cpu": (7, 15), "cuda": (21, 50)}
REPLAYED = 32  # calls in a CUDA graph, at most
COMPILATION = 150  # seconds for a compiled case on a GPU; some shapes take minutes

# Two float32 implementations of a spectrum's error disagree in the sign of bins near zero.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}
# By the root of the samples, what one of them changes: twice its share in a gradient of the real
# and imaginary parts of three resolutions, of which there are 12 for a sample.
ONE_SIGN = 2 / math.sqrt(12)

Pairs = list[tuple[Tensor, Tensor]]
Result = TypeVar("Result")


class Spread(NamedTuple):
    """Median and 20th and 80th percentile of some samples."""

    median: float
    p20: float
    p80: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0], 1)
        low, *_, high = statistics.quantiles(samples, n=5, method="inclusive")
        return cls(statistics.median(samples), low, high, len(samples))


def input_pairs(case: Case, device: torch.device) -> Pairs:
    """Estimates, 14 dB above their error, and actuals: as many as exceed the cache."""
    generator = torch.Generator(device).manual_seed(0)

    def noise(level: float) -> Tensor:
        return level * torch.randn(case.shape, generator=generator, device=device)

    def pair() -> tuple[Tensor, Tensor]:
        actuals = noise(0.1)
        estimates = (actuals + noise(0.02)).to(case.dtype)
        return estimates.requires_grad_(), actuals.to(case.dtype)

    first = pair()
    size = 2 * first[0].numel() * case.dtype.itemsize
    return [first, *(pair() for _ in range(CACHE // size))]


def build(case: Case, name: str, device: torch.device) -> Step:
    """A provider's step, which sets the provider's backend for itself while it runs."""
    provider = PROVIDERS[name]
    mode = TRAINING if case.mode == GRAPH else case.mode
    return provider.step(BY_NAME[case.loss], mode, device)


def compare(case: Case, steps: dict[str, Step], pair: tuple[Tensor, Tensor]) -> None:
    """Raise unless every provider that computes this loss agrees with the first of them."""
    tolerance = TOLERANCES[case.dtype]
    if BY_NAME[case.loss].spectral:
        tolerance += ONE_SIGN / math.sqrt(math.prod(case.shape))
    wanted: tuple[Tensor, ...] | None = None
    for name, step in steps.items():
        if not PROVIDERS[name].exact:
            continue
        with PROVIDERS[name].context():
            found = step(*pair)
        results = [x.double() for x in (found if isinstance(found, tuple) else (found,))]
        if wanted is None:
            wanted = tuple(results)
        for a, b in zip(results, wanted, strict=True):
            distance = ((a - b).norm() / b.norm()).item()
            if not distance <= tolerance:
                raise ArithmeticError(f"{case.title()}: {name} is {distance:.1e} off")


def timer(device: torch.device) -> Callable[[Callable[[], None]], float]:
    """Milliseconds that a function takes, by the device's clock, starting with an idle device."""
    if device.type == "cpu":

        def by_host(run: Callable[[], None]) -> float:
            start = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - start)

        return by_host

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def by_events(run: Callable[[], None]) -> float:
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return by_events


def interleaved(
    steps: dict[str, Step], pairs: Pairs, device: torch.device
) -> dict[str, list[float]]:
    """Milliseconds per call; providers take turns, each at a block of calls on changing buffers."""
    clock, rotation = timer(device), itertools.cycle(pairs)

    def block(name: str, calls: int) -> float:
        def run(calls: int) -> None:
            for _ in range(calls):
                steps[name](*next(rotation))

        with PROVIDERS[name].context():
            run(calls // 2)  # what others have left in caches and heap is not this one's doing
            return clock(partial(run, calls)) / calls

    for name in steps:
        block(name, 2)
    rough = {name: block(name, 3) for name in steps}
    calls = {name: max(1, min(100, round(SAMPLE_MS / ms))) for name, ms in rough.items()}
    round_ms = 1.5 * sum(rough[name] * calls[name] for name in steps)
    fewest, most = SAMPLES[device.type]
    rounds = max(fewest, min(most, int(1e3 * SECONDS[device.type] / round_ms)))
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name in steps:
            samples[name].append(block(name, calls[name]))
    return samples


def replayed(name: str, step: Step, pairs: Pairs, device: torch.device) -> list[float]:
    """Milliseconds per call when calls on some of the buffers replay as one CUDA graph."""
    pairs = pairs[:REPLAYED]
    graph = torch.cuda.CUDAGraph()
    with PROVIDERS[name].context():
        with torch.cuda.stream(torch.cuda.Stream(device)):
            for _ in range(3):
                step(*pairs[0])
        torch.cuda.synchronize(device)
        with torch.cuda.graph(graph):
            for pair in pairs:
                step(*pair)
    clock = timer(device)
    clock(graph.replay)
    return [clock(graph.replay) / len(pairs) for _ in range(20)]


def peak_on_gpu(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes that a warm function allocates at most, with what it returns."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def peak_in_profile(run: Callable[[], Any]) -> int:
    """Bytes of PyTorch's CPU memory that a function allocates at most, with what it returns."""
    record = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
    with record:
        run()
    results = record.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted(
        (event.start_ns(), event.nbytes())
        for event in results.events()
        if event.name() == "[memory]"
    )
    return max(itertools.accumulate(size for _, size in events))


def peak_of_first_call(case: Case, name: str) -> int:
    """Of a process that has run nothing else, so that what a loss keeps for later counts too."""
    device = torch.device("cpu")
    step = build(case, name, device)
    pair = input_pairs(case, device)[0]
    with PROVIDERS[name].context():
        if name == COMPILED:
            step(*pair)  # the compiler's own memory is not the loss's
        return peak_in_profile(lambda: step(*pair))


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function returns in a process that has run nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchaudio", "torch_l1_snr", "benchmarks.measure"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def in_time(seconds: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """The function's result in a fresh process, which ends itself where it takes longer."""
    return in_fresh_process(_until, seconds, function, *arguments)


def _until(seconds: int, function: Callable[..., Result], *arguments: Any) -> Result:
    signal.alarm(seconds)
    return function(*arguments)


class Figure(NamedTuple):
    """One measured figure of a provider."""

    provider: str
    metric: str
    unit: str
    samples: list[float]

    @property
    def spread(self) -> Spread:
        return Spread.of(self.samples)


Job = tuple[Case, Callable[[], Iterable[Figure]]]


def measure_here(case: Case, device: torch.device) -> list[Figure]:
    """Times, and on a GPU the peak memory; raises ArithmeticError as :func:`compare` does."""
    pairs = input_pairs(case, device)
    steps = {name: build(case, name, device) for name in case.providers}
    mhz = None
    if case.mode == GRAPH:
        samples = {name: replayed(name, steps[name], pairs, device) for name in steps}
    else:
        judge = {}
        if PROVIDERS[UPSTREAM].serves(BY_NAME[case.loss], device):
            judge = {UPSTREAM: build(case, UPSTREAM, device)}
        compare(case, judge | steps, pairs[0])
        start = time.monotonic()
        with Clock(device) as clock:
            samples = interleaved(steps, pairs, device)
        mhz = clock.since(start)
    figures = [Figure(name, "time", "ms", values) for name, values in samples.items()]
    if mhz is not None:
        figures.append(Figure("all of them", "SM clock", "MHz", [mhz]))
    if case.memory and device.type == "cuda":
        for name, step in steps.items():
            with PROVIDERS[name].context():
                size = peak_on_gpu(partial(step, *pairs[0]), device)
            figures.append(Figure(name, "peak memory", "bytes", [size]))
    return figures


def measure(case: Case, device: torch.device) -> list[Figure]:
    """All figures of a case.

    On a CPU in processes of its own, because malloc remembers: what ran before decides which
    allocations cost page faults, and these can take longer than the loss. The headline in several,
    because it is a matter of luck how many they are in one.
    """
    if device.type == "cuda" and COMPILED in case.providers:
        return in_time(COMPILATION, measure_here, case, device)
    if device.type == "cuda":
        return measure_here(case, device)
    runs = [in_fresh_process(measure_here, case, device) for _ in range(case.processes)]
    figures = [
        alike[0]._replace(samples=[x for figure in alike for x in figure.samples])
        for alike in zip(*runs, strict=True)
    ]
    if case.memory:
        for name in case.providers:
            size = in_fresh_process(peak_of_first_call, case, name)
            figures.append(Figure(name, "peak memory", "bytes", [size]))
    return figures
