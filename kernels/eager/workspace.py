"""Scratch memory that outlives a call.

A fresh block of a megabyte costs more in page faults than the arithmetic done in it, so on a CPU
the blocks' temporaries are kept, a few megabytes per thread. Other devices have caching allocators.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from ..modes import outside


class _Kept(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self.views: dict[tuple[str, torch.dtype], Tensor] = {}  # as asked for last
        self.parts: dict[tuple[str, torch.dtype], tuple[Tensor, ...]] = {}  # of these


_kept = _Kept()
KEPT_AT_MOST = 1 << 22  # elements; what is longer (a whole song in one signal) is given back


def scratch(name: str, *shape: int, like: Tensor) -> Tensor:
    """Uninitialised tensor of ``like``'s dtype and device, valid until the next of its name."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    key = name, like.dtype
    view = _kept.views.get(key)
    if view is not None and view.shape == shape:
        return view
    _kept.parts.pop(key, None)
    size = math.prod(shape)
    if size > KEPT_AT_MOST:
        return like.new_empty(shape)
    buffer = _kept.buffers.get(key)
    if buffer is None or buffer.numel() < size:
        with outside():
            buffer = torch.empty(size, dtype=like.dtype, device="cpu")
        _kept.buffers[key] = buffer
    view = buffer[:size].view(shape)
    if type(view) is Tensor:  # else a mode of functions is at work
        _kept.views[key] = view
    return view


def scratch_columns(name: str, count: int, like: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Scratch memory [B, count, ...] for as many tensors like one [B, ...], and these."""
    batch, *shape = like.shape
    whole = scratch(name, batch, count, *shape, like=like)
    key = name, like.dtype
    parts = _kept.parts.get(key)
    if parts is None:
        parts = whole.unbind(1)
        if whole is _kept.views.get(key):
            _kept.parts[key] = parts
    return whole, parts
