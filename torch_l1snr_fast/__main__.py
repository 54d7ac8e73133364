"""``python -m torch_l1snr_fast``: what runs here, and whether its numbers are right."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import torch
from torch import Tensor, nn

from . import (
    L1SNRDBLoss,
    L1SNRLoss,
    L2SNRLoss,
    MultiL1SNRDBLoss,
    STFTL1SNRDBLoss,
    __version__,
    backends,
    use_backend,
)

# float32 sums of some 10^5 terms and a float32 FFT stay well below; a wrong formula does not.
TOLERANCE = 1e-5


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def value_and_gradient(loss: nn.Module, estimates: Tensor, actuals: Tensor) -> tuple[float, Tensor]:
    leaf = estimates.clone().requires_grad_()
    value = loss(leaf, actuals)
    value.backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad.cpu().double()


def check(loss: nn.Module, device: torch.device) -> tuple[float, float]:
    """Relative error of value and gradient in float32, against the reference in float64."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, 2, 20011, generator=generator, device="cpu")
    actuals, estimates = 0.1 * clean, 0.09 * clean + 0.02 * noise
    with use_backend("reference"):
        wanted, wanted_gradient = value_and_gradient(loss, estimates.double(), actuals.double())
    value, gradient = value_and_gradient(loss, estimates.to(device), actuals.to(device))
    distance = (gradient - wanted_gradient).norm() / wanted_gradient.norm()
    return abs(value - wanted) / abs(wanted), distance.item()


def main() -> int:
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    print(f"torch_l1snr_fast {__version__}, Python {platform.python_version()}")
    print(f"torch {torch.__version__}, triton {version('triton')}")
    if problem := backends.triton_problem():
        print(f"no Triton kernels: {problem}")
    losses = (
        L1SNRLoss("L1SNRLoss"),
        L2SNRLoss("L2SNRLoss"),
        L1SNRDBLoss("L1SNRDBLoss"),
        STFTL1SNRDBLoss("STFTL1SNRDBLoss", use_regularization=True),
        MultiL1SNRDBLoss("MultiL1SNRDBLoss"),
    )
    passed = True
    for device in devices:
        label = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        print(f"\n{label}: backend {backends.select_backend(device)}")
        print(f"  {'error against float64':<24}{'value':>10}{'gradient':>10}")
        for loss in losses:
            errors = check(loss, device)
            good = max(errors) <= TOLERANCE
            passed &= good
            verdict = "ok" if good else f"FAILED (more than {TOLERANCE:g})"
            print(f"  {loss.name:<24}{errors[0]:>10.1e}{errors[1]:>10.1e}  {verdict}")
    print("\nall right" if passed else "\nFAILED: please report this with the lines above")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
