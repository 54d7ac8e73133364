"""The examples in the public docstrings run, and every loss and function has one."""

from __future__ import annotations

import doctest

import pytest
import torch

import torch_l1snr_fast as package
from torch_l1snr_fast import functional

LOSSES = [name for name in package.__all__ if name.endswith("Loss")]
PUBLIC = {name: getattr(package, name) for name in [*LOSSES, "dbrms", "use_backend"]}
PUBLIC |= {f"functional.{name}": getattr(functional, name) for name in functional.__all__}


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name: str):
    found = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name)
    examples = [x for x in found if x.examples]
    assert examples, "no example"
    names = vars(package) | vars(functional) | {"torch": torch}
    for one in examples:
        one.globs = dict(names)
        failures: list[str] = []
        doctest.DocTestRunner().run(one, out=failures.append)
        assert not failures, "".join(failures)
