"""Tables and pictures, from the committed results alone.

    python -m benchmarks.report [DIR]

draws the pictures into DIR. From the committed results it also fills the marked blocks of README.md
and docs/benchmarks.md; a test says when these are stale.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from . import accuracy, counters, records
from .records import RESULTS, ROOT, Row
from .registry import (
    CLASSES,
    COMPILED,
    COMPLEX,
    FEW,
    FLOOR,
    FORWARD,
    GRAPH,
    HEADLINE,
    IN_PYTORCH,
    LOSSES,
    MULTI,
    OTHER_LOSS,
    OURS,
    OWN,
    PROVIDERS,
    SWEEP,
    TIME,
    TRAINING,
    UPSTREAM,
    complex_case,
    installed,
    shape_text,
)

PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("benchmarks.md", "kernels.md", "onchip.md")),
)
MARKED = re.compile(r"(<!-- ([a-z-]+):start -->\n)(.*?)(<!-- \2:end -->)", re.DOTALL)
MIB = 2**20
COLORS = {
    UPSTREAM: "tab:gray",
    COMPILED: "silver",
    "eager": "tab:blue",
    "reference": "tab:cyan",
    "triton": "tab:green",
    "triton, torch.fft": "tab:olive",
    OTHER_LOSS: "tab:orange",
    FLOOR: "black",
}


class Table:
    """The newest figures of one kind of device, all of one device: that measured last."""

    def __init__(self, kind: str, rows: Iterable[Row]) -> None:
        self.kind, self.ours = kind, OURS[kind]
        every = list(rows)
        # What was measured for an older commit or other versions gives way.
        self.rows = {row.key[2:]: row for row in every if row.key.device == every[-1].key.device}
        self.headline = shape_text(HEADLINE[kind])

    def find(
        self,
        loss: str,
        provider: str,
        metric: str = "time",
        shape: str = "",
        mode: str = TRAINING,
        dtype: str = "float32",
    ) -> float | None:
        """A median: milliseconds or bytes."""
        wanted = (loss, shape or self.headline, dtype, provider, mode, metric)
        found = [row.median for key, row in self.rows.items() if key[1:] == wanted]
        return found[-1] if found else None

    def conditions(self, shape: str = "") -> str:
        """Device, versions and commit of the headline's figures, or of another shape's."""
        wanted = (MULTI, shape or self.headline, self.ours)
        *_, row = (
            row
            for row in self.rows.values()
            if (row.key.loss, row.key.shape, row.key.provider) == wanted
        )
        key = row.key
        return f"{key.device}; {key.versions.replace('=', ' ')}; commit {key.commit}, {row.date}"


def tables(folder: Path) -> list[Table]:
    """Of every kind of device that has been measured, GPUs first."""
    found = [Table(kind, records.read(folder / f"{kind}.csv")) for kind in ("cuda", "cpu")]
    return [table for table in found if table.find(MULTI, table.ours)]


def number(value: float | None, unit: float = 1.0) -> str:
    if value is None:
        return ""
    value /= unit
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ratio(before: float | None, after: float | None, digits: int = 1) -> str:
    return f"{before / after:.{digits}f}" if before and after else ""


def markdown(header: list[str], rows: Iterable[list[str]], text_columns: int = 1) -> str:
    rule = ["---"] * text_columns + ["--:"] * (len(header) - text_columns)
    lines = [header, rule, *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def benchmark(folder: Path) -> str:
    """README: time and memory of forward and backward for every loss, against what it replaces."""
    formula = complex_case()
    blocks = []
    for table in tables(folder):
        measured = [(loss, loss, UPSTREAM, table.headline) for loss in LOSSES]
        measured += [(f"{COMPLEX} (\\*)", COMPLEX, IN_PYTORCH, shape_text(formula.shape))]
        rows = []
        for title, loss, before, shape in measured:
            time, memory = (
                [table.find(loss, provider, metric, shape) for provider in (before, table.ours)]
                for metric in ("time", "peak memory")
            )
            milliseconds = [f"{number(x)} ms" for x in time]
            mebibytes = [f"{number(x, MIB)} MiB" for x in memory]
            cells = [*milliseconds, f"{ratio(*time)} x", *mebibytes, f"1/{ratio(*memory)}"]
            rows.append([title, *cells])
        header = ["forward + backward", UPSTREAM, "this package", "faster"]
        header += ["peak memory", "this package", "of it"]
        shape = "(" + ", ".join(table.headline.split("x")) + ")"
        note = f"Shape {shape}, float32; medians, memory above the inputs. {table.conditions()}.\n"
        other = f"(\\*) Against its formula in PyTorch; shape {formula.shape}.\n"
        blocks.append(f"{markdown(header, rows)}\n{note}{other}")
    return "\n".join(blocks)


def providers(folder: Path) -> str:
    """Milliseconds of forward and backward by every provider."""
    blocks = []
    for table in tables(folder):
        names = [name for name in PROVIDERS if any(table.find(loss, name) for loss in LOSSES)]
        rows = [[loss, *(number(table.find(loss, name)) for name in names)] for loss in LOSSES]
        blocks.append(f"{markdown(['ms', *names], rows)}\n{table.conditions()}.\n")
    return "\n".join(blocks)


def other_cases(folder: Path) -> str:
    """Everything else that compares torch-l1-snr with ours, in the order of measuring."""
    rows = []
    for table in tables(folder):
        for key, row in table.rows.items():
            loss, shape, dtype, provider, mode, metric = key[1:]
            known = shape == table.headline and mode == TRAINING and dtype == "float32"
            elsewhere = shape in map(shape_text, (*SWEEP, *FEW))
            if provider != table.ours or metric != "time" or known or elsewhere:
                continue
            place = {"shape": shape, "mode": mode, "dtype": dtype}
            if mode == GRAPH:
                place["mode"] = TRAINING
            judge = IN_PYTORCH if loss in OWN else UPSTREAM
            before = table.find(loss, judge, **place)
            times = [number(before), number(row.median), ratio(before, row.median)]
            rows.append([table.kind, loss, shape, dtype, mode, *times])
    header = ["device", "loss", "shape", "dtype", "mode", f"{UPSTREAM}, ms", "ours, ms", "faster"]
    return markdown(header, rows, text_columns=5)


def sizes(folder: Path) -> str:
    """Cost against size."""
    rows = []
    for table in tables(folder):
        for loss in (MULTI, TIME):
            for shape in map(shape_text, SWEEP):
                times = [table.find(loss, name, shape=shape) for name in (UPSTREAM, table.ours)]
                cells = [*map(number, times), ratio(*times)]
                rows.append([table.kind, loss, shape, *cells])
    header = ["device", "loss", "shape", f"{UPSTREAM}, ms", "ours, ms", "faster"]
    return markdown(header, rows, text_columns=3)


def few(folder: Path) -> str:
    """How many times as fast as torch-l1-snr on few samples: with the gradient / without."""
    blocks = []
    for table in tables(folder):
        shapes = [shape_text(size) for size in FEW]
        if not table.find(MULTI, table.ours, shape=shapes[0]):
            continue
        rows = []
        for loss in CLASSES:
            cells = []
            for shape in shapes:
                pairs = [
                    [table.find(loss, name, "time", shape, mode) for name in (UPSTREAM, table.ours)]
                    for mode in (TRAINING, FORWARD)
                ]
                cells.append(" / ".join(ratio(*times, digits=2) for times in pairs))
            rows.append([loss, *cells])
        text = markdown([f"{UPSTREAM} / {table.ours}", *shapes], rows)
        blocks.append(f"{text}\n{table.conditions(shapes[0])}.\n")
    return "\n".join(blocks)


def read_traffic() -> list[dict[str, Any]]:
    """The committed counts, which depend on no device."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / "traffic.json").read_text())
    return rows


def traffic(folder: Path) -> str:
    """What was counted, and the time modelled from it."""
    rows = read_traffic()
    header = ["loss", "provider", "launches", "host syncs", "bytes / 4n", "saved / 4n"]
    cells = [
        [
            row["loss"],
            row["provider"],
            str(row["launches"]),
            str(row["syncs"]),
            number(row["bytes_per_4n"]),
            number(row["saved_per_4n"]),
            number(row["modelled_h100_ms"]),
        ]
        for row in rows
    ]
    note = f"Shape {rows[0]['shape']}, float32, forward + backward.\n"
    return f"{markdown([*header, 'modelled H100, ms'], cells, text_columns=2)}\n{note}"


def compiled(folder: Path, words: tuple[str, ...] = ()) -> str:
    """What the compilers made of the kernels whose names have all of the words."""
    rows = json.loads((RESULTS / "kernels.json").read_text())
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if set(words) <= set(row["kernel"].split()):
            found.setdefault(row["kernel"], {})[row["target"]] = row
    targets = list(dict.fromkeys(row["target"] for row in rows))
    cells = []
    for kernel, by_target in found.items():
        shared, conversions = (
            "/".join(map(str, dict.fromkeys(row[key] for row in by_target.values())))
            for key in ("shared_bytes", "layout_conversions")
        )
        figures = [
            f"{row['registers']} / {row['instructions']}"
            + (f" / {row['step_instructions']}" if row["step_instructions"] else "")
            for row in by_target.values()
        ]
        cells.append([f"`{kernel}`", *figures, shared, conversions])
    return markdown(["kernel", *targets, "shared, bytes", "conversions"], cells)


def counted(folder: Path) -> str:
    """Of the kernels of a loss, what the machine counted in their PTX, in thousands of warps'."""
    found = json.loads((RESULTS / "counters.json").read_text())
    kinds = [
        kind
        for kind in (*counters.CLASSES, "integer")
        if sum(row.get(kind, 0) for row in found["rows"]) > 1000
    ]
    cells = [
        [
            f"`{row['kernel']}`",
            f"{row['instructions'] / 1000:.0f}",
            *(f"{row.get(kind, 0) / 1000:.0f}" for kind in kinds),
            *(counters.per_request(row.get(space)) for space in counters.MEMORY),
        ]
        for row in found["rows"]
    ]
    shape = " x ".join(map(str, found["shape"]))
    head = ["kernel", "all", *kinds, "sectors (best)", "wavefronts (best)"]
    return f"{found['loss']}, {shape} samples.\n\n{markdown(head, cells)}"


def read_accuracy(folder: Path) -> list[accuracy.Error]:
    """Measured on a GPU if there was one."""
    path = folder / "cuda-accuracy.csv"
    return accuracy.read(path if path.exists() else folder / "cpu-accuracy.csv")


def errors(folder: Path) -> str:
    """Relative error of the gradient."""
    blocks = []
    rows = read_accuracy(folder)
    for sweep, name in (("snr", "error below the target, dB"), ("level", "target, dB full scale")):
        cells = []
        for loss, ways in accuracy.WAYS.items():
            for provider in ways:
                kind = (loss.name, sweep, provider)
                found = [row for row in rows if (row.loss, row.sweep, row.provider) == kind][::2]
                if found:
                    cells.append([loss.name, provider, *(f"{row.gradient:.0e}" for row in found)])
        points = dict.fromkeys(row.decibels for row in rows if row.sweep == sweep)
        labels = ["silence" if math.isinf(x) else f"{x:.0f}" for x in [*points][::2]]
        blocks.append(markdown(["loss", name, *labels], cells, text_columns=2))
    return "\n".join(blocks)


def pictures(folder: Path) -> str:
    """Of every device that has been measured."""
    return (
        "\n".join(
            f"![{text}](../{(folder / f'{table.kind}-{name}.png').relative_to(ROOT)})"
            for table in tables(folder)
            for name, (text, _) in PICTURES.items()
        )
        + "\n"
    )


BLOCKS: dict[str, Callable[[Path], str]] = {
    "benchmark": benchmark,
    "providers": providers,
    "other-cases": other_cases,
    "sizes": sizes,
    "few": few,
    "traffic": traffic,
    "compiled": compiled,
    "compiled-on-chip": partial(compiled, words=("fp32", "SIGNALS=2", "SANITIZE")),
    "counted": counted,
    "errors": errors,
    "pictures": pictures,
}


def filled(page: str, folder: Path = RESULTS) -> str:
    """The text of a page with its marked blocks made anew."""
    return MARKED.sub(lambda found: found[1] + BLOCKS[found[2]](folder) + found[4], page)


def grouped_bars(axis: Any, values: dict[str, list[float | None]], labels: list[str]) -> None:
    width = 0.8 / len(values)
    for i, (name, heights) in enumerate(values.items()):
        places = [x + (i - (len(values) - 1) / 2) * width for x in range(len(labels))]
        bars = [math.nan if height is None else height for height in heights]
        axis.bar(places, bars, width, label=name, color=COLORS[name])
    axis.set_xticks(range(len(labels)), [label.replace(", ", ",\n") for label in labels])
    axis.tick_params(axis="x", labelsize=8)
    axis.legend(fontsize=8)
    axis.grid(axis="y", alpha=0.3)


def draw_losses(table: Table, axis: Any, folder: Path) -> None:
    names = [name for name in PROVIDERS if table.find(MULTI, name) or name == COMPILED]
    times = {name: [table.find(loss, name) for loss in LOSSES] for name in names}
    grouped_bars(axis, times, list(LOSSES))
    axis.set_yscale("log")
    axis.set_ylabel("forward + backward (ms)")


def draw_memory(table: Table, axis: Any, folder: Path) -> None:
    samples = math.prod(HEADLINE[table.kind])
    names = [name for name in PROVIDERS if table.find(MULTI, name, "peak memory")]
    peaks = {
        name: [
            bytes_ / samples / 4 if (bytes_ := table.find(loss, name, "peak memory")) else None
            for loss in LOSSES
        ]
        for name in names
    }
    grouped_bars(axis, peaks, list(LOSSES))
    axis.set_ylabel("peak memory above the inputs\n(sizes of the estimates)")


def draw_sizes(table: Table, axis: Any, folder: Path) -> None:
    for loss, style in ((MULTI, "-"), (TIME, "--")):
        for name in (UPSTREAM, table.ours, FLOOR):
            if name == FLOOR and loss != MULTI:
                continue
            times = [table.find(loss, name, shape=shape_text(shape)) for shape in SWEEP]
            points = [math.nan if time is None else time for time in times]
            label = name if name == FLOOR else f"{loss}, {name}"
            axis.plot(
                list(map(math.prod, SWEEP)), points, "." + style, label=label, color=COLORS[name]
            )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("samples of the estimates")
    axis.set_ylabel("forward + backward (ms)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def draw_roofline(table: Table, axis: Any, folder: Path) -> None:
    """Counted bytes by measured time, under the bandwidth that the floor reaches."""
    size = 4 * math.prod(HEADLINE[table.kind])
    counted = {(row["loss"], row["provider"]): row["bytes_per_4n"] * size for row in read_traffic()}
    names = [name for name in COLORS if any(key[1] == name for key in counted)]
    speeds = {
        name: [
            counted[loss, name] / time / 1e6
            if (loss, name) in counted and (time := table.find(loss, name))
            else None
            for loss in LOSSES
        ]
        for name in names
    }
    shown = {name: values for name, values in speeds.items() if any(values)}
    grouped_bars(axis, shown, list(LOSSES))
    if floor := table.find("L1SNRLoss", FLOOR):
        axis.axhline(3 * size / floor / 1e6, color=COLORS[FLOOR], linestyle="--")
        axis.text(0, 3 * size / floor / 1e6, "floor", va="bottom")
    axis.set_ylabel("counted bytes / measured time (GB/s)")


def draw_errors(rows: list[accuracy.Error], axes: Any) -> None:
    rows = [row for row in rows if row.loss == accuracy.LOSS.name]
    labels = {"snr": "error below the target (dB)", "level": "target (dB full scale)"}
    for column, (sweep, label) in zip(axes, labels.items(), strict=True):
        for axis, what in zip(column, ("gradient", "value"), strict=True):
            for name in accuracy.WAYS[accuracy.LOSS]:
                found = [row for row in rows if (row.sweep, row.provider) == (sweep, name)]
                found = [row for row in found if not math.isinf(row.decibels)]
                values = [getattr(row, what) for row in found]
                decibels = [row.decibels for row in found]
                axis.plot(decibels, values, ".-", label=name, color=COLORS[name])
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
            axis.set_ylabel("gradient, relative" if what == "gradient" else "value (dB)")
        column[-1].set_xlabel(label)
    axes[0][0].legend(fontsize=8)


# By name: what it shows, and how it is drawn.
PICTURES: dict[str, tuple[str, Callable[[Table, Any, Path], None]]] = {
    "losses": ("time of every loss by every provider", draw_losses),
    "size": ("time against size", draw_sizes),
    "memory": ("peak memory of every loss", draw_memory),
    "roofline": ("bandwidth of every loss", draw_roofline),
}


def draw(folder: Path) -> None:
    from matplotlib.figure import Figure

    for table in tables(folder):
        for name, (text, paint) in PICTURES.items():
            figure = Figure(figsize=(9, 4.5), layout="constrained")
            axis = figure.subplots()
            paint(table, axis, folder)
            axis.set_title(text if name == "size" else f"{text}, {table.headline} float32")
            figure.supxlabel(table.conditions(), fontsize=7)
            figure.savefig(folder / f"{table.kind}-{name}.png", dpi=110)
    if any(folder.glob("*-accuracy.csv")):
        figure = Figure(figsize=(9, 6), layout="constrained")
        draw_errors(read_accuracy(folder), figure.subplots(2, 2).T)
        figure.suptitle(f"{accuracy.LOSS.name}: float32 against the definition in float64")
        figure.savefig(folder / "accuracy.png", dpi=110)


def write(folder: Path) -> None:
    """Draw what has been measured; the committed results also go into the pages."""
    if installed("matplotlib"):
        draw(folder)
    if folder.resolve() == RESULTS:
        for page in PAGES:
            page.write_text(filled(page.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", default=RESULTS, metavar="DIR")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
