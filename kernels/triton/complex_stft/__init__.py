r"""Complex spectra on-chip: mean moduli of D = STFT(e - t) and their gradient, from one reading.

First the differences are written, with their borders reflected (``difference``). Then a program
owns a stretch of positions of one signal (``kernel``), and for each resolution walks along the
frames that reach it (``walk``). A step is one complex transform of n points there and back, of
either

- a pair of frames A and B of n samples, a hop apart, as the real and the imaginary part of z;
- or one frame of 2 n samples, its even samples A as the real part, its odd ones B as the imaginary,

with the moduli and their slopes between (``directions``). Reflected borders go to a buffer, and are
added by the same program where they belong. A frame that is silent must have no part of the
rounding errors of its partner.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...complex_plan import ComplexPlan, hann
from ...eager import complex_stft as eager
from ...eager.waveform import compute_dtype, sum_dtype
from ...modes import kept
from ...plan import Resolution
from .. import common
from ..common import ceil_div, on_device, readable
from ..fft import Split, twiddles
from ..launching import Launch, prepared
from .difference import difference
from .kernel import complex_stft_kernel

# The same radices backwards, so that one code transforms there and back: half the instructions, and
# a quarter of the time to compile.
SPLITS = {
    256: Split((8, 4, 8), 32),
    512: Split((8, 8, 8), 32),
    1024: Split((8, 16, 8), 64),
    2048: Split((16, 8, 16), 128),
}
SIZES = {*SPLITS, *(2 * n for n in SPLITS)}  # of frames
PROGRAMS = 1584  # warps wanted of a launch: 12 on each of 132 multiprocessors, all at once


def supports(res: Resolution, dtype: torch.dtype, length: int) -> bool:
    """Whether this route computes the resolution: any window, hops of at most half a transform.

    And samples that 32 bits can count, with the borders: of one signal, for signals are many.
    """
    known = res.n_fft in SIZES and dtype == torch.float32
    return known and 2 * res.hop_length <= res.n_fft and length < 2**31 - 2 * res.n_fft


@kept(at_most=1 << 22)
def windows(resolutions: tuple[Resolution, ...], device: torch.device) -> Tensor:
    """[R, size of the largest transform], each window in front."""
    rows = [hann(res.win_length, torch.float32, device) for res in resolutions]
    size = max(res.n_fft for res in resolutions)
    return torch.stack([torch.nn.functional.pad(row, (0, size - len(row))) for row in rows])


def launches(resolutions: tuple[Resolution, ...]) -> list[tuple[int, list[int]]]:
    """Transforms, and the places of the resolutions whose frames they do, those of 2 n first.

    The shortest transform that is left and its double go together.
    """
    left = sorted(range(len(resolutions)), key=lambda i: -resolutions[i].n_fft)
    found = []
    while left:
        n = min(resolutions[left[-1]].n_fft, max(SPLITS))
        some = [i for i in left if resolutions[i].n_fft in (n, 2 * n)]
        found.append((n, some))
        left = [i for i in left if i not in some]
    return found


def stretches_of(n: int, signals: int, length: int) -> tuple[int, int]:
    """Samples of a stretch, and stretches of a signal.

    What a longer stretch saves is frames that reach into two. The first and the last must have the
    samples that their borders show.
    """
    programs = PROGRAMS // ceil_div(SPLITS[n].threads, 32)
    span = min(max(2 * n, signals * length // programs), 32 * n)
    stretches = max(1, length // span)
    return length // stretches, stretches


class Work(NamedTuple):
    """A launch, the places of its means (-1: the waveform's), the shapes of what it writes."""

    launch: Launch
    places: list[int]
    partials: tuple[int, int, int]
    borders: tuple[int, int]


@prepared
def _works(plan: ComplexPlan, shape: torch.Size, device: torch.device, save: bool) -> list[Work]:
    """One after the other; the first computes the waveform's term too."""
    batch, channels, length = shape
    signals, registers = batch * channels, common.config().registers_of_complex
    options = {} if registers is None else {"maxnreg": registers}
    found: list[Work] = []
    for n, places in launches(plan.resolutions):
        first = not found
        some = tuple(plan.resolutions[i] for i in places)
        stretch_length, stretches = stretches_of(n, signals, length)
        launch = Launch(
            complex_stft_kernel,
            programs=signals * stretches,
            threads=SPLITS[n].threads,
            windows=windows(some, device),
            hops=tuple(res.hop_length for res in some),
            widths=tuple(res.win_length for res in some),
            p_twiddles=twiddles(n, device),
            p_halves=twiddles(2 * n, device),
            channels=channels,
            length=length,
            border=border_of(plan),
            stretch_length=stretch_length,
            stretches=stretches,
            zero=0,
            waveform_weight=plan.waveform_weight,
            weight=plan.weight,
            RADICES=SPLITS[n].radices,
            DOUBLES=sum(res.n_fft > n for res in some),
            FIRST=int(first),
            GRADIENT=save,
            **options,
        )
        partials = (batch, channels * stretches, first + len(places))
        found.append(Work(launch, [-1] * first + places, partials, (signals, some[0].n_fft)))
    return found


def border_of(plan: ComplexPlan) -> int:
    """Samples reflected at either end, as many as the longest frames show."""
    return max(res.pad for res in plan.resolutions)


def complex_stft(
    plan: ComplexPlan, estimates: Tensor, actuals: Tensor, save: bool
) -> tuple[Tensor, Tensor | None]:
    """As the eager backend's, which computes what is not supported."""
    shape, device = estimates.shape, estimates.device
    dtype = compute_dtype(estimates, actuals)
    if not all(supports(res, dtype, shape[-1]) for res in plan.resolutions):
        return eager.complex_stft(plan, estimates, actuals, save)
    gradient = estimates.new_empty(shape, dtype=dtype) if save else None
    means = {}
    with on_device(estimates):
        differences = difference(readable(estimates), readable(actuals), border_of(plan))
        for work in _works(plan, shape, device, save):
            partials = differences.new_empty(work.partials)
            borders = differences.new_zeros(work.borders) if save else None
            work.launch(
                differences=differences, gradient=gradient, borders=borders, partials=partials
            )
            rows = partials.sum(1, dtype=sum_dtype(device)).unbind(1)
            means |= zip(work.places, rows, strict=True)
    return torch.stack([means[i] for i in sorted(means)]).float(), gradient
