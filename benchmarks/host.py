"""What a call costs the host, which a GPU does not wait for only while it has work left.

    python -m benchmarks.host [--calls N] [--profile]

One forward and backward of CPU tensors as a GPU's: Triton's launches go all the way to its driver,
and this one compiles and launches nothing. Left out are, therefore, CUDA's own share (of an
allocation and a launch) and the copy of the count of samples that are not finite. Of torch-l1-snr,
which looks at values, the operators are called, with tensors so small that their dispatch is most
of the time. The time is that of the thread, not of the clock on the wall: others may be at work.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch_l1_snr as upstream
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import torch_l1snr_fast as package
from torch_l1snr_fast import backends

REPEATS = 7
LOSSES = ("L1SNRLoss", "L2SNRLoss", "L1SNRDBLoss", "STFTL1SNRDBLoss", "MultiL1SNRDBLoss")
SMALL = {
    "n_ffts": [16, 32, 64],
    "hop_lengths": [4, 8, 16],
    "win_lengths": [16, 32, 64],
    "min_audio_length": 64,
}


class Still(DriverBase):
    """A Triton driver of a GPU that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return -1  # no GPU's: by this number are kept what Triton, and we, have compiled

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    @classmethod
    def is_active(cls) -> bool:
        return True


class Compiled:
    """A kernel as the driver would have loaded it."""

    function = packed_metadata = None
    launched = 0

    def launch_metadata(self, *args: Any) -> None:
        return None

    def run(self, *args: Any) -> None:
        Compiled.launched += 1


@contextmanager
def still() -> Iterator[None]:
    """Inside, CPU tensors are computed by Triton, whose launches end at the driver."""

    def load(self: Any, key: Any, signature: Any, device: Any, *rest: Any) -> Compiled:
        return self.device_caches[device][0].setdefault(key, Compiled())

    before = driver._active
    driver.set_active(Still())
    try:
        with (
            mock.patch.object(JITFunction, "_do_compile", load),
            mock.patch.object(backends, "TRITON_DEVICES", {"cpu"}),
            mock.patch("torch_l1snr_fast.notices.Notices.sanitized"),
        ):
            yield
    finally:
        driver._active = before


def seconds(call: Callable[[], Any], calls: int) -> float:
    """Least of some medians: what disturbs only adds."""
    return min(_median(call, calls) for _ in range(REPEATS))


def _median(call: Callable[[], Any], calls: int) -> float:
    times = []
    for _ in range(calls):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return statistics.median(times)


def step(loss: torch.nn.Module, length: int) -> Callable[[], None]:
    shape = (1, 1, length)
    estimates = torch.full(shape, 0.1, requires_grad=True)
    actuals = torch.full(shape, 0.2)

    def call() -> None:
        estimates.grad = None
        loss(estimates, actuals).backward()

    return call


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--profile", action="store_true", help="of MultiL1SNRDBLoss")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("us of host time      forward+backward  launches  building  torch-l1-snr  building")
    for name in LOSSES:
        make, theirs = getattr(package, name), getattr(upstream, name)
        small = SMALL if "n_ffts" in make.__init__.__annotations__ else {}
        with still():
            call = step(make("loss"), 2000)
            call()
            Compiled.launched = 0
            call()
            launched = Compiled.launched
            ours = seconds(call, options.calls)
        other = seconds(step(theirs("loss", **small), 100), options.calls)
        built = [seconds(lambda m=m: m("loss"), options.calls // 4) for m in (make, theirs)]
        print(
            f"{name:<20} {1e6 * ours:16.0f} {launched:9} {1e6 * built[0]:9.0f}"
            f" {1e6 * other:13.0f} {1e6 * built[1]:9.0f}"
        )
    if options.profile:
        with still(), cProfile.Profile() as profile:
            for _ in range(options.calls):
                call()
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
