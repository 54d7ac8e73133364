"""The clock of a GPU's multiprocessors while something is timed.

A card changes it by load, heat and power, so a time says little without it: what a kernel of
instructions can reach is a share of the issue rate at the clock that it ran at.
"""

from __future__ import annotations

import statistics
import threading
import time

import torch

INTERVAL = 0.005  # seconds between two looks


class Clock:
    """Looks at the clock from time to time while it is entered; elsewhere than on CUDA never.

    It asks NVML, by way of PyTorch, which needs the package nvidia-ml-py.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seen: list[tuple[float, int]] = []  # when, MHz
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.seen.append((time.monotonic(), torch.cuda.clock_rate(self.device)))

    def __enter__(self) -> Clock:
        if self.device.type == "cuda":
            torch.cuda.clock_rate(self.device)  # raises here if it cannot be asked
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def since(self, start: float) -> float | None:
        """Median in MHz of what was seen since ``start`` of time.monotonic(); None if nothing."""
        found = [mhz for when, mhz in self.seen if when >= start]
        return statistics.median(found) if found else None
