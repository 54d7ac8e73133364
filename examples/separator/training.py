"""The training loop: one process or many, from the start or from a checkpoint."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from .config import Config, InputError, flag
from .losses import Criterion, summarise
from .model import BandSplitSeparator
from .stems import TRAIN, Mixtures, Stems

WARM_UP = 20  # steps
Record = dict[str, float]  # what one step leaves in the log


@dataclass(frozen=True)
class World:
    """This process's place among those that train together."""

    device: torch.device
    rank: int = 0
    size: int = 1


def pick_device(name: str) -> torch.device:
    """Resolve `auto`, and refuse a GPU that is not there."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("--device is 'cuda', but torch sees no GPU: give --device cpu")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """Meet the other processes, if torchrun started this one."""
    if not dist.is_torchelastic_launched():
        yield World(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(device, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


class Trainer:
    """One model with its loss and optimiser: all that a training step reads or changes."""

    def __init__(self, config: Config, world: World, names: tuple[str, ...]) -> None:
        self.config, self.world, self.names = config, world, names
        torch.manual_seed(config.seed)
        self.model = BandSplitSeparator(len(names), config.channels).to(world.device)
        self.network: nn.Module = self.model
        if world.size > 1:
            self.network = DistributedDataParallel(self.model)
        self.criterion: nn.Module = Criterion(config.loss).to(world.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learning_rate)
        self.history: list[Record] = []

    @property
    def step(self) -> int:
        """The number of steps taken so far."""
        return len(self.history)

    @torch.no_grad()
    def separate(self, mixture: Tensor) -> Tensor:
        """Estimate the stems of a mixture in this process alone."""
        with self._autocast():
            return self.model(mixture.to(self.world.device)).cpu()

    def advance(self, stems: Tensor) -> Record:
        """Take one step on stems (batch, sources, channels, samples) and record it."""
        started = time.perf_counter()
        # A rate that does not depend on --steps lets a finished run be continued as if it
        # had been longer from the start.
        progress = (self.step + 1) / WARM_UP
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * min(progress, progress**-0.5)

        stems = stems.to(self.world.device)
        with self._autocast():
            estimates = self.network(stems.sum(dim=1))
        loss, components = self.criterion(estimates, stems)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.clip, error_if_nonfinite=True
        )
        self.optimizer.step()

        figures = {"loss": loss.detach(), "gradient_norm": norm, **components}
        values = torch.stack([value.double() for value in figures.values()])
        if self.world.size > 1:
            dist.all_reduce(values)
            values /= self.world.size
        record = {
            "step": self.step + 1,
            **dict(zip(figures, values.tolist(), strict=True)),
            "seconds": time.perf_counter() - started,
        }
        self.history.append(record)
        return record

    def save(self) -> None:
        """Write the checkpoint whole or not at all, so that a kill cannot spoil it."""
        path = self.config.out / "checkpoint.pt"
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "rng": torch.get_rng_state(),
                "history": self.history,
                "identity": self._identity(),
            },
            path.with_suffix(".new"),
        )
        os.replace(path.with_suffix(".new"), path)

    def load(self) -> None:
        """Go back to the checkpoint, if it is of a run with the same data and model."""
        path = self.config.out / "checkpoint.pt"
        if not path.exists():
            raise InputError(
                f"--resume finds no checkpoint.pt in --out {str(self.config.out)!r}: "
                "start without --resume, or give the folder of the run to continue"
            )
        checkpoint = torch.load(path, map_location=self.world.device, weights_only=True)
        for name, now in self._identity().items():
            before = checkpoint["identity"][name]
            if now != before:
                raise InputError(
                    f"--resume needs {flag(name)} as the run began, {before!r}, not {now!r}: "
                    "give the same again, or start a new run in another --out"
                )
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        torch.set_rng_state(checkpoint["rng"].cpu())
        self.history = checkpoint["history"]

    def _autocast(self) -> torch.autocast:
        enabled = self.config.autocast == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=enabled)

    def _identity(self) -> dict[str, Any]:
        return {**self.config.fixed(), "stems": list(self.names), "nproc_per_node": self.world.size}


def training_batches(
    stems: Stems, config: Config, world: World, first_step: int = 0
) -> DataLoader[Tensor]:
    """Load a batch for each step from `first_step` on; ranks take turns at the mixtures."""
    per_step = config.batch * world.size
    indices = range(first_step * per_step + world.rank, config.steps * per_step, world.size)
    return DataLoader(
        Mixtures(stems, config.seed, TRAIN, config.samples),
        batch_size=config.batch,
        sampler=indices,
        num_workers=config.workers,
        pin_memory=world.device.type == "cuda",
    )


def train(config: Config, world: World, stems: Stems) -> Trainer:
    """Train up to `config.steps`, logging each step; return the trainer with its history."""
    trainer = Trainer(config, world, stems.names)
    if config.resume:
        trainer.load()
    writes = world.rank == 0
    log = config.out / "history.jsonl"
    if writes:
        config.out.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        _append(log, trainer.history)

    progress = tqdm(
        training_batches(stems, config, world, trainer.step),
        initial=trainer.step,
        total=config.steps,
        unit=" steps",
        bar_format="{percentage:3.0f}%|{bar}| {n}/{total} {elapsed}<{remaining} "
        "{rate_noinv_fmt}{postfix}",
        disable=not writes,
    )
    for batch in progress:
        record = trainer.advance(batch)
        if not writes:
            continue
        watched = {"loss": record["loss"], **summarise(record)}
        progress.set_postfix({k: f"{v:.2f}" for k, v in watched.items()}, refresh=False)
        _append(log, [record])
        if trainer.step % config.checkpoint_every == 0 or trainer.step == config.steps:
            trainer.save()
    return trainer


def _append(log: Path, records: Iterable[Record]) -> None:
    with log.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
