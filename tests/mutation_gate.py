"""Breaks the library on purpose, in a copy, and checks that the tests notice: run it by hand.

    python tests/mutation_gate.py [--without-upstream] [words in the titles of those to run]

Each mutation replaces one piece of text, runs the quick tests until the first failure and puts the
text back. One that nothing notices, or whose text is no longer there, fails the gate.
--without-upstream leaves out the comparison with torch-l1-snr, which notices nearly everything: the
rest must do so alone, for CI runs it where torch-l1-snr does not import.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mutations import kernels, losses

ROOT = Path(__file__).parents[1]
PACKAGE = "torch_l1snr_fast"
FILES = [
    "closed_form",
    "properties",
    "policy",
    "options",
    "settings",
    "autograd",
    "saved_memory",
    "written_memory",
    "interface",
    "report",
    "backends",
    "backends_agree",
]

LIMIT = 1200  # seconds, which only an endless loop takes

MUTATIONS = losses.MUTATIONS + kernels.MUTATIONS


def copy_of_the_library(folder: Path) -> Path:
    """The package as it is installed: with the kernels inside."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=ignored)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder / PACKAGE


def tests_of(file: str, quick: list[str]) -> list[str]:
    """The tests that a mistake in a file of the package is to fail."""
    if not file.startswith(kernels.TRITON):
        return ["tests/test_complex_stft.py"] if Path(file).stem == "complex_stft" else quick
    return [f"tests/triton_kernels/test_{name}.py" for name in kernels.tests_of(file)]


def run_tests(folder: Path, tests: list[str]) -> tuple[bool, str]:
    """Whether all pass, and the first that did not."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    try:
        result = subprocess.run(command, check=False, timeout=LIMIT, **options)
    except subprocess.TimeoutExpired:
        return False, f"a test that takes more than {LIMIT} s"
    found = re.search(r"^(?:FAILED|ERROR) tests/(.*?)(?: - .*)?$", result.stdout, re.MULTILINE)
    return result.returncode == 0, found[1] if found else result.stdout[-2000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without-upstream", action="store_true")
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    files = FILES if arguments.without_upstream else ["upstream", *FILES]
    quick = [f"tests/test_{name}.py" for name in files]
    chosen = [
        m for m in MUTATIONS if not arguments.words or any(w in m[0] for w in arguments.words)
    ]
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package = copy_of_the_library(folder)
        check = f"import {PACKAGE} as p; assert p.__file__.startswith({str(folder)!r}), p.__file__"
        subprocess.run([sys.executable, "-c", check], cwd=folder, check=True)
        passed, first = run_tests(
            folder, sorted({x for m in chosen for x in tests_of(m[1], quick)})
        )
        if not passed:
            print(f"the unbroken library fails {first}")
            return 1
        for title, file, old, new in chosen:
            path = package / file
            text = path.read_text()
            if text.count(old) != 1:
                missed += 1
                print(f"STALE    {title}: {text.count(old)} times in {file}: {old!r}", flush=True)
                continue
            path.write_text(text.replace(old, new))
            passed, first = run_tests(folder, tests_of(file, quick))
            path.write_text(text)
            missed += passed
            print(f"{'MISSED  ' if passed else 'noticed '} {title}: {first}"[:160], flush=True)
    print(f"{missed} missed or stale")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
