"""What the kernels of a loss execute, counted in their PTX by the machine of the tests: no GPU.

    python -m benchmarks.counters [--loss NAME] [--shape 1,2,44100] [--json FILE]

Warp instructions are those that were issued. ptxas makes nothing of many a move or negation, so a
GPU executes fewer; loads, stores, barriers and float operations correspond one to one. A request is
a memory instruction of one warp. Best is what it would take if its lanes' bytes lay side by side
and aligned: sectors of 32 bytes in global memory, wavefronts of 128 in shared memory.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .registry import BY_NAME, MULTI, backend, on_machine
from .traffic import transform_size

CLASSES = {
    "float32": ("f32", "f32x2"),
    "float64": ("f64",),
    "compare, select": ("setp", "selp", "pred"),
    "convert": ("cvt",),
    "move": ("mov", "param"),
    "load": ("global ld",),
    "store": ("global st",),
    "shared load": ("shared ld", "ldmatrix"),
    "shared store": ("shared st", "stmatrix"),
    "shuffle": ("shfl", "vote", "redux", "match"),
    "barrier": ("bar",),
    "branch": ("bra", "ret"),
}  # all others are integer
MEMORY = {"global": ("load", "store"), "shared": ("shared load", "shared store")}


def class_of(opcode: str) -> str:
    """Of the first of its words that says one: the name of the operation, its space, its type."""
    name, *more = opcode.split(".")
    words = [name, *(f"{space} {name}" for space in more[:1]), *more[:1], *more[-1:]]
    for word in words:
        for kind, members in CLASSES.items():
            if word in members:
                return kind
    return "integer"


def title(record: Any) -> str:
    size = transform_size(record.constants)
    name = record.kernel.removesuffix("_kernel")
    return f"{name}, n_fft {size}" if size else name


def rows(records: list[Any]) -> list[dict[str, Any]]:
    """One for each kernel and transform, in the order of the first launches."""
    groups: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for record in records:
        groups[title(record), record.function.program.kernel.text].append(record)
    return [row(name, group) for (name, _), group in groups.items()]


def row(name: str, records: list[Any]) -> dict[str, Any]:
    instructions = records[0].function.program.kernel.instructions
    counts = sum(record.result.counts.astype(np.int64) for record in records)[: len(instructions)]
    issued = dict.fromkeys([*CLASSES, "integer"], 0)
    memory = {kind: np.zeros(3, np.int64) for kinds in MEMORY.values() for kind in kinds}
    for instruction, (count, _, *transactions, _) in zip(instructions, counts, strict=True):
        kind = class_of(instruction.opcode)
        issued[kind] += int(count)
        if kind in memory:
            memory[kind] += transactions
    return {
        "kernel": name,
        "programs": sum(record.grid[0] for record in records),
        "warps": records[0].threads // 32,
        "instructions": sum(issued.values()),
        **{kind: count for kind, count in issued.items() if count},
        **{
            space: dict(zip(("requests", "transactions", "best"), total.tolist(), strict=True))
            for space, kinds in MEMORY.items()
            if (total := sum(memory[kind] for kind in kinds)).any()
        },
    }


def count(loss: str, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Forward and backward of a loss, float32."""
    generator = torch.Generator().manual_seed(0)
    e, t = 0.1 * torch.randn(2, *shape, generator=generator)
    module = BY_NAME[loss].build("torch_l1snr_fast", torch.device("cpu"))
    with on_machine() as driver, backend("triton"):
        module(e.requires_grad_(), t).backward()
    return rows(driver.records)


def per_request(accesses: dict[str, int] | None) -> str:
    """Transactions per request, and the best."""
    if accesses is None:
        return ""
    got, best = (accesses[key] / accesses["requests"] for key in ("transactions", "best"))
    return f"{got:.2f} ({best:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.counters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--loss", choices=BY_NAME, default=MULTI)
    parser.add_argument("--shape", default="1,2,44100")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    shape = tuple(map(int, options.shape.split(",")))
    counted = count(options.loss, shape)
    if options.json:
        lines = ",\n".join(map(json.dumps, counted))
        head = f'{{"loss": {json.dumps(options.loss)}, "shape": {json.dumps(shape)}, "rows": [\n'
        options.json.write_text(f"{head}{lines}\n]}}\n")
    for line in counted:
        print(f"{line['kernel']}: {line['programs']} programs of {line['warps']} warps")
        for kind in ("instructions", *CLASSES, "integer"):
            if kind in line:
                print(f"{line[kind]:12} {kind}")
        for space in MEMORY:
            if space in line:
                print(f"{per_request(line[space]):>16} per request of {space} memory")


if __name__ == "__main__":
    main()
