"""Time of each kernel beside the bytes that it must move, as PyTorch's profiler saw it on a GPU.

    python -m benchmarks.per_kernel --out DIR     # DIR/kernels.csv
    python -m benchmarks.per_kernel --once        # one warm call of each loss, for ncu to look at
    python -m benchmarks.per_kernel --issue --out DIR   # of DIR/kernels.csv and DIR/counters.csv

Bytes are counted as in :mod:`benchmarks.traffic`: every tensor that a kernel is given once, twice
if it is updated. All that PyTorch launches itself, cuFFT above all, is one line. The share of the
issue rate is the warp instructions that ncu counted by those that the multiprocessors could have
issued in the kernel's time, four a cycle each, at the clock that they had meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from . import records
from .clock import Clock
from .measure import Pairs, build, input_pairs, timer
from .registry import COMPLEX, HEADLINE, LOSSES, MULTI, OURS, PROVIDERS, Case, shape_text
from .traffic import Counter, Traffic, kernel_bytes, transform_size

CALLS = 20
BUSY = 0.5  # seconds of work before a clock is read, which NVML samples a few times a second
ISSUED = 4  # warp instructions in a cycle of a multiprocessor, at most
EXECUTED = "smsp__inst_executed.sum"  # ncu's name for warp instructions
PYTORCH = "PyTorch and cuFFT"
COPIED = 1 << 30  # bytes of the copy that bandwidth is measured with
WAYS = [
    *((MULTI, provider) for provider in ("triton", "triton, torch.fft")),
    *((name, "triton") for name, loss in LOSSES.items() if not loss.spectral),
    (COMPLEX, "triton"),
]

Event = tuple[str, float, float]  # name, start, duration in microseconds


class Launch(NamedTuple):
    """One launch of a Triton kernel; its transform's size tells launches of one kernel apart."""

    kernel: str
    n_fft: int
    bytes: int


class Line(NamedTuple):
    """A kernel in one call of a loss; shares are of the bandwidth of a copy in the same run."""

    loss: str
    provider: str
    kernel: str
    launches: float
    ms: float
    bytes: int
    gb_per_s: float
    share_of_copy: float
    sm_mhz: float


@contextlib.contextmanager
def noted_launches(kernel_type: type = triton.JITFunction) -> Iterator[list[Launch]]:
    """Launches made inside, in order."""
    launches: list[Launch] = []
    run = kernel_type.run  # type: ignore[attr-defined]

    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self.arg_names, args, strict=False)) | kwargs
        name = self.fn.__name__
        launches.append(Launch(name, transform_size(given), kernel_bytes(name, given)))
        return run(self, *args, **kwargs)

    with mock.patch.object(kernel_type, "run", note):
        yield launches


def device_events(run: Callable[[], None]) -> list[Event]:
    """What the GPU did, in the order in which it began."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        run()
        torch.cuda.synchronize()
    found = [
        (event.name, event.time_range.start, event.time_range.elapsed_us())
        for event in record.events()
        if event.device_type == DeviceType.CUDA
    ]
    return sorted(found, key=lambda event: event[1])


def attribute(events: list[Event], launches: list[Launch]) -> dict[tuple[str, int], list[float]]:
    """Durations by kernel and transform; the i-th event of a name is the i-th launch of it."""
    times: dict[tuple[str, int], list[float]] = {}
    sizes: dict[str, Iterator[int]] = {}
    for name in {launch.kernel for launch in launches}:
        wanted = [launch.n_fft for launch in launches if launch.kernel == name]
        seen = sum(event[0] == name for event in events)
        if seen != len(wanted):
            raise RuntimeError(f"the profiler saw {seen} of {len(wanted)} launches of {name}")
        sizes[name] = iter(wanted)
    for name, _, duration in events:
        key = (name, next(sizes[name])) if name in sizes else (PYTORCH, 0)
        times.setdefault(key, []).append(duration)
    return times


def lines(
    loss: str, provider: str, pairs: Pairs, device: torch.device, copy: float, clock: Clock
) -> Iterator[Line]:
    """Every kernel of a provider's forward and backward, the slowest first."""
    case = Case(loss, tuple(pairs[0][0].shape), (provider,))
    step, rotation = build(case, provider, device), itertools.cycle(pairs)
    with PROVIDERS[provider].context():
        for _ in range(3):
            step(*next(rotation))
        traffic = Traffic()
        with noted_launches() as once, Counter(traffic):
            step(*next(rotation))

        def run() -> None:
            for _ in range(CALLS):
                step(*next(rotation))

        start = time.monotonic()
        while time.monotonic() < start + BUSY:
            run()
            torch.cuda.synchronize()
        with noted_launches() as launches:
            events = device_events(run)
        mhz = clock.since(start + BUSY / 2) or math.nan

    sizes = {(PYTORCH, 0): traffic.bytes}
    for kernel, n_fft, size in once:
        sizes[kernel, n_fft] = sizes.get((kernel, n_fft), 0) + size
    found = attribute(events, launches)
    for (kernel, n_fft), times in sorted(found.items(), key=lambda item: -sum(item[1])):
        ms = 1e-3 * sum(times) / CALLS
        rate = 1e-6 * sizes[kernel, n_fft] / ms
        name = f"{kernel}, {n_fft}" if n_fft else kernel
        size = sizes[kernel, n_fft]
        yield Line(loss, provider, name, len(times) / CALLS, ms, size, rate, rate / copy, mhz)


def copy_bandwidth(device: torch.device, size: int = COPIED) -> float:
    """Gigabytes per second, read and written, of a long copy."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    clock = timer(device)
    for _ in range(3):
        target.copy_(source)
    times = [clock(lambda: target.copy_(source)) for _ in range(20)]
    return 2e-6 * size / statistics.median(times)


def call_once(pairs: Pairs, device: torch.device) -> None:
    """What is between the marks of CUDA's profiler: one call of each loss."""
    for loss, provider in WAYS:
        step = build(Case(loss, tuple(pairs[0][0].shape), (provider,)), provider, device)
        with PROVIDERS[provider].context():
            step(*pairs[0])
            torch.cuda.synchronize()
            with torch.cuda.profiler.profile():
                step(*pairs[1])
                torch.cuda.synchronize()


def issue_share(instructions: float, ms: float, mhz: float, multiprocessors: int) -> float:
    """Of the warp instructions that could have been issued in that time at that clock."""
    return instructions / (ISSUED * multiprocessors * mhz * 1e3 * ms)


def print_issue_shares(folder: Path, multiprocessors: int) -> None:
    """Of each kernel that ncu looked at, in its order: that of launches, by growing transforms."""
    with (folder / "counters.csv").open(newline="") as file:
        text = [line for line in file if not line.startswith("==")]
    counted: dict[str, list[float]] = {}
    for row in csv.DictReader(text):
        if row["Kernel Name"]:  # the first row has the units
            number = float(row[EXECUTED].replace(",", ""))
            counted.setdefault(row["Kernel Name"], []).append(number)
    with (folder / "kernels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    def place(row: dict[str, str]) -> tuple[int, int]:
        size = row["kernel"].rpartition(", ")[2]
        return WAYS.index((row["loss"], row["provider"])), int(size) if size.isdigit() else 0

    for row in sorted(rows, key=place):
        name = row["kernel"].partition(", ")[0]
        if name in counted:
            for _ in range(round(float(row["launches"]))):
                instructions = counted[name].pop(0)
            share = issue_share(
                instructions, float(row["ms"]), float(row["sm_mhz"]), multiprocessors
            )
            print(f"{row['loss']:18}{row['provider']:19}{row['kernel']:34}{share:7.2f} of issue")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.per_kernel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--issue", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda")
    if options.issue:
        properties = torch.cuda.get_device_properties(device)
        print_issue_shares(options.out, properties.multi_processor_count)
        return
    pairs = input_pairs(Case(MULTI, HEADLINE["cuda"], (OURS["cuda"],)), device)
    if options.once:
        call_once(pairs, device)
        return
    copy = copy_bandwidth(device)
    place = (records.commit(), records.versions(), records.device_text(device))
    print(f"copy {copy:.0f} GB/s")
    with Clock(device) as clock, (options.out / "kernels.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("commit", "versions", "device", "shape", "copy_gb_per_s", *Line._fields))
        for loss, provider in WAYS:
            for line in lines(loss, provider, pairs, device, copy, clock):
                numbers = [f"{x:.6g}" if isinstance(x, float) else x for x in line]
                writer.writerow((*place, shape_text(HEADLINE["cuda"]), f"{copy:.6g}", *numbers))
                file.flush()
                print(
                    f"{line.loss:18}{line.provider:19}{line.kernel:34}{line.launches:6.1f}"
                    f"{line.ms:9.4f} ms{line.gb_per_s:8.0f} GB/s{line.share_of_copy:7.2f}"
                    f"{line.sm_mhz:7.0f} MHz",
                    flush=True,
                )


if __name__ == "__main__":
    main()
