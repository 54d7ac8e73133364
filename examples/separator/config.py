"""The options of a run: declared once, used as command line, checkpoint header and test fixture."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints


class InputError(ValueError):
    """A mistake in what the user gave; the command line prints it without a traceback."""


class Option:
    """How a field reads on the command line; a `fixed` one may not change on resuming."""

    def __init__(self, help: str, *, fixed: bool = False, **argument: Any) -> None:
        self.fixed = fixed
        self.argument = {"help": help, **argument}


@dataclass(frozen=True)
class Config:
    """Everything that decides how a run goes."""

    out: Annotated[Path, Option("folder for all that the run writes", type=Path)] = Path(
        "runs/separator"
    )
    loss: Annotated[
        str,
        Option(
            "fast: torch_l1snr_fast; torch-l1-snr: the upstream package, for comparison",
            fixed=True,
            choices=("fast", "torch-l1-snr"),
        ),
    ] = "fast"
    stems: Annotated[
        Path | None,
        Option("folder of audio; without it, stems are synthesised", type=Path),
    ] = None
    patterns: Annotated[
        Sequence[str],
        Option(
            "files of each stem under --stems by name; without it, each subfolder is a stem",
            fixed=True,
            type=str,
            nargs="+",
            metavar="STEM=GLOB[,GLOB]",
        ),
    ] = ()
    steps: Annotated[int, Option("train up to this step, counted from the very first")] = 120
    batch: Annotated[int, Option("mixtures in a step, on each rank", fixed=True)] = 4
    seconds: Annotated[float, Option("length of a training mixture", fixed=True)] = 2.0
    sample_rate: Annotated[int, Option("in Hz; files are resampled to it", fixed=True)] = 16_000
    channels: Annotated[
        int, Option("1: mono, 2: stereo; files are converted", fixed=True, choices=(1, 2))
    ] = 2
    seed: Annotated[int, Option("decides the first weights and every mixture", fixed=True)] = 0
    learning_rate: Annotated[float, Option("of AdamW after the warm-up", fixed=True)] = 3e-3
    clip: Annotated[float, Option("norm that gradients are cut down to", fixed=True)] = 5.0
    held_out: Annotated[int, Option("unseen mixtures to measure the SNR on")] = 16
    autocast: Annotated[
        str,
        Option(
            "bf16: run the model, not the loss, in bfloat16 where that is safe",
            fixed=True,
            choices=("off", "bf16"),
        ),
    ] = "off"
    device: Annotated[
        str, Option("auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    ] = "auto"
    workers: Annotated[int, Option("processes that prepare mixtures ahead of the training")] = 0
    checkpoint_every: Annotated[int, Option("steps between checkpoints")] = 50
    resume: Annotated[bool, Option("go on from the checkpoint in --out", action="store_true")] = (
        False
    )

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "held_out", "checkpoint_every"):
            self._require(name, getattr(self, name) >= 1, "give 1 or more")
        for name in ("seed", "workers"):
            self._require(name, getattr(self, name) >= 0, "give 0 or more")
        for name in ("learning_rate", "clip"):
            self._require(name, getattr(self, name) > 0, "give a number above 0")
        self._require("sample_rate", self.sample_rate >= 8_000, "give 8000 Hz or more")
        self._require("seconds", self.seconds >= 0.5, "give half a second or more")
        self._require("patterns", not (self.patterns and self.stems is None), "give --stems too")

    def _require(self, name: str, holds: bool, remedy: str) -> None:
        if not holds:
            raise InputError(f"{flag(name)} is {getattr(self, name)!r}: {remedy}")

    @property
    def samples(self) -> int:
        """The length of a training mixture in samples."""
        return round(self.seconds * self.sample_rate)

    def fixed(self) -> dict[str, Any]:
        """The options that a resumed run has to share with the run it continues."""
        return {name: getattr(self, name) for name, option in options().items() if option.fixed}


def options() -> dict[str, Option]:
    """The option of each field of `Config`."""
    hints = get_type_hints(Config, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def flag(name: str) -> str:
    """Spell a field as the command line does."""
    return "--" + name.replace("_", "-")


def add_options(parser: argparse.ArgumentParser, *, omit: Sequence[str] = ()) -> None:
    """Offer every field of `Config` on a command line, less those in `omit`."""
    metavars = {int: "N", float: "X", Path: "DIR"}
    for name, option in options().items():
        if name in omit:
            continue
        default = getattr(Config, name)
        argument = dict(option.argument)
        if "action" not in argument:
            kind = argument.setdefault("type", type(default))
            if "choices" not in argument:
                argument.setdefault("metavar", metavars.get(kind))
            if default not in (None, ()):
                argument["help"] += " (default: %(default)s)"
        parser.add_argument(flag(name), default=default, **argument)
