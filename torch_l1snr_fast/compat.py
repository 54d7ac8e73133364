"""Standing in for torch-l1-snr in code that cannot be changed."""

from __future__ import annotations

import sys


def install_as_torch_l1_snr() -> None:
    """Make every later ``import torch_l1_snr`` resolve to this package.

    Also its submodule ``torch_l1_snr.l1snr`` and the early module name ``torch_l1snr``. Call it
    before the trainer imports its losses; what was imported earlier stays what it is.
    """
    import torch_l1snr_fast as package
    from torch_l1snr_fast import losses

    vars(losses)["dbrms"] = package.dbrms
    vars(package)["l1snr"] = losses
    for name in ("torch_l1_snr", "torch_l1snr"):
        sys.modules[name] = package
        sys.modules[f"{name}.l1snr"] = losses
