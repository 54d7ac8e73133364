"""The recipes run, with the libraries that they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import run_blocks


@pytest.mark.usefixtures("redirectable")
def test_recipes_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("torchmetrics", "accelerate", "lightning", "jsonargparse"):
        pytest.importorskip(name)
    # What torchrun would set for one process.
    torchrun = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    run_blocks("docs/recipes.md")
