"""Work of a forward and backward pass that can be counted without a GPU.

    python -m benchmarks.traffic [--json FILE]

Launches, bytes moved, host synchronisations and memory saved for the backward pass. PyTorch's
operators are counted one by one as they are dispatched; Triton's launches are caught instead of
made. Every tensor that an operator or a kernel is given counts once: what is read again is served
by a cache. The unit of bytes is "4n": four bytes times the samples of the estimates.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torch_l1snr_fast import backends
from torch_l1snr_fast.notices import Notices

from .registry import (
    BY_NAME,
    IN_PYTORCH,
    OWN,
    UPSTREAM,
    Loss,
    Step,
    backend,
    complex_stft_formula,
    installed,
    shape_text,
    torch_fft_route,
)

SHAPE = (4, 2, 264600)
CPU = torch.device("cpu")

# A model of an H100 SXM: what a long copy reaches of its 3.35 TB/s, and what a launch and a wait
# for the device cost however little there is to do.
BANDWIDTH, LAUNCH_S, SYNC_S = 3.0e12, 4e-6, 10e-6

aten = torch.ops.aten
NOT_LAUNCHED = {aten._unsafe_view, aten.transpose_, aten._local_scalar_dense}
UNREAD_SELF = {aten.copy_, aten.fill_, aten.zero_, aten.new_zeros, aten.new_full}
UNREAD_SELF |= {aten.zeros_like, aten.ones_like, aten.full_like}
# Two passes: zeros, then the slice; and a copy, because cuFFT overwrites its input.
TWO_PASSES = {aten.select_backward, aten._fft_c2r}


@dataclass
class Traffic:
    """What a pass does, in launches, bytes and waits; ``seconds`` are modelled."""

    launches: int = 0
    bytes: int = 0
    syncs: int = 0
    saved: int = 0
    seconds: float = 0.0

    def launch(self, size: int, count: int = 1) -> None:
        self.launches += count
        self.bytes += size
        self.seconds += max(count * LAUNCH_S, size / BANDWIDTH)

    def sync(self) -> None:
        self.syncs += 1
        self.seconds += SYNC_S


def extent(x: Tensor) -> int:
    """Bytes of memory behind a tensor, where expanded and overlapping elements count once."""
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride else 1
    return min(count * x.itemsize, x.untyped_storage().nbytes())


def extents(values: Any) -> int:
    return sum(extent(x) for x in tree_leaves(values) if isinstance(x, Tensor))


def is_view(operator: torch._ops.OpOverload) -> bool:
    aliases = [output.alias_info for output in operator._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


class Counter(TorchDispatchMode):
    """Counts operators, in the backward pass too."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        packet = operator.overloadpacket
        if packet is aten._local_scalar_dense:
            self.traffic.sync()
        if is_view(operator) or packet in NOT_LAUNCHED or "empty" in operator.__name__:
            return result
        written = {name for name in kwargs if name in ("out", "grad_input")}
        read = [*args[packet in UNREAD_SELF :], *(kwargs[k] for k in kwargs.keys() - written)]
        size = extents(read) + extents(result)
        if packet in TWO_PASSES:
            size += 2 * extents(args[0]) if packet is aten._fft_c2r else extents(result)
        self.traffic.launch(size, 2 if packet in TWO_PASSES else 1)
        return result


def untouched(kernel: str, given: dict[str, Any]) -> set[str]:
    """Tensors that a kernel is given but does not need for these settings."""
    names = set()
    if kernel == "complex_stft_kernel":
        return set()
    if "gradient" in given and not (given["LEVEL"] or given.get("BASE") == "level"):
        names.add("estimates")
    if kernel in ("stft_statistics_kernel", "stft_gradient_kernel"):
        names.add("unknown")  # of samples that are not finite alone
    return names


def updates(kernel: str, given: dict[str, Any]) -> bool:
    """Whether a kernel reads the gradient that it writes."""
    if kernel == "complex_stft_kernel":
        return given["GRADIENT"] and not given["FIRST"]
    return kernel == "overlap_add_kernel" or given.get("BASE") == "added"


def kernel_bytes(kernel: str, given: dict[str, Any]) -> int:
    """What a kernel that is given these arguments moves."""
    used = [given[name] for name in given.keys() - untouched(kernel, given)]
    return extents(used) + extents(given["gradient"] if updates(kernel, given) else None)


def transform_size(given: dict[str, Any]) -> int:
    if "RADICES" in given:
        return math.prod(given["RADICES"])
    return int(given.get("n", given.get("N", 0)))


@contextlib.contextmanager
def caught_launches(traffic: Traffic) -> Iterator[None]:
    """Inside, the Triton backend serves CPU tensors: its launches are counted and not made."""
    import triton
    from triton.runtime import driver

    from .kernels import TARGETS, Offline

    def catch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        given = dict(zip(self.arg_names, args, strict=False)) | kwargs
        traffic.launch(kernel_bytes(self.fn.__name__, given))

    before = driver._active
    driver.set_active(Offline(TARGETS["sm_90"]))
    try:
        with (
            mock.patch.object(triton.JITFunction, "run", catch),
            mock.patch.object(backends, "select_backend", return_value="triton"),
            mock.patch.object(Notices, "sanitized"),  # waits for nothing on a GPU
        ):
            yield
    finally:
        driver._active = before


def saved_bytes(record: dict[int, int], inputs: Iterable[Tensor]) -> Callable[[Tensor], Tensor]:
    """A hook that notes the storages saved for the backward pass, but for the inputs'."""
    known = {x.untyped_storage().data_ptr() for x in inputs}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            record[storage.data_ptr()] = storage.nbytes()
        return x

    return note


def count(
    loss: Step,
    shape: tuple[int, ...],
    context: Callable[[Traffic], contextlib.AbstractContextManager[Any]],
) -> Traffic:
    """Traffic of one forward and backward pass of a loss that is warm."""
    actuals = 0.1 * torch.randn(shape)
    estimates = (actuals + 0.02 * torch.randn(shape)).requires_grad_()
    saved: dict[int, int] = {}
    note = saved_bytes(saved, (estimates, actuals))
    for _ in range(2):  # the first also makes what is kept for later
        traffic = Traffic()
        saved.clear()
        # To the mode that counts, the loss would be one operator.
        seen = mock.patch.object(backends, "needs_operator", return_value=False)
        with context(traffic), seen, Counter(traffic):
            with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
                value = loss(estimates, actuals)
            torch.autograd.grad(value, estimates)
    traffic.saved = sum(saved.values())
    return traffic


def eager(traffic: Traffic) -> contextlib.AbstractContextManager[Any]:
    return backend("eager")


def plain(traffic: Traffic) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


@contextlib.contextmanager
def torch_fft(traffic: Traffic) -> Iterator[None]:
    with caught_launches(traffic), torch_fft_route():
        yield


Way = tuple[Step, Callable[[Traffic], contextlib.AbstractContextManager[Any]]]


def ways(loss: Loss) -> dict[str, Way]:
    """Who computes a loss, and in what context."""
    found: dict[str, Way] = {}
    if loss.name in OWN:
        found[IN_PYTORCH] = complex_stft_formula, plain
    elif installed("torch_l1_snr"):
        found[UPSTREAM] = loss.build("torch_l1_snr", CPU), plain
    found["eager"] = loss.build("torch_l1snr_fast", CPU), eager
    if backends.triton_problem() is None:
        found["triton"] = loss.build("torch_l1snr_fast", CPU), caught_launches
        if loss.spectral:
            found["triton, torch.fft"] = loss.build("torch_l1snr_fast", CPU), torch_fft
    return found


def table(shape: tuple[int, ...] = SHAPE) -> list[dict[str, Any]]:
    """One row for every loss and provider."""
    rows = []
    unit = 4 * torch.Size(shape).numel()
    for name, loss in BY_NAME.items():
        for provider, (compute, context) in ways(loss).items():
            found = count(compute, shape, context)
            rows.append(
                {
                    "loss": name,
                    "provider": provider,
                    "shape": shape_text(shape),
                    "launches": found.launches,
                    "bytes_per_4n": round(found.bytes / unit, 3),
                    "saved_per_4n": round(found.saved / unit, 3),
                    "syncs": found.syncs,
                    "modelled_h100_ms": round(1e3 * found.seconds, 4),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.traffic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # uninitialised memory stands in for what kernels would write
    rows = table()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    numbers = [key for key in rows[0] if key not in ("loss", "provider", "shape")]
    print(f"forward + backward at {rows[0]['shape']}, float32")
    print(f"{'loss':26}{'provider':20}" + "".join(f"{name:>18}" for name in numbers))
    for row in rows:
        print(f"{row['loss']:26}{row['provider']:20}" + "".join(f"{row[n]:>18}" for n in numbers))


if __name__ == "__main__":
    main()
