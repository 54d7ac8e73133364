"""The code in the README runs, in the order in which it is read."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """One namespace for all, since a reader goes from top to bottom."""
    text = README.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert blocks, "the README shows no code"
    monkeypatch.chdir(tmp_path)
    # install_as_torch_l1_snr() is among the code; other tests in this process want the original.
    for name in ("torch_l1_snr", "torch_l1_snr.l1snr", "torch_l1snr", "torch_l1snr.l1snr"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name))
    names: dict[str, Any] = {"__name__": "__readme__"}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(README), "exec"), names)
