"""Code blocks of the documentation, run in the order in which they are read."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def run_blocks(page: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Run a page's ``python`` blocks in one namespace, since a reader goes from top to bottom."""
    text = (ROOT / page).read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert blocks, f"{page} shows no code"
    monkeypatch.chdir(folder)
    # install_as_torch_l1_snr() is among the code; other tests in this process want the original.
    for name in ("torch_l1_snr", "torch_l1_snr.l1snr", "torch_l1snr", "torch_l1snr.l1snr"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name))
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))  # so that a traceback names the page's line
        code = compile("\n" * line + block[1], str(ROOT / page), "exec", dont_inherit=True)
        exec(code, names)
