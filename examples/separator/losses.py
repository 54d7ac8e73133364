"""One face for the two packages that provide MultiL1SNRDBLoss."""

from importlib import import_module

from torch import Tensor, nn

from .config import InputError

PACKAGES = {"fast": "torch_l1snr_fast", "torch-l1-snr": "torch_l1_snr"}


class Criterion(nn.Module):
    """MultiL1SNRDBLoss of the chosen package, with its components where it tells them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        package = PACKAGES[name]
        try:
            module = import_module(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            distribution = package.replace("_", "-")
            raise InputError(
                f"--loss is {name!r}, which needs the package {distribution}: "
                f"run pip install {distribution}"
            ) from error
        self.loss = module.MultiL1SNRDBLoss(name="separator")
        self.tells_components = name == "fast"

    def forward(self, estimates: Tensor, actuals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and its components as scalars by name (none from upstream)."""
        if self.tells_components:
            return self.loss(estimates, actuals, return_components=True)
        return self.loss(estimates, actuals), {}


def summarise(components: dict[str, float]) -> dict[str, float]:
    """Reduce the components to the few worth watching while training."""
    spectral = [v for name, v in components.items() if name.startswith("stft") and "/d1" in name]
    watched = {}
    if spectral:
        watched["d1 time"] = components["time/d1"]
        watched["d1 stft"] = sum(spectral) / len(spectral)
        watched["level"] = components["time/level_matching"]
    return watched
