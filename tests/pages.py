"""Code blocks of the documentation, run in the order in which they are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run_blocks(page: str) -> None:
    """Run a page's ``python`` blocks in one namespace, since a reader goes from top to bottom."""
    text = (ROOT / page).read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert blocks, f"{page} shows no code"
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))  # so that a traceback names the page's line
        code = compile("\n" * line + block[1], str(ROOT / page), "exec", dont_inherit=True)
        exec(code, names)
