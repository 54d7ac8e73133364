"""Train two copies of one model side by side, one with each package's loss, and compare.

Both copies start from the same weights and see the same batches, but each follows the gradients
of its own loss. Three differences are measured at every step:

    drift       between the losses of the two copies, in dB; it includes how far their weights
                have come apart
    error       between the two losses of one and the same estimates, in dB
    gradient    between the gradients of the two losses at these estimates, as the norm of the
                difference over the norm of the reference

Any two trainings drift once something rounds differently, as Adam makes a whole step of the sign
of a gradient near zero. `--candidate torch-l1-snr --nudge 1.2e-7` shows how much is natural: it
trains upstream against upstream with estimates one unit in the last place apart.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from separator.config import Config, InputError, add_options
from separator.losses import PACKAGES, Criterion
from separator.stems import TRAIN, open_stems
from separator.training import Trainer, World, pick_device, training_batches
from torch import Tensor, nn
from tqdm import tqdm

REFERENCE = "torch-l1-snr"
Row = dict[str, float]  # a step, the losses and their differences


class Candidate(nn.Module):
    """The loss under test, with what sets it apart from the reference as its components."""

    def __init__(self, name: str, nudge: float) -> None:
        super().__init__()
        self.loss, self.reference, self.nudge = Criterion(name), Criterion(REFERENCE), nudge

    def forward(self, estimates: Tensor, actuals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        ours, _ = self.loss(estimates * (1 + self.nudge), actuals)
        theirs, _ = self.reference(estimates, actuals)
        gradient, expected = (
            torch.autograd.grad(loss, estimates, retain_graph=True)[0] for loss in (ours, theirs)
        )
        return ours, {
            "error": (ours - theirs).detach().abs(),
            "gradient": (gradient - expected).norm() / expected.norm(),
        }


def run_lockstep(config: Config, candidate: str = "fast", nudge: float = 0.0) -> list[Row]:
    """Train both copies for `config.steps` and return the comparison of every step."""
    world = World(pick_device(config.device))
    stems = open_stems(config)[TRAIN]
    tested, reference = (Trainer(config, world, stems.names) for _ in range(2))
    tested.criterion = Candidate(candidate, nudge).to(world.device)
    rows = []
    for batch in tqdm(training_batches(stems, config, world), unit=" steps"):
        ours, theirs = tested.advance(batch), reference.advance(batch)
        rows.append(
            {
                "step": ours["step"],
                "candidate": ours["loss"],
                "reference": theirs["loss"],
                "drift": abs(ours["loss"] - theirs["loss"]),
                "error": ours["error"],
                "gradient": ours["gradient"],
            }
        )
    return rows


def draw(rows: list[Row], limits: dict[str, float], candidate: str, out: Path) -> None:
    """Draw both losses, and below them their differences with the limits on these."""
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(8, 8), layout="constrained")
    figure.suptitle(f"{candidate} and {REFERENCE} trained in lockstep from one seed")
    losses, differences = figure.subplots(2, sharex=True)
    for name, label, style in (
        ("reference", REFERENCE, {"linewidth": 4, "alpha": 0.4}),
        ("candidate", candidate, {"linewidth": 1, "color": "black"}),
    ):
        losses.plot(steps, [row[name] for row in rows], label=label, **style)
    losses.set_ylabel("loss (dB)")
    for name, label in (
        ("drift", "drift: losses of the two copies (dB)"),
        ("gradient", "gradient: for the same estimates (relative)"),
        ("error", "error: losses of the same estimates (dB)"),
    ):
        # No difference at all cannot be drawn on a logarithmic axis, so it shows as a gap.
        points = [row[name] or float("nan") for row in rows]
        (line,) = differences.plot(steps, points, ".-", linewidth=0.7, label=label)
        differences.axhline(limits[name], color=line.get_color(), linestyle="--", linewidth=1)
    differences.set_yscale("log")
    differences.set_ylim(1e-9, 300 * max(limits.values()))  # leaves room for the legend
    differences.set_ylabel("difference")
    differences.set_xlabel("step (dashed: the tolerances)")
    for axis in (losses, differences):
        axis.grid(alpha=0.3)
        axis.legend(loc="upper right")
    figure.savefig(out / "lockstep.png", dpi=150)


def summary(rows: list[Row], limits: dict[str, float]) -> str:
    """Set the largest differences as text; those in dB also in relation to the loss."""
    lines = [f"{'':<16}{'largest':>10}{'limit':>10}{'relative to the loss':>23}"]
    for name, limit in limits.items():
        line = f"{name:<16}{max(row[name] for row in rows):>10.1e}{limit:>10.1e}"
        if name != "gradient":
            line += f"{max(row[name] / abs(row['reference']) for row in rows):>23.1e}"
        lines.append(line)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, omit=("loss", "held_out", "checkpoint_every", "resume"))
    parser.add_argument("--candidate", default="fast", choices=tuple(PACKAGES), help="loss to test")
    for name, default, meaning in (
        ("--nudge", 0.0, "scale the candidate's estimates by 1 + X"),
        ("--tolerance", 0.2, "largest drift"),
        ("--error-tolerance", 1e-5, "largest error"),
        ("--gradient-tolerance", 0.05, "largest difference of the gradients"),
    ):
        text = f"{meaning} (default: %(default)s)"
        parser.add_argument(name, type=float, default=default, metavar="X", help=text)
    values = vars(parser.parse_args(arguments))
    candidate, nudge = values.pop("candidate"), values.pop("nudge")
    limits = {
        "drift": values.pop("tolerance"),
        "error": values.pop("error_tolerance"),
        "gradient": values.pop("gradient_tolerance"),
    }
    try:
        config = Config(loss=REFERENCE, **values)
        rows = run_lockstep(config, candidate, nudge)
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2

    config.out.mkdir(parents=True, exist_ok=True)
    with (config.out / "lockstep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, limits, candidate, config.out)
    within = all(row[name] <= limit for row in rows for name, limit in limits.items())
    verdict = "within the limits" if within else "NOT within the limits"
    print(f"\n{summary(rows, limits)}\n{len(rows)} steps {verdict}; see {config.out}")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
