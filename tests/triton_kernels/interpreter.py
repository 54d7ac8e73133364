"""Triton's interpreter, where there is no GPU, and three repairs of it (as of 3.6 and 3.9).

To be imported before Triton is.
"""

from __future__ import annotations

import os
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def repair() -> None:
    from triton.runtime import interpreter

    # NumPy 2.4 no longer turns arrays of one element into ints, which range() needs.
    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    # A comparison of scalars is broadcast as integers, which a mask may no longer be (3.9).
    splat = interpreter.InterpreterBuilder.create_splat

    def splat_as_it_is(self: Any, *args: Any) -> Any:
        out = splat(self, *args)
        out.data = out.data.astype(args[-1].data.dtype)
        return out

    # Replacing triton.language at every call of every function takes half of the time. Once is
    # enough in a process that only interprets.
    patch_language = interpreter._patch_lang
    patched: set[frozenset[str]] = set()

    def patch_language_once(function: Any) -> Any:
        names = frozenset(n for n in ("tl", "core") if n in function.__globals__)
        if names not in patched:
            patched.add(names)
            patch_language(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang_tensor = patch_tensor_and_index
    interpreter._patch_lang = patch_language_once
    interpreter.InterpreterBuilder.create_splat = splat_as_it_is
