"""Two processes with half a batch each train as one process with all of it: DDP and FSDP2."""

from __future__ import annotations

from pathlib import Path

import cases
import pytest
import torch
from cases import KINDS, build, signals
from torch import Tensor, nn

if torch.distributed.is_available():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)
STEPS, BATCH = 3, 4
OPTIONS = {"grad_scale": 0.5}


def train(kind: str, model: nn.Module, share: slice) -> list[Tensor]:
    """Losses of a few steps on a share of each batch, then the weights."""
    loss = build(kind, **OPTIONS)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for step in range(STEPS):
        mixture, target = signals(BATCH, 2, cases.LENGTH, seed=step)
        value = loss(model(mixture[share]), target[share])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return losses + [whole(p.detach()).clone() for p in model.parameters()]


def whole(parameter: Tensor) -> Tensor:
    """A parameter, gathered where it is sharded."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def sharded(model: nn.Module) -> nn.Module:
    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)))


def new_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv1d(2, 2, 9, padding=4, dtype=torch.float64)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    share = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    results = {}
    for kind in KINDS:
        results[kind, "ddp"] = train(kind, DistributedDataParallel(new_model()), share)
        results[kind, "fsdp2"] = train(kind, sharded(new_model()), share)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path):
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kind in KINDS:
        alone = train(kind, new_model(), slice(0, BATCH))
        for way in ("ddp", "fsdp2"):
            first, second = (rank[kind, way] for rank in ranks)
            for i in range(STEPS):
                cases.assert_close((first[i] + second[i]) / 2, alone[i], 1e-10)
            for mine, other, want in zip(first[STEPS:], second[STEPS:], alone[STEPS:], strict=True):
                assert torch.equal(mine, other)
                cases.assert_close(mine, want, 1e-10)
        start = list(new_model().parameters())
        assert cases.relative(alone[STEPS], start[0]) > 1e-4, "nothing was learnt"
