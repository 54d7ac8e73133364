"""Fast L1SNR losses for audio source separation: a drop-in replacement for torch-l1-snr 0.2.1."""

from . import functional
from ._version import __version__
from .backends import use_backend
from .compat import install_as_torch_l1_snr
from .levels import dbrms
from .losses import (
    L1SNRDBLoss,
    L1SNRLoss,
    L2SNRLoss,
    MultiL1SNRDBLoss,
    MultiResolutionComplexSTFTLoss,
    STFTL1SNRDBLoss,
)

__all__ = [
    "L1SNRDBLoss",
    "L1SNRLoss",
    "L2SNRLoss",
    "MultiL1SNRDBLoss",
    "MultiResolutionComplexSTFTLoss",
    "STFTL1SNRDBLoss",
    "__version__",
    "dbrms",
    "functional",
    "install_as_torch_l1_snr",
    "use_backend",
]
