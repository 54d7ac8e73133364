"""A trainer that imports torch-l1-snr gets these losses by the redirect, and trains as before.

Music-Source-Separation-Training is on no registry, so its way with a loss is reproduced here: the
package is imported and the loss built anew in every call, several losses are added with
coefficients from the command line, under autocast, with a GradScaler and accumulated gradients.
"""

from __future__ import annotations

import argparse
import sys

import cases
import pytest
import torch
from torch import Tensor, nn

import torch_l1snr_fast

LOSSES = {
    "l1_snr_loss": ("L1SNRLoss", "l1_snr"),
    "l1_snr_db_loss": ("L1SNRDBLoss", "l1_snr_db"),
    "stft_l1_snr_db_loss": ("STFTL1SNRDBLoss", "stft_l1_snr_db"),
    "multi_l1_snr_db_loss": ("MultiL1SNRDBLoss", "multi_l1_snr_db"),
}
CHUNK_SIZES = (131584, 352800, 485100)  # of its configurations
STEPS, ACCUMULATED = 2, 2


def parse(line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--loss", nargs="+", choices=list(LOSSES))
    for name in LOSSES:
        parser.add_argument(f"--{name}_coef", type=float, default=1.0)
    return parser.parse_args(line.split())


def term(name: str, y_: Tensor, y: Tensor) -> Tensor:
    import torch_l1_snr

    kind, label = LOSSES[name]
    return getattr(torch_l1_snr, kind)(name=label)(y_, y)


def multi_loss(args: argparse.Namespace, y_: Tensor, y: Tensor) -> Tensor:
    return sum(
        (getattr(args, f"{name}_coef") * term(name, y_, y) for name in args.loss), torch.tensor(0.0)
    )


class Separator(nn.Module):
    """One stereo stem by a filter; what it returns is float32, as after an inverse STFT."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.filter = nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.filter(x).float()[:, None]


def train(args: argparse.Namespace, chunk_size: int) -> tuple[list[float], Tensor]:
    """Losses of a few steps and how far they moved the weights."""
    model = Separator()
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu")
    generator = torch.Generator().manual_seed(1)
    losses = []
    for i in range(STEPS):
        y = 0.1 * torch.randn(1, 1, 2, chunk_size, generator=generator)
        x = y[:, 0] + 0.02 * torch.randn(1, 2, chunk_size, generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = multi_loss(args, model(x), y)
        loss /= ACCUMULATED
        scaler.scale(loss).backward()
        if (i + 1) % ACCUMULATED == 0:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item() * ACCUMULATED)
    return losses, nn.utils.parameters_to_vector(model.parameters()).detach() - start


@cases.needs_upstream
@pytest.mark.usefixtures("redirectable")
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_trains_as_with_torch_l1_snr(chunk_size: int):
    args = parse(f"--loss {' '.join(LOSSES)} --l1_snr_loss_coef 2 --multi_l1_snr_db_loss_coef 0.3")
    wanted, wanted_step = train(args, chunk_size)

    torch_l1snr_fast.install_as_torch_l1_snr()
    assert sys.modules["torch_l1_snr"].L1SNRLoss is torch_l1snr_fast.L1SNRLoss
    got, step = train(args, chunk_size)

    assert got == pytest.approx(wanted, rel=1e-5)
    # The gradients of the waveform and of the weights are each rounded to bfloat16, to 1/256.
    assert cases.relative(step, wanted_step) < 2 / 256
    assert wanted_step.abs().min() > 0
