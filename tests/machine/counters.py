"""What launches execute, counted at the level of PTX: an ncu without a GPU.

Counts are of warp instructions that were issued (also where predicates switched all lanes off).
ptxas turns a mov, a neg or an abs into nothing more often than not, so SASS has fewer; what memory
has to do is the same.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np

from .driver import Record

CLASSES = ("fp32", "fp64", "int", "compare/select", "convert", "special", "move", "global load",
           "global store", "shared load", "shared store", "shuffle", "barrier", "branch")  # fmt: skip  # noqa: E501


def kind_of(opcode: str) -> str:
    parts = opcode.split(".")
    name, last = parts[0], parts[-1]
    if name in ("ld", "st"):
        if parts[1] == "param":
            return "move"
        return f"{parts[1]} {'load' if name == 'ld' else 'store'}"
    if name == "ldmatrix":
        return "shared load"
    if name == "stmatrix":
        return "shared store"
    if name in ("shfl", "vote", "redux", "match", "activemask"):
        return "shuffle"
    if name == "bar":
        return "barrier"
    if name in ("bra", "ret"):
        return "branch"
    if name in ("setp", "selp") or last == "pred":
        return "compare/select"
    if name == "cvt":
        return "convert"
    if name == "mov":
        return "move"
    if name in ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "sin", "cos", "tanh") or (
        name == "div" and last[0] == "f"
    ):
        return "special"
    return {"f32": "fp32", "f64": "fp64"}.get(last, "int")


def steps(record: Record) -> int:
    """How often a warp went through a transform: its instructions, by where fft() is called."""
    calls: dict[str, Counter[int]] = defaultdict(Counter)
    for i, count in zip(
        record.function.program.kernel.instructions, record.result.counts[:, 0], strict=False
    ):
        if i.source.startswith("fft.py"):
            calls[i.source.split(" < ")[-1]][int(count)] += 1
    return sum(counter.most_common(1)[0][0] for counter in calls.values())


def table(records: list[Record]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for r in records:
        c = r.constants
        name = r.kernel.removesuffix("_kernel")
        if "RADICES" in c:
            name += f" n={int(np.prod(c['RADICES']))}"
            name += f" {c['BASE']}" if "BASE" in c else ""
        groups[name, r.function.program.kernel.text].append(r)
    rows = []
    for (name, _), group in groups.items():
        kernel = group[0].function.program.kernel
        counts = sum(r.result.counts for r in group)[: len(kernel.instructions)].astype(np.int64)
        classes = dict.fromkeys(CLASSES, 0)
        memory = {k: np.zeros(4, np.int64) for k in CLASSES if "load" in k or "store" in k}
        for i, line in zip(kernel.instructions, counts, strict=True):
            kind = kind_of(i.opcode)
            classes[kind] += int(line[0])
            if kind in memory:
                memory[kind] += line[2:]
        rows.append(
            {
                "kernel": name,
                "programs": sum(r.grid[0] for r in group),
                "warps": group[0].threads // 32,
                "steps": sum(map(steps, group)),
                "instructions": int(counts[:, 0].sum()),
                "lanes": float(counts[:, 1].sum() / counts[:, 0].sum()),
                "classes": classes,
                "memory": memory,
                "lines": [
                    (kind_of(i.opcode), i, *map(int, line))
                    for i, line in zip(kernel.instructions, counts, strict=True)
                    if kind_of(i.opcode) in memory and line[2]
                ],
            }
        )
    return rows


def show(rows: list[dict[str, Any]], lines: bool) -> None:
    print(
        f"{'kernel':34} {'programs':>8} {'warps':>5} {'warp instructions':>17} {'lanes':>5}  per step or in all"  # noqa: E501
    )
    for row in rows:
        per = row["steps"] or 1
        shares = ", ".join(
            f"{k} {v / per:.0f}" for k, v in row["classes"].items() if v / per >= 0.5
        )
        each = f"{row['instructions'] / per:.0f} per step: " if row["steps"] else ""
        print(
            f"{row['kernel']:34} {row['programs']:8} {row['warps']:5} {row['instructions']:17} {row['lanes']:5.1f}  {each}{shares}"  # noqa: E501
        )
    print()
    head = f"{'kernel':34} {'access':13} {'requests':>9} {'per step':>8} {'bytes/lane':>10}"
    print(
        f"{head} {'sectors or wavefronts per request':>34} {'of the best layout':>19} {'waste':>6}"
    )
    for row in rows:
        for kind, (requests, got, best, size) in row["memory"].items():
            if not requests:
                continue
            per = f"{requests / row['steps']:8.1f}" if row["steps"] else " " * 8
            print(
                f"{row['kernel']:34} {kind:13} {requests:9} {per} {size / requests / 32:10.1f}"
                f" {got / requests:34.2f} {best / requests:19.2f} {got / best - 1:6.0%}"
            )
    if not lines:
        return
    print("\nWhere: source lines whose accesses take more than the best layout's")
    for row in rows:
        where: dict[tuple[str, str, str], np.ndarray] = defaultdict(lambda: np.zeros(4, np.int64))
        for kind, i, _, _, requests, got, best, size in row["lines"]:
            where[kind, re.sub(r"\.(b32|b64|b16)$", "", i.opcode) + i.opcode[-4:], i.source] += (
                requests,
                got,
                best,
                size,
            )
        found = sorted(where.items(), key=lambda x: x[1][2] - x[1][1])
        for (kind, opcode, source), (requests, got, best, _) in found[:12]:  # noqa: B007
            if got > best:
                print(
                    f"{row['kernel']:34} {opcode:34} +{got - best:8} ({requests} requests, {got / requests:.2f} instead of {best / requests:.2f}) {source}"  # noqa: E501
                )
