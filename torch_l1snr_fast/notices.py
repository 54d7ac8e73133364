"""Warnings that a loss gives once in its life, also when the cause is found on a GPU."""

from __future__ import annotations

import sys
import warnings
from collections import deque
from typing import Any

import torch
from torch import Tensor

from .kernels.modes import run_while_tracing

# Counts on their way from a GPU to the host: (host copy, event, whose). Shared by all losses,
# because a trainer may build its loss anew every step and a count arrives a call later.
_pending: deque[tuple[Tensor, Any, Notices]] = deque()
_PENDING_AT_MOST = 64


class Notices:
    """What one loss has already warned of."""

    def __init__(self, name: str) -> None:
        self.name = str(name)  # an operator's argument is nothing else
        self.given: set[str] = set()

    def once(self, kind: str, text: str, category: type[Warning] = RuntimeWarning) -> None:
        if kind not in self.given:
            if torch.compiler.is_compiling():
                _warn_while_tracing(f"{self.name}: {text}", category)
            else:
                warnings.warn(f"{self.name}: {text}", category, stacklevel=caller())
            self.given.add(kind)  # once it is out: under -W error it is raised at every call

    def sanitized(self, count: Tensor | int) -> None:
        """Warn if ``count`` is not zero; from a GPU the answer is awaited by a later call."""
        if isinstance(count, int):
            self._sanitized(count)
            return
        if _capturing(count.device):  # when even asking whether a count has arrived is an error
            return
        poll()
        if "nonfinite" in self.given:
            return
        if count.device.type == "cpu":
            self._sanitized(int(count))
        elif len(_pending) < _PENDING_AT_MOST:
            host = torch.empty((), dtype=count.dtype, device="cpu", pin_memory=True)
            host.copy_(count, non_blocking=True)
            event = torch.Event(count.device.type)
            event.record(torch.accelerator.current_stream(count.device))
            _pending.append((host, event, self))

    def _sanitized(self, count: int) -> None:
        if count:
            self.once(
                "nonfinite",
                f"{count} samples of estimates and actuals are non-finite and were sanitized (NaN"
                " to 0.0, +/-Inf to +/-1.0, full scale). They get no gradient, so a diverging model"
                " can show a healthy loss. Check the model and the data, or pass check_finite=False"
                " to see them in the loss. Warned once per loss instance.",
            )


@run_while_tracing
def _warn_while_tracing(text: str, category: type[Warning]) -> None:
    """torch.compile cannot trace a warning."""
    warnings.warn(text, category, stacklevel=2)


def caller() -> int:
    """The stack level, for the function that calls this, of the first frame that is the user's."""
    level, frame = 1, sys._getframe(1)
    ours = (__name__.partition(".")[0], "torch")
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ours:
        level, frame = level + 1, frame.f_back
    return level


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def poll() -> None:
    """Give the warnings whose counts have arrived, without waiting for the others."""
    while _pending and _pending[0][1].query():
        host, _, notices = _pending.popleft()
        notices._sanitized(int(host))


_by_name: dict[str, Notices] = {}


def notices_of(name: str) -> Notices:
    """The notices of a compiled loss, where the instance is not at hand."""
    return _by_name.setdefault(name, Notices(name))
