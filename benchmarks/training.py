"""What a user gains: whole training steps of a separator, with torch-l1-snr's loss and with ours.

Model and step are those of examples/: forward, loss, backward, clipping, AdamW. The loss is built
once, or anew in every step as many trainers do; one process trains, or two as with torchrun.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from .measure import Figure, Job, in_fresh_process, peak_in_profile, peak_on_gpu
from .records import ROOT
from .registry import MULTI, OURS, UPSTREAM, Case

sys.path.append(str(ROOT / "examples"))
from separator import losses, model, stems, training
from separator.config import Config

WARM_UP = 2
PROCESSES = 2


class Setup(NamedTuple):
    """A separator, and the batches of three stereo stems that it is trained on."""

    name: str
    model: dict[str, int]
    seconds: float
    sample_rate: int
    autocast: bool
    batch: int = 4
    steps: int = 12  # that are timed
    variants: bool = True  # also with the loss built anew, and by two processes

    def config(self, provider: str) -> Config:
        return Config(
            loss="torch-l1-snr" if provider == UPSTREAM else "fast",
            seconds=self.seconds,
            sample_rate=self.sample_rate,
            autocast="bf16" if self.autocast else "off",
            batch=self.batch,
        )


EXAMPLE = Setup("example", {}, 2.0, 16_000, autocast=False)
# A model of the size that is trained for music, on stems of CD quality.
WIDE = {"width": 128, "blocks": 8, "bands": 64, "n_fft": 2048}
LARGE = Setup("large model", WIDE, 6.0, 44_100, autocast=True)
# Seconds a step on a CPU: one short example, one way.
SETUPS = {
    "cpu": (EXAMPLE, LARGE._replace(batch=1, seconds=2.0, steps=3, variants=False)),
    "cuda": (LARGE, EXAMPLE._replace(autocast=True), EXAMPLE),
}


class Rebuilt(nn.Module):
    """A loss that is built anew for every call."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, estimates: Tensor, actuals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        criterion = losses.Criterion(self.name).to(estimates.device)
        result: tuple[Tensor, dict[str, Tensor]] = criterion(estimates, actuals)
        return result


def build(setup: Setup, provider: str, world: training.World, rebuild: bool) -> training.Trainer:
    """A trainer of the setup's model with a provider's loss."""
    network = partial(model.BandSplitSeparator, **setup.model)
    config = setup.config(provider)
    with mock.patch.object(training, "BandSplitSeparator", network):
        trainer = training.Trainer(config, world, stems.SynthesisedStems.names)
    if rebuild:
        trainer.criterion = Rebuilt(config.loss)
    return trainer


def batch(setup: Setup, world: training.World) -> Tensor:
    config = setup.config(UPSTREAM)
    source = stems.open_stems(config)[stems.TRAIN]
    loaded: Tensor = next(iter(training.training_batches(source, config, world)))
    return loaded.to(world.device)


def interleaved(
    trainers: dict[str, training.Trainer], data: Tensor, steps: int
) -> dict[str, list[float]]:
    """Milliseconds of the steps of trainers that take turns, until their log is on the host."""
    for _ in range(WARM_UP):
        for trainer in trainers.values():
            trainer.advance(data)
    samples: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(steps):
        for name, trainer in trainers.items():
            samples[name].append(1e3 * trainer.advance(data)["seconds"])
    return samples


def peak_of_first_step(setup: Setup, provider: str) -> int:
    world = training.World(torch.device("cpu"))
    trainer, data = build(setup, provider, world, rebuild=False), batch(setup, world)
    return peak_in_profile(lambda: trainer.advance(data))


def steps(setup: Setup, case: Case, device: torch.device, rebuild: bool) -> Iterator[Figure]:
    """Time and peak memory of a step."""
    world = training.World(device)
    data = batch(setup, world)
    trainers = {name: build(setup, name, world, rebuild) for name in case.providers}
    for name, samples in interleaved(trainers, data, setup.steps).items():
        yield Figure(name, "time", "ms", samples)
    if case.memory:
        for name, trainer in trainers.items():
            if device.type == "cuda":
                size = peak_on_gpu(partial(trainer.advance, data), device)
            else:
                size = in_fresh_process(peak_of_first_step, setup, name)
            yield Figure(name, "peak memory", "bytes", [size])


def _process(rank: int, setup: Setup, providers: tuple[str, ...], kind: str, folder: str) -> None:
    """One of the processes that train together; the first leaves its samples in the folder."""
    several = torch.cuda.device_count() >= PROCESSES
    device = torch.device(kind, rank if several else 0) if kind == "cuda" else torch.device(kind)
    torch.set_num_threads(max(1, torch.get_num_threads() // PROCESSES))
    dist.init_process_group(
        "nccl" if kind == "cuda" and several else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=PROCESSES,
    )
    world = training.World(device, rank, PROCESSES)
    trainers = {name: build(setup, name, world, rebuild=False) for name in providers}
    samples = interleaved(trainers, batch(setup, world), setup.steps)
    if rank == 0:
        Path(folder, "samples").write_text(json.dumps(samples))
    dist.destroy_process_group()


def together(setup: Setup, case: Case, device: torch.device) -> Iterator[Figure]:
    """Time of a step of two processes, on two GPUs or sharing what there is."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (setup, case.providers, device.type, folder)
        torch.multiprocessing.spawn(_process, arguments, nprocs=PROCESSES)
        samples = json.loads(Path(folder, "samples").read_text())
    for name, values in samples.items():
        yield Figure(name, "time", "ms", values)


def jobs(device: torch.device) -> Iterator[Job]:
    """Every whole-step measurement of a device."""
    for setup in SETUPS[device.type]:
        case = Case(
            MULTI,
            (setup.batch, 3, 2, setup.config(UPSTREAM).samples),
            (UPSTREAM, OURS[device.type]),
            f"step of {setup.name}",
            torch.bfloat16 if setup.autocast else torch.float32,
            memory=True,
        )
        anew = case._replace(mode=f"{case.mode}, loss built anew", memory=False)
        pair = case._replace(mode=f"{case.mode}, two processes", memory=False)
        yield case, partial(steps, setup, case, device, False)
        if not setup.variants:
            continue
        yield anew, partial(steps, setup, anew, device, True)
        yield pair, partial(together, setup, pair, device)
