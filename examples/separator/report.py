"""What a run leaves behind: scores on unseen mixtures, pictures and audio."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .losses import summarise
from .stems import HELD_OUT, Mixtures, Stems
from .training import Record, Trainer, World

Scores = dict[str, dict[str, float]]  # SNR in dB by stem and by estimate

EXCERPT_SECONDS = 6.0


class Excerpt(NamedTuple):
    """A mixture (channels, samples) with its stems, estimated and actual."""

    sample_rate: int
    mixture: Tensor
    names: tuple[str, ...]
    estimates: Tensor
    actual: Tensor


def write_report(trainer: Trainer, stems: Stems) -> Scores:
    """Score the model and write results.json, the pictures and the audio to --out."""
    config = trainer.config
    scores = score(trainer, stems)
    (config.out / "results.json").write_text(json.dumps(scores, indent=2) + "\n")
    draw_losses(trainer.history, config.loss, config.out / "loss_curve.png")

    # One mixture past those of the scores, and longer, as it is for listening.
    samples = round(EXCERPT_SECONDS * config.sample_rate)
    actual = Mixtures(stems, config.seed, HELD_OUT, samples)[config.held_out]
    mixture = actual.sum(dim=0)
    estimates = trainer.separate(mixture.unsqueeze(0)).squeeze(0)
    excerpt = Excerpt(config.sample_rate, mixture, stems.names, estimates, actual)
    draw_spectrograms(excerpt, config.out / "spectrograms.png")
    write_audio(excerpt, config.out / "audio")
    return scores


def score(trainer: Trainer, stems: Stems) -> Scores:
    """Measure each stem's SNR over all held-out mixtures, before and after training.

    `mixture` takes the mixture itself for every stem, `untrained` is the model as it began. The
    energies of all mixtures are summed first, so that a silent passage counts for what it is.
    """
    config = trainer.config
    untrained = Trainer(config, World(trainer.world.device), stems.names)
    estimators: dict[str, Callable[[Tensor], Tensor]] = {
        "mixture": lambda mixture: mixture.unsqueeze(1),
        "untrained": untrained.separate,
        "trained": trainer.separate,
    }
    mixtures = Mixtures(stems, config.seed, HELD_OUT, config.samples)
    signal = torch.zeros(len(stems.names))
    noise = {name: torch.zeros(len(stems.names)) for name in estimators}
    for index in range(config.held_out):
        actual = mixtures[index].unsqueeze(0)
        signal += _energy(actual)
        for name, estimate in estimators.items():
            noise[name] += _energy(actual - estimate(actual.sum(dim=1)))
    decibels = {name: 10 * torch.log10(signal / error) for name, error in noise.items()}
    return {
        stem: {name: values[row].item() for name, values in decibels.items()}
        for row, stem in enumerate(stems.names)
    }


def table(scores: Scores) -> str:
    """Set the scores as text, with the gain over the mixture and the mean over the stems."""
    columns = list(next(iter(scores.values())))
    means = {name: float(np.mean([row[name] for row in scores.values()])) for name in columns}
    lines = [f"{'SNR in dB':<12}" + "".join(f"{name:>11}" for name in [*columns, "gain"])]
    for stem, row in {**scores, "mean": means}.items():
        figures = [f"{row[name]:.1f}" for name in columns]
        figures.append(f"{row['trained'] - row['mixture']:+.1f}")
        lines.append(f"{stem:<12}" + "".join(f"{figure:>11}" for figure in figures))
    return "\n".join(lines)


def draw_losses(history: list[Record], loss: str, path: Path) -> None:
    """Draw the loss, and its components if the package tells them, against the step."""
    panels = [{"loss": [record["loss"] for record in history]}]
    if components := [summarise(record) for record in history if summarise(record)]:
        panels.append({name: [c[name] for c in components] for name in components[0]})

    figure = Figure(figsize=(8, 1 + 3 * len(panels)), layout="constrained")
    figure.suptitle(f"MultiL1SNRDBLoss ({loss}) while training, with a running mean")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axis, lines in zip(axes, panels, strict=True):
        for name, values in lines.items():
            steps = np.arange(1, len(values) + 1)
            (line,) = axis.plot(steps, values, alpha=0.3, linewidth=1)
            axis.plot(steps, _running_mean(values), color=line.get_color(), label=name)
        axis.set_ylabel("dB")
        axis.grid(alpha=0.3)
        axis.legend()
    axes[-1].set_xlabel("step")
    figure.savefig(path, dpi=150)


def draw_spectrograms(excerpt: Excerpt, path: Path) -> None:
    """Draw each stem before (the mixture), after (the estimate) and as it really is."""
    rate, mixture, names, estimates, actual = excerpt
    figure = Figure(figsize=(13, 1 + 2.7 * len(names)), layout="constrained")
    figure.suptitle("A held-out mixture before and after separation")
    axes = figure.subplots(len(names), 3, sharex=True, sharey=True)
    loudest = _decibels(mixture).max()
    for row, name, estimate, stem in zip(axes, names, estimates, actual, strict=True):
        panels = {
            f"{name} before: the mixture, {_snr(stem, mixture):.1f} dB SNR": mixture,
            f"{name} after: the estimate, {_snr(stem, estimate):.1f} dB SNR": estimate,
            f"{name}: the target": stem,
        }
        for axis, (title, audio) in zip(row, panels.items(), strict=True):
            level = _decibels(audio) - loudest
            time = np.linspace(0, audio.shape[-1] / rate, level.shape[1])
            frequency = np.linspace(0, rate / 2000, level.shape[0])
            image = axis.pcolormesh(
                time, frequency, level, vmin=-70, vmax=0, cmap="magma", shading="nearest"
            )
            axis.set_title(title, fontsize=10)
        row[0].set_ylabel("frequency (kHz)")
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylim(0.04, rate / 2000)
    axes[0, 0].set_yticks([0.1, 1.0], ["0.1", "1"])
    for axis in axes[-1]:
        axis.set_xlabel("time (s)")
    figure.colorbar(image, ax=axes, label="level (dB relative to the mixture's peak)", pad=0.01)
    figure.savefig(path, dpi=110)


def write_audio(excerpt: Excerpt, folder: Path) -> None:
    """Write the mixture and, for each stem, the estimate and the target."""
    folder.mkdir(exist_ok=True)
    files = {"mixture": excerpt.mixture}
    for name, estimate, stem in zip(excerpt.names, excerpt.estimates, excerpt.actual, strict=True):
        files |= {f"{name}_estimate": estimate, f"{name}_target": stem}
    for name, audio in files.items():
        # Floating point, as a sum of stems may pass full scale.
        soundfile.write(folder / f"{name}.wav", audio.numpy().T, excerpt.sample_rate, "FLOAT")


def _energy(stems: Tensor) -> Tensor:
    return stems.square().sum(dim=(0, 2, 3))


def _snr(actual: Tensor, estimate: Tensor) -> float:
    noise = (actual - estimate).square().sum()
    return 10 * torch.log10(actual.square().sum() / noise).item()


def _decibels(audio: Tensor) -> np.ndarray:
    """The magnitude spectrogram of a recording in mono."""
    spectrum = torch.stft(
        audio.mean(dim=0), 2048, 512, window=torch.hann_window(2048), return_complex=True
    )
    return (20 * torch.log10(spectrum.abs() + 1e-6)).numpy()


def _running_mean(values: list[float], reach: int = 10) -> np.ndarray:
    """Average each value with its neighbours, fewer of them near the ends."""
    sums = np.cumsum([0.0, *values])
    steps = np.arange(len(values))
    reaches = np.minimum(np.minimum(steps, steps[::-1]), reach)
    return (sums[steps + reaches + 1] - sums[steps - reaches]) / (2 * reaches + 1)
