"""The losses as modules; those of torch-l1-snr 0.2.1 with its names, arguments and defaults."""

from .combined import MultiL1SNRDBLoss
from .roformer import MultiResolutionComplexSTFTLoss
from .spectral import STFTL1SNRDBLoss
from .waveform import L1SNRDBLoss, L1SNRLoss, L2SNRLoss

__all__ = [
    "L1SNRDBLoss",
    "L1SNRLoss",
    "L2SNRLoss",
    "MultiL1SNRDBLoss",
    "MultiResolutionComplexSTFTLoss",
    "STFTL1SNRDBLoss",
]
