"""What the project says of itself is the same in all places, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from mutations import kernels, losses
from pages import ROOT

import torch_l1snr_fast

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_version_in_changelog_and_citation():
    version = torch_l1snr_fast.__version__
    releases = re.findall(r"^## \[(\d\S*)\] - \d{4}-\d\d-\d\d$", text("CHANGELOG.md"), re.MULTILINE)
    assert releases[0] == version
    assert re.search(rf"^version: {re.escape(version)}$", text("CITATION.cff"), re.MULTILINE)


def test_oldest_python_is_what_the_checkers_check():
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
    assert f"Programming Language :: Python :: {oldest}" in PROJECT["project"]["classifiers"]


def test_api_page_has_every_public_name():
    found = re.findall(r"^\.\. auto\w+:: (?:\w+\.)?(\w+)$", text("docs/api.md"), re.MULTILINE)
    assert set(found) == set(torch_l1snr_fast.__all__) - {"__version__"}


def test_every_package_is_in_the_wheel():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    found = set()
    for name in ("torch_l1snr_fast", "torch_l1snr_fast/kernels"):  # the latter is a link
        for init in (ROOT / name).resolve().rglob("__init__.py"):
            parts = init.parent.relative_to((ROOT / name).resolve()).parts
            found.add(".".join([*name.split("/"), *parts]))
    assert sorted(listed) == sorted(found)


def test_mutations_are_of_the_code_as_it_is():
    package = ROOT / "torch_l1snr_fast"
    for title, file, text, _ in losses.MUTATIONS + kernels.MUTATIONS:
        assert (package / file).read_text().count(text) == 1, title
        if file.startswith(kernels.TRITON):
            assert kernels.tests_of(file), title


def test_the_root_is_a_place_to_import_from():
    """After any kind of install and without one: python puts the current folder first."""
    code = "import pathlib, torch_l1snr_fast.kernels.eager as k; print(pathlib.Path(k.__file__))"
    command = [sys.executable, "-c", NO_EDITABLE_INSTALLS + code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(ROOT / "torch_l1snr_fast" / "kernels")


# Those of setuptools for other layouts than ours are finders, named so.
NO_EDITABLE_INSTALLS = """
import sys
sys.meta_path[:] = [x for x in sys.meta_path if "editable" not in getattr(x, "__module__", "")]
"""


def test_workflow_and_ci_call_targets_that_exist():
    targets = set(re.findall(r"^([\w-]+):", text("Makefile"), re.MULTILINE))
    workflow = re.findall(r"run: make ([\w-]+)", text(".github/workflows/checks.yml"))
    assert {"test", "style", "docs", "dist"} <= set(workflow) <= targets
    called = re.findall(r"^make ([\w-]+)", text(".ci/run"), re.MULTILINE)
    assert set(workflow) <= set(called) <= targets


PAGES = sorted(
    str(path.relative_to(ROOT)) for folder in (ROOT, ROOT / "docs") for path in folder.glob("*.md")
)


def anchor(heading: str) -> str:
    """The anchor that a heading gets where pages are shown."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}, which does not exist"
        if fragment:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert fragment in map(anchor, headings), f"{page} links to {target}: no such heading"


def text(name: str) -> str:
    return (ROOT / name).read_text()
