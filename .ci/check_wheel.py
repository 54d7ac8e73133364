"""Install the wheel in dist/ in empty environments, and let it check itself there.

    python .ci/check_wheel.py

The Pythons are the oldest and the newest of the wheel's classifiers that this machine has, and what
it lacks is named. torch is the release that is installed here, fetched for each Python; NVIDIA's
libraries, most of its 5 GB, are the same for all and lent by links.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[1]


def promised(wheel: Path) -> list[str]:
    """The Python versions of the wheel's classifiers, oldest first."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    found = (
        re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text)
        for text in metadata.get_all("Classifier", [])
    )
    return sorted((m[1] for m in found if m), key=lambda version: int(version.split(".")[1]))


def interpreter(version: str) -> str | None:
    """A Python of this version: on the path, or pyenv's."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in (shutil.which(f"python{version}"), *map(str, reversed(pyenv))):
        # pyenv puts a stand-in on the path for versions that it has but that are not chosen.
        if candidate and subprocess.run([candidate, "-V"], capture_output=True).returncode == 0:
            return candidate
    return None


def check(python: str, wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        subprocess.run([python, "-m", "venv", "--without-pip", home], check=True)
        own = home / "bin" / "python"
        packages = Path(
            subprocess.check_output(
                [own, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
            ).strip()
        )
        lender = Path(importlib.metadata.distribution("torch").locate_file("."))
        for lent in lender.glob("nvidia*"):
            (packages / lent.name).symlink_to(lent)
        torch = importlib.metadata.version("torch")
        pip = [sys.executable, "-m", "pip", "--python", own, "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", f"torch=={torch}", wheel], check=True)
        subprocess.run([own, "-I", "-m", "torch_l1snr_fast"], check=True, cwd=home)


def main() -> int:
    (wheel,) = (ROOT / "dist").glob("*.whl")
    versions = promised(wheel)
    found = {v: python for v in versions if (python := interpreter(v))}
    print(f"{wheel.name} promises Python {', '.join(versions)}; here are {', '.join(found)}")
    if versions[0] not in found:
        print(f"NOT CHECKED: the oldest, {versions[0]}, is not on this machine")
    if not found:
        return 1
    for version in sorted({next(iter(found)), list(found)[-1]}):
        print(f"\n--- Python {version}: {found[version]}", flush=True)
        check(found[version], wheel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
