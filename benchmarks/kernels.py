"""Static figures of every compiled Triton kernel; needs no GPU.

    python -m benchmarks.kernels [--json FILE] [--target sm_90 ...]

The losses below run on CPU tensors while every launch is caught and compiled for a target instead,
with just the arguments that a GPU's would be compiled for. A kernel that one of them launches is
therefore in the table; nothing has to be listed twice.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.complex_plan import ComplexPlan
from torch_l1snr_fast.kernels.eager.waveform import compute_dtype
from torch_l1snr_fast.kernels.plan import Objective, Plan, Resolution

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

WAVEFORM = Objective()
LEVEL = Objective(regularize=True)
ENERGY = Objective(power=2)
PURE = Objective(l1_weight=1.0)
SPECTRUM = Objective(parts=2)
SPECTRUM_LEVEL = Objective(parts=2, regularize=True)
SPECTRUM_PURE = Objective(parts=2, l1_weight=1.0)
DEFAULT = tuple(Resolution(n, n // 4, n) for n in (512, 1024, 2048))
# Transforms that only the torch.fft route computes, with sizes divisible by 16 and without.
OTHER = (Resolution(960, 240, 960), Resolution(1001, 300, 900))
ON_CHIP = (Resolution(256, 64, 256), *DEFAULT, Resolution(4096, 1024, 4096))
LONG = (Resolution(4096, 2048, 4096), Resolution(2048, 512, 2048))  # the most registers
MULTI = Plan(LEVEL, SPECTRUM, DEFAULT, sanitize_spectrum=True)
COMPLEX = ComplexPlan(1.0, 1.0, (Resolution(4096, 147, 4096), Resolution(2048, 147, 1024)))


class Case(NamedTuple):
    """A loss whose kernels are compiled."""

    plan: Plan | ComplexPlan
    estimates: torch.dtype = torch.float32
    actuals: torch.dtype = torch.float32
    batch: int = 2


CASES = [
    Case(Plan(WAVEFORM, None), batch=1),
    Case(Plan(WAVEFORM, None, sanitize_waveform=True)),
    Case(Plan(LEVEL, None, reduction="none"), batch=16),
    Case(Plan(LEVEL, None, sanitize_waveform=True)),
    Case(Plan(ENERGY, None)),
    Case(Plan(ENERGY, None, sanitize_waveform=True)),
    Case(Plan(PURE, None, reduction="sum")),
    Case(Plan(WAVEFORM, None), torch.bfloat16, torch.bfloat16),
    # On-chip: each size, then each option of the kernels with one or two of them.
    Case(MULTI),
    Case(Plan(None, SPECTRUM, ON_CHIP, sanitize_spectrum=True)),
    Case(Plan(LEVEL, SPECTRUM_LEVEL, LONG, sanitize_spectrum=True)),
    Case(Plan(None, SPECTRUM_LEVEL._replace(l1_weight=0.5), LONG[1:])),
    Case(Plan(None, SPECTRUM, LONG[1:])),
    Case(Plan(None, SPECTRUM_PURE, LONG[1:])),
    Case(MULTI._replace(resolutions=DEFAULT[:1]), torch.bfloat16, torch.bfloat16),
    # Through torch.fft.
    Case(MULTI, torch.float64, torch.float64),
    Case(MULTI._replace(resolutions=OTHER)),
    Case(MULTI._replace(resolutions=OTHER), torch.bfloat16, torch.bfloat16),
    Case(MULTI._replace(resolutions=OTHER), torch.float16, torch.float32),
    Case(Plan(None, SPECTRUM, OTHER)),
    Case(Plan(None, SPECTRUM_LEVEL, OTHER, sanitize_spectrum=True)),
    Case(Plan(None, SPECTRUM_LEVEL._replace(l1_weight=0.5), OTHER)),
    Case(Plan(None, SPECTRUM_PURE, OTHER)),
    Case(COMPLEX),
    Case(COMPLEX._replace(resolutions=(Resolution(256, 100, 200),)), torch.bfloat16, torch.float16),
]


# Where a signal or a frame starts in a large tensor must be computed in 64 bits.
LARGE = (
    "estimates|actuals|differences|gradient|framed|spectra|signs|wave_signs|unknown|edges|borders"
    "|partials"
)
NARROW = re.compile(rf"tt\.addptr %(?:{LARGE}), %\S+ : !tt\.ptr<\w+>, i32")


class Offline:
    """In a GPU driver's place: Triton compiles for ``target`` and finds nothing to launch on."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target
        self.device = list(TARGETS.values()).index(target)  # Triton's caches are per device

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compiling(target: GPUTarget) -> Iterator[dict[str, Any]]:
    """Inside, launches compile for ``target`` and do no more; yields what they compiled."""
    compiled: dict[str, Any] = {}
    run = triton.JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        name = variant(self, dict(zip(self.arg_names, args, strict=False)) | kwargs, kernel)
        known = compiled.setdefault(name, kernel)
        if known.hash != kernel.hash:
            raise RuntimeError(f"two kernels are called {name}")

    before = driver._active
    driver.set_active(Offline(target))
    try:
        with mock.patch.object(triton.JITFunction, "run", compile_only):
            yield compiled
    finally:
        driver._active = before


def variant(function: Any, arguments: dict[str, Any], kernel: Any) -> str:
    """Name of a kernel and what it was compiled for: dtypes, tuples, divisible sizes, settings."""
    types = dict(zip(function.arg_names, kernel.src.signature.values(), strict=True))
    inputs = ("estimates", "actuals", "spectra", "framed")
    dtypes = sorted({types[name].strip("*") for name in inputs if name in types})
    if isinstance(terms := types.get("partials"), tuple):
        dtypes.append(f"{len(terms)}x{terms[0].strip('*')}")
    divisible = [
        function.arg_names[index]
        for (index, *_), attributes in kernel.src.attrs.items()
        if attributes and function.arg_names[index] in ("n", "hop", "pad")
    ]
    settings = [
        name if arguments[name] is True else f"{name}={arguments[name]}"
        for name, kind in types.items()
        if kind == "constexpr" and name.isupper() and arguments[name] is not False
    ]
    sixteen = [",".join(divisible) + "%16=0"] if divisible else []
    return " ".join([function.fn.__name__, *dtypes, *sixteen, *settings])


def evaluate(
    backend: Any, case: Case, e: Tensor, t: Tensor, save: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Loss of one backend, and its gradient if ``save``."""
    if isinstance(case.plan, ComplexPlan):
        module = importlib.import_module(f"{backend.__name__}.complex_stft")
        both: tuple[Tensor, Tensor | None] = module.complex_stft(case.plan, e, t, save)
        return both
    found = backend.statistics(case.plan, e, t, save)
    dtype = compute_dtype(e, t)
    result = backend.objective(case.plan, found.partials, *e.shape[1:], dtype)
    gradient = None
    if save:
        gradient = backend.gradient(case.plan, found.saved, result.coefficients, e, dtype)
    return result.loss, gradient


def run(case: Case, length: int = 4801) -> None:
    """Forward and backward of one loss, of two channels."""
    shape = (case.batch, 2, length)
    e, t = torch.rand(shape, dtype=case.estimates), torch.rand(shape, dtype=case.actuals)
    evaluate(kernels, case, e, t)


def figures(name: str, target: str, kernel: Any) -> dict[str, Any]:
    """What the compiler made of a kernel."""
    read = of_nvidia if "cubin" in kernel.asm else of_amd
    return {
        "kernel": name,
        "target": target,
        **read(kernel),
        "shared_bytes": kernel.metadata.shared,
        "layout_conversions": kernel.asm["ttgir"].count("ttg.convert_layout"),
        "warps": kernel.metadata.num_warps,
        "narrow_offsets": len(NARROW.findall(kernel.asm["ttir"])),
    }


def of_nvidia(kernel: Any) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [tool, "--dump-resource-usage", "--dump-sass", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    code = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", text, re.M)
    check_opcodes(kernel.asm["ptx"], [text for _, text in code])
    return {
        "registers": int(used["REG"]),
        "spill_bytes": int(used["STACK"]) + int(used["LOCAL"]),
        "instructions": sum("NOP" not in text for _, text in code),
        "step_instructions": step_instructions({int(at, 16): text for at, text in code}),
        "approximate": len(re.findall(r"\.approx\b|\bdiv\.full\b", kernel.asm["ptx"])),
    }


def check_opcodes(ptx: str, code: list[str]) -> None:
    """Raises where a GPU may compute otherwise than PTX says, which is what tests execute.

    No product is fused with a sum that PTX has apart; ptxas's float64 division has float32
    multiply-adds of its own. VIMNMX3, minima of three, ptxas has compiled wrongly for sm_100.
    """
    fused = sum(bool(re.search(r"\bFFMA2?\b", text)) for text in code)
    if fused > len(re.findall(r"\bfma\.rn\.f32", ptx)) and "div.rn.f64" not in ptx:
        raise RuntimeError(f"ptxas made {fused} float32 multiply-adds, more than PTX has")
    if any("VIMNMX3" in text for text in code):
        raise RuntimeError("ptxas uses VIMNMX3, which it has compiled wrongly for sm_100")


def step_instructions(code: dict[int, str]) -> int:
    """Instructions that one iteration of the longest loop executes, in the common case.

    That is the shortest way round that passes the loop's longest block without a branch, and a
    store to global memory if the loop has one: round what is for the borders of a signal.
    """
    places = list(code)
    after = dict(itertools.pairwise(places))
    jumps = {
        at: int(target[1], 16)
        for at, text in code.items()
        if (target := re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text))
    }
    fences = sorted({places[0], *jumps.values(), *(after[at] for at in jumps if at in after)})
    blocks = list(itertools.pairwise([*fences, places[-1]]))
    loops = [(first, last) for last, first in jumps.items() if first < last]

    def around(first: int, last: int) -> int:
        inside = [(b - a, a) for a, b in blocks if first <= a and b <= after[last]]
        longest = max(inside)[1]
        if any(first <= a <= longest <= b <= last and (a, b) != (first, last) for a, b in loops):
            return 0  # that block belongs to a loop inside
        stores = {at for at in code if first <= at <= last and "STG" in code[at]}
        todo = [(first, first == longest, not stores or first in stores)]
        steps = {todo[0]: 1}
        for state in todo:  # breadth first: each state is reached by the shortest way
            at, passed, stored = state
            if at == last:
                if passed and stored:
                    return steps[state]
                continue
            conditional = re.match(r"@|BRA\.U", code[at])
            ways = [jumps[at]] if at in jumps else []
            ways += [after[at]] if at not in jumps or conditional else []
            for way in ways:
                new = (way, passed or way == longest, stored or way in stores)
                if first <= way <= last and new not in steps:
                    steps[new] = steps[state] + 1
                    todo.append(new)
        return 0

    return max((around(*loop) for loop in loops), default=0)


def of_amd(kernel: Any) -> dict[str, int]:
    text = kernel.asm["amdgcn"]
    used = {key: int(value) for key, value in re.findall(r"\.(\w+):\s+(\d+)$", text, re.M)}
    return {
        "registers": used["vgpr_count"],
        "spill_bytes": used["private_segment_fixed_size"],  # scalars spill to vector registers
        "instructions": len(re.findall(r"^\t(?:s|v|global|buffer|flat|ds)_\w+", text, re.M)),
        "step_instructions": 0,  # not read from AMD's code
        "approximate": 0,  # nor this
    }


def table(targets: list[str]) -> list[dict[str, Any]]:
    """One row for every kernel that the cases launch, and target."""
    rows = []
    for target in targets:
        with compiling(TARGETS[target]) as compiled:
            for case in CASES:
                run(case)
        rows += [figures(name, target, kernel) for name, kernel in compiled.items()]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    options = parser.parse_args()
    rows = table(options.target)
    if options.json:
        options.json.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    numbers = ["registers", "spill_bytes", "shared_bytes", "instructions", "step_instructions"]
    numbers += ["layout_conversions"]
    print(" ".join(["target", *numbers, "kernel"]))
    for row in rows:
        columns = "".join(f"{row[n]:{len(n) + 1}}" for n in numbers)
        print(f"{row['target']:7}{columns} {row['kernel']}")


if __name__ == "__main__":
    main()
