"""Standing in for torch-l1-snr in code, pickles and checkpoints that cannot be changed."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec

# What this package stands for, also where a trainer compares versions.
VERSION = "0.2.1"


def install_as_torch_l1_snr() -> None:
    """Make every later ``import torch_l1_snr`` resolve to this package.

    Also its submodule ``torch_l1_snr.l1snr`` and the early module name ``torch_l1snr``. Call it
    before the trainer imports its losses; what was imported earlier stays what it is. Criteria that
    were pickled with torch-l1-snr are loaded as this package's.

    Example:
        >>> install_as_torch_l1_snr()
        >>> import torch_l1_snr
        >>> torch_l1_snr.L1SNRLoss is L1SNRLoss, torch_l1_snr.__version__
        (True, '0.2.1')
    """
    import torch_l1snr_fast as package

    stand_in = module_from_spec(ModuleSpec("torch_l1_snr", None, is_package=True))
    vars(stand_in).update({name: getattr(package, name) for name in package.__all__})
    vars(stand_in).update(__doc__=package.__doc__, __all__=package.__all__, __version__=VERSION)
    vars(stand_in)["l1snr"] = stand_in
    for name in ("torch_l1_snr", "torch_l1snr"):
        sys.modules[name] = sys.modules[f"{name}.l1snr"] = stand_in
