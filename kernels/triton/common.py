"""What the kernels share: sizes, launches, splitting of work, and the two-bit signs.

A *signal* is one channel of one row, so B rows of C channels are B C signals. Kernels walk a signal
in blocks of PLANES planes of LANES neighbouring elements, one element per thread: every load is
coalesced whatever the alignment, and PLANES loads are in flight together.

Signs have three states, in two bits: 2p and 2p + 1 of word w of a block belong to element w of its
plane p, so packing moves nothing between threads. What is not a number needs none of its own: it
makes the row's sums, and with them the coefficients that the signs multiply, not a number either.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from .. import plan

PLANES: tl.constexpr = tl.constexpr(16)  # two-bit codes in a word of 32 bits

COLUMNS: tl.constexpr = tl.constexpr(plan.COLUMNS)


class Config(NamedTuple):
    """Sizes of the work; the layout of the signs depends on ``lanes``."""

    lanes: int = 128  # four warps of 32: small enough to fill a GPU with short signals
    programs: int = 2048  # 16 programs of 128 threads on each of 128 multiprocessors
    longest: int = 1 << 16  # elements that one program sums, in float32
    transient: int = 1 << 29  # bytes of frames and spectra that exist at a time
    sums: int = 1024  # partial sums that the objective adds at a time
    # Of the on-chip STFT, warps that are wanted of a launch: six rounds of 20 on each of 132
    # multiprocessors; fewer backward, where each stretch begins with frames that are done twice.
    forward_warps: int = 16384
    backward_warps: int = 4096
    # Its registers per thread, and where a hop is half a frame; None: as many as ptxas likes.
    registers: int | None = None
    registers_of_long_hops: int | None = None
    # A pair's signs, and its samples, are loaded before the FFT of the pair before it.
    prefetch: bool = True
    prefetch_forward: bool = False
    registers_of_complex: int | None = None  # of the loss of complex spectra, per thread


# By compute capability, from the one on. What only a card can decide stands here, and is measured
# by benchmarks/tune.py. Registers: for 20, 16 and 12 warps on a multiprocessor.
CONFIGS = {
    100: Config(),
    90: Config(registers=96, registers_of_long_hops=128, registers_of_complex=168),
    0: Config(registers=96, registers_of_long_hops=128, registers_of_complex=168),
}
CONFIG: Config | None = None  # in place of the table's


def config() -> Config:
    return CONFIG or _row(driver.active)


@functools.cache
def _row(active: Any) -> Config:
    """The sizes for the GPUs of a driver."""
    target = active.get_current_target()
    if target.backend != "cuda":
        return Config()
    return next(row for arch, row in CONFIGS.items() if arch <= target.arch)


# What changes from call to call must not make Triton compile anew, so it specializes code on being
# 1 or divisible by 16 for these alone: a resolution's sizes, and tensors that start where they were
# allocated. Of views it may know all but the alignment.
SPECIALIZED = {"n", "hop", "pad", "window", "framed", "spectra", "signs"}
VIEWS = {"estimates", "actuals", "coefficients", "partials", "edges"}


def jit(function: Callable[..., None]) -> Any:
    """A kernel that is compiled once for all lengths and strides; its constants are in capitals."""
    names = {name for name in inspect.signature(function).parameters if name.islower()}
    return triton.jit(
        function,
        do_not_specialize=sorted(names - SPECIALIZED - VIEWS),
        do_not_specialize_on_alignment=sorted(names & VIEWS),
    )


DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


def launch(kernel: Any, programs: int, threads: int, **arguments: Any) -> Any:
    """Run ``programs`` instances of a kernel, of so many threads each, on the current stream.

    Returns what Triton has compiled; ``launching.Launch`` is faster where a launch is repeated.
    """
    return kernel[(programs,)](
        **arguments,
        num_warps=max(1, threads // warp_size(driver.active)),
        enable_fp_fusion=True,  # no longer the default from Triton 3.10 on
    )


@functools.cache
def warp_size(active: Any) -> int:
    """Threads of a warp on the GPUs of a driver, which asks the GPU each time that it is asked."""
    size: int = active.get_current_target().warp_size
    return size


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's device the current one, which is where Triton launches."""
    if x.device.type == "cpu":
        return nullcontext()
    device: AbstractContextManager[Any] = getattr(torch, x.device.type).device(x.device)
    return device


def readable(x: Tensor) -> Tensor:
    """The waveforms themselves if their samples are neighbours in memory, a copy otherwise."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def block_count(elements: int) -> int:
    return ceil_div(elements, PLANES.value * config().lanes)


def split(signals: int, pieces: int, size: int) -> tuple[int, int]:
    """Chunks per signal, pieces per chunk: for signals of so many pieces of ``size`` elements."""
    sizes = config()
    wanted = ceil_div(sizes.programs, signals)
    span = max(1, min(ceil_div(pieces, wanted), sizes.longest // size))
    return ceil_div(pieces, span), span


@triton.jit
def place(parts, first_signal, channels):
    """This program's part of a signal, that signal in the slab, and its row and channel.

    In 64 bits, because the offsets made of them exceed 32; divided in 32, which is cheaper.
    """
    program = tl.program_id(0)
    local = program // parts
    signal = first_signal + local
    part, row, channel = program % parts, signal // channels, signal % channels
    return part.to(tl.int64), local.to(tl.int64), row.to(tl.int64), channel.to(tl.int64)


@triton.jit
def finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def sanitized(x):
    """NaN to silence, +-Inf to full scale."""
    return tl.where(finite(x), x, (x > 0).to(x.dtype) - (x < 0).to(x.dtype))


@triton.jit
def sign_code(x):
    return (x > 0).to(tl.int32) | ((x < 0).to(tl.int32) << 1)


@triton.jit
def sign_place(x, LANES: tl.constexpr):
    """Of element x of a signal, the word that holds its sign and the bit where that starts."""
    x = x.to(tl.uint32)
    word = x // (PLANES * LANES) * LANES + x % LANES
    return word, (x // LANES % PLANES * 2).to(tl.int32)


@triton.jit
def signed(word, shift, a):
    """``a`` times the sign whose code starts at bit ``shift``."""
    code = word >> shift
    return tl.where(code & 1 != 0, a, tl.where(code & 2 != 0, -a, 0 * a))


@triton.jit
def store_partials(p_partials, err_re, err_im, ref_re, ref_im, q_est, q_ref, nonfinite):
    """One chunk's row of sums, in the order of the columns of ``plan``."""
    tl.store(p_partials + 0, err_re)
    tl.store(p_partials + 1, err_im)
    tl.store(p_partials + 2, ref_re)
    tl.store(p_partials + 3, ref_im)
    tl.store(p_partials + 4, q_est)
    tl.store(p_partials + 5, q_ref)
    tl.store(p_partials + 6, nonfinite)
