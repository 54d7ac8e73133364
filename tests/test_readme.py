"""The code of the README and of the mathematics runs; of the recipes: test_recipes.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import run_blocks


@pytest.mark.usefixtures("redirectable")
@pytest.mark.parametrize("page", ["README.md", "docs/mathematics.md"])
def test_code_runs(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    run_blocks(page)
