"""The long-form table of figures: one line of CSV each, with all that it depends on."""

from __future__ import annotations

import csv
import datetime
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
COMMIT = "L1SNR_COMMIT"  # names the commit of a copy of the files that has no history
LIBRARY = ("torch_l1snr_fast", "kernels")
PACKAGES = ("torch", "triton", "torch-l1-snr", "auraloss")


class Key(NamedTuple):
    """What makes a figure another figure."""

    commit: str
    versions: str
    device: str
    loss: str
    shape: str
    dtype: str
    provider: str
    mode: str
    metric: str


class Row(NamedTuple):
    """A figure: the median of its samples, with the 20th and 80th percentile."""

    key: Key
    unit: str
    median: float
    p20: float
    p80: float
    samples: int
    date: str


COLUMNS = (*Key._fields, *Row._fields[1:])


def git(*arguments: str) -> str:
    if shutil.which("git") is None:
        return ""
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return result.stdout.strip()


def commit() -> str:
    """The last commit that changed the library; with a digest of it if it differs from that."""
    if COMMIT in os.environ:
        return os.environ[COMMIT]
    known = git("log", "-1", "--format=%h", "--", *LIBRARY)
    if known and not git("status", "--porcelain", "--", *LIBRARY):
        return known
    digest = hashlib.sha256()
    for folder in LIBRARY:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return f"{known or 'unversioned'}+{digest.hexdigest()[:8]}"


def versions() -> str:
    """Of all packages that a figure depends on."""

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "none"

    # torch's own version also says which CUDA it was built for.
    found = {package: version(package) for package in PACKAGES} | {"torch": torch.__version__}
    return " ".join(f"{package}={number}" for package, number in found.items())


def device_text(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = re.search(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    name = model[1] if model else platform.machine()
    return f"CPU {name}, {torch.get_num_threads()} threads"


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def read(path: Path) -> list[Row]:
    """The rows of a file; those of one key, measured at several times, as one."""
    if not path.exists():
        return []
    rows: dict[Key, list[Row]] = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            key = Key(*(line[name] for name in Key._fields))
            numbers = (float(line[name]) for name in ("median", "p20", "p80"))
            row = Row(key, line["unit"], *numbers, int(line["samples"]), line["date"])
            rows.setdefault(key, []).append(row)
    return [together(several) for several in rows.values()]


def together(several: list[Row]) -> Row:
    """The median of what was measured at several times."""

    def median(name: str) -> float:
        return statistics.median(getattr(row, name) for row in several)

    numbers = {name: median(name) for name in ("median", "p20", "p80")}
    return several[-1]._replace(samples=sum(row.samples for row in several), **numbers)


def append(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        for row in rows:
            figures = (f"{x:.6g}" for x in (row.median, row.p20, row.p80))
            writer.writerow((*row.key, row.unit, *figures, row.samples, row.date))


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
