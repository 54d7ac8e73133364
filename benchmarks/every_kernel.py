"""Every kernel of the Triton backend once, at a small size, against the eager backend.

    python -m benchmarks.every_kernel              # run them
    python -m benchmarks.every_kernel --compile    # for this GPU, side by side on all cores

What compute-sanitizer watches: all losses that :mod:`benchmarks.kernels` compiles, by both routes
of the STFT. On the machine of the tests where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import multiprocessing
import pkgutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from torch_l1snr_fast.kernels import eager
from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.complex_plan import ComplexPlan
from torch_l1snr_fast.kernels.eager.waveform import compute_dtype
from torch_l1snr_fast.kernels.plan import Objective
from torch_l1snr_fast.kernels.triton import offchip, stft

from .kernels import CASES, Case, compiling, evaluate
from .registry import on_machine, torch_fft_route

CHANNELS, LENGTH = 2, 2500  # several blocks of a waveform, and frames at and between the borders
# Of values and gradients in norm: one sign of those of a spectrum may differ in float32.
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-2, torch.bfloat16: 2e-2, torch.float16: 2e-2}


def all_kernels() -> set[str]:
    """Names of the kernels that are written."""
    modules = pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}.")
    return {
        name
        for module in modules
        for name, value in vars(importlib.import_module(module.name)).items()
        if name.endswith("_kernel") and isinstance(value, triton.JITFunction)
    }


@contextlib.contextmanager
def launched() -> Iterator[set[str]]:
    """Names of the kernels that are launched inside."""
    names: set[str] = set()

    run = triton.JITFunction.run

    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        names.add(self.fn.__name__)
        return run(self, *args, **kwargs)

    with mock.patch.object(triton.JITFunction, "run", note):
        yield names


def routes(case: Case) -> list[contextlib.AbstractContextManager[Any]]:
    """The usual one, and torch.fft's if that is another."""
    if isinstance(case.plan, ComplexPlan):
        return [contextlib.nullcontext()]
    dtype = compute_dtype(*signals(case, torch.device("cpu"), 1))
    usual = {stft.stft_route(res, dtype, LENGTH) for res in case.plan.resolutions}
    return [contextlib.nullcontext(), *([torch_fft_route()] if usual - {offchip} else [])]


def signals(case: Case, device: torch.device, length: int) -> tuple[Tensor, Tensor]:
    shape = (case.batch, CHANNELS, length)
    t = torch.randn(shape, device=device)
    e = 0.9 * t + 0.2 * torch.randn(shape, device=device)
    return e.to(case.estimates), t.to(case.actuals)


def compile_for(target: GPUTarget, case: Case, save: bool) -> int:
    """Put a case's kernels into Triton's cache; how many."""
    e, t = signals(case, torch.device("cpu"), LENGTH)
    with compiling(target) as compiled:
        for route in routes(case):
            with route:
                evaluate(kernels, case, e, t, save)
    return len(compiled)


def compile_all(target: GPUTarget) -> None:
    # Those with the most kernels first.
    cases = sorted(CASES, key=lambda case: -len(case.plan.resolutions))
    work = [(target, case, save) for save, case in itertools.product((True, False), cases)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as pool:
        print(f"{sum(pool.map(compile_for, *zip(*work, strict=True)))} kernels for {target}")


def error(case: Case, device: torch.device) -> float:
    """The larger one of the relative errors of loss and gradient."""
    e, t = signals(case, device, LENGTH)
    pairs = zip(evaluate(kernels, case, e, t), evaluate(eager, case, e, t), strict=True)
    distances = [((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in pairs]
    return max(distances)


def title(case: Case) -> str:
    """What distinguishes a case from the usual."""
    plan = case.plan
    usual = Objective()._asdict()
    terms = [
        {name: value for name, value in term._asdict().items() if value != usual[name]}
        for term in ([] if isinstance(plan, ComplexPlan) else (plan.waveform, plan.spectrum))
        if term is not None
    ]
    kind, sizes = type(plan).__name__, [r.n_fft for r in plan.resolutions]
    return f"{kind} {terms} {sizes} {case.estimates} {case.actuals}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.every_kernel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--compile", action="store_true")
    if parser.parse_args().compile:
        compile_all(driver.active.get_current_target())
        return 0
    with contextlib.nullcontext() if torch.cuda.is_available() else on_machine():
        return run_all()


def run_all() -> int:
    """Run every case by every route; 0 if all are right and every kernel took part."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    bad = []
    with launched() as names:
        for case in CASES:
            for route in routes(case):
                with route:
                    distance = error(case, device)
                line = f"{distance:.1e} {title(case)}"
                print(line, flush=True)
                if not distance <= BOUNDS[case.estimates]:
                    bad.append(line)
    missed = all_kernels() - names
    print(f"{len(names)} kernels on {device}", *(f"FAILED {line}" for line in bad), sep="\n")
    if missed:
        print("FAILED, never launched:", *sorted(missed))
    return 1 if bad or missed else 0


if __name__ == "__main__":
    sys.exit(main())
