"""What the tracker knows of fresh memory: who has written which bytes."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from . import Tracker

N = 12


def part(x: Tensor) -> None:
    x[2:5] = 1.0


def rows(x: Tensor) -> None:
    x.view(3, 4)[:, 1:].copy_(torch.ones(3, 3))


def strided(x: Tensor) -> None:
    x[::2].fill_(2.0)


def from_operator(x: Tensor) -> None:
    torch.add(torch.ones(N), 1.0, out=x)


# How fresh memory is written, and how many elements are still unread.
WRITES: list[tuple[Callable[[Tensor], object], int]] = [
    (lambda x: None, N),
    (lambda x: x.zero_(), 0),
    (lambda x: x.copy_(torch.ones(N)), 0),
    (lambda x: x.normal_(), 0),
    (from_operator, 0),
    (part, N - 3),
    (rows, 3),
    (strided, N // 2),
]


@pytest.mark.parametrize(("write", "left"), WRITES)
def test_who_has_written(write: Callable[[Tensor], object], left: int) -> None:
    with Tracker() as tracker:
        x = torch.empty(N)
        write(x)
        assert not tracker.findings
        x.clone()
    assert [f.elements for f in tracker.findings] == ([left] if left else [])
    assert all("test_shadow.py" in str(f) for f in tracker.findings)


def test_changing_in_place_reads() -> None:
    with Tracker() as tracker:
        torch.empty(N).add_(1.0)
        torch.zeros(N).add_(1.0)
    assert [(f.operator, f.elements) for f in tracker.findings] == [("add_", N)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(3, 4),
        lambda: torch.empty_like(torch.ones(3, 4)),
        lambda: torch.ones(1).new_empty(3, 4),
        lambda: torch.empty_strided((3, 4), (1, 3)),
    ],
)
def test_fresh_memory_is_poisoned(make: Callable[[], Tensor]) -> None:
    with Tracker():
        x = make()
    assert x.isnan().all()


def test_memories_end_with_the_block() -> None:
    """Whoever holds the tracker: a driver that has been asked for its GPU stays."""
    with Tracker() as tracker:
        memory = weakref.ref(tracker.memory_of(torch.empty(N)))
        assert memory() is not None
    assert memory() is None


def test_a_view_is_of_its_storage() -> None:
    with Tracker() as tracker:
        x = torch.empty(N)
        memory = tracker.memory_of(x[4:])
        assert memory is tracker.memory_of(x)
    assert (memory.lo, memory.hi) == (x.data_ptr(), x.data_ptr() + 4 * N)
