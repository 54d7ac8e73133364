"""Every kernel by other assemblers than Triton's own: are the results the same bits?

    python -m benchmarks.bits

ptxas makes machine code of a kernel's PTX, and releases of it have been seen to make wrong code. So
the cases of :mod:`benchmarks.every_kernel` are computed three times on a GPU, each in a process and
a compilation cache of its own: by the ptxas that Triton ships, by another release (CUDA's, or that
of the package nvidia-cuda-nvcc), and by Triton's own without optimisation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from triton import knobs

from torch_l1snr_fast.kernels import triton as kernels
from torch_l1snr_fast.kernels.eager.waveform import compute_dtype

from .every_kernel import LENGTH, routes, signals, title
from .kernels import CASES, Case
from .records import ROOT

Digests = dict[str, list[str]]  # of the results of a case by a route


class Way(NamedTuple):
    """How PTX becomes machine code: variables that Triton reads."""

    name: str
    variables: dict[str, str]


def results(backend: ModuleType, case: Case, e: Tensor, t: Tensor) -> Iterator[Tensor]:
    """Sums, loss, parts, coefficients and gradient of one backend."""
    found = backend.statistics(case.plan, e, t, save=True)
    dtype = compute_dtype(e, t)
    value = backend.objective(case.plan, found.partials, *e.shape[1:], dtype)
    yield from found.partials
    yield from value
    yield backend.gradient(case.plan, found.saved, value.coefficients, e, dtype)


def digest(x: Tensor) -> str:
    """Of a tensor's bits."""
    content = x.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def digests(backend: ModuleType, device: torch.device, cases: list[Case]) -> Digests:
    torch.manual_seed(0)
    found = {}
    for number, case in enumerate(cases):
        e, t = signals(case, device, LENGTH)
        for route, context in enumerate(routes(case)):
            with context:
                name = f"case {number}, route {route}: {title(case)}"
                found[name] = [digest(torch.as_tensor(x)) for x in results(backend, case, e, t)]
    return found


def differing(one: Digests, other: Digests) -> list[str]:
    """The cases whose results are not the same bits, or that only one has."""
    return [name for name in one | other if one.get(name) != other.get(name)]


def other_ptxas() -> tuple[str, str] | None:
    """Path and release of a ptxas that is not of the release that Triton ships."""
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    for path in (cuda / "bin" / "ptxas", *sorted(packages.glob("*/bin/ptxas"))):
        tool = knobs.NvidiaTool.from_path(str(path))
        if tool is not None and tool.version != knobs.nvidia.ptxas.version:
            return str(path), tool.version
    return None


def ways() -> list[Way]:
    """Triton's own ptxas first, which the others are compared with."""
    own = Way(f"ptxas {knobs.nvidia.ptxas.version}", {})
    found = [own, Way(f"{own.name} -O0", {"DISABLE_PTXAS_OPT": "1"})]
    if (other := other_ptxas()) is not None:
        path, version = other
        found.append(Way(f"ptxas {version}", {"TRITON_PTXAS_PATH": path}))
    return found


def computed(way: Way) -> Digests:
    """The digests of processes that assemble in this way; compilation first, on all cores."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | way.variables | {"TRITON_CACHE_DIR": cache}

        def run(*arguments: str) -> str:
            command = [sys.executable, "-m", *arguments]
            return subprocess.run(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True
            ).stdout

        run("benchmarks.every_kernel", "--compile")
        found: Digests = json.loads(run("benchmarks.bits", "--digests"))
        return found


def compare_all() -> int:
    """0 if every way gives the bits of the first, and another ptxas was among them."""
    own, *others = ways()
    wanted = computed(own)
    print(f"{own.name}: {len(wanted)} cases")
    bad = 0
    for way in others:
        different = differing(wanted, computed(way))
        print(f"{way.name}: {len(different)} cases differ", *different, sep="\n  ")
        bad += len(different)
    if not any("TRITON_PTXAS_PATH" in way.variables for way in others):
        print("no other ptxas: install CUDA, or the package nvidia-cuda-nvcc")
        bad += 1
    return min(bad, 1)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--digests", action="store_true", help="of this process's results, as JSON")
    if parser.parse_args().digests:
        print(json.dumps(digests(kernels, torch.device("cuda"), CASES)))
        return 0
    return compare_all()


if __name__ == "__main__":
    sys.exit(main())
