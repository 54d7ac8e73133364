"""The losses as functions without state.

Every setting has the name, default and meaning that it has in the module of the same loss
(:mod:`torch_l1snr_fast.losses`), where formulas, units and sources are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from .computation import LossCall, Output
from .levels import dbrms
from .losses import (
    L1SNRDBLoss,
    L1SNRLoss,
    L2SNRLoss,
    MultiL1SNRDBLoss,
    MultiResolutionComplexSTFTLoss,
    STFTL1SNRDBLoss,
)
from .validation import Parameters

__all__ = [
    "complex_stft_l1_loss",
    "dbrms",
    "l1snr_loss",
    "l1snrdb_loss",
    "l2snr_loss",
    "multi_l1snrdb_loss",
    "stft_l1snrdb_loss",
]


def typed(function: Callable[..., Output]) -> LossCall:
    """What it returns is decided by ``return_components``."""
    return cast(LossCall, function)


@typed
def l1snr_loss(
    estimates: Tensor, actuals: Tensor, *, return_components: bool = False, **settings: Any
) -> Output:
    """:class:`~torch_l1snr_fast.L1SNRLoss` as a function, with its settings by name.

    Example:
        >>> estimates = torch.full((2, 1, 4), 0.2, requires_grad=True)
        >>> l1snr_loss(estimates, torch.full((2, 1, 4), 0.1), reduction="sum").backward()
        >>> estimates.grad.shape
        torch.Size([2, 1, 4])
    """
    loss = L1SNRLoss("l1snr_loss", **settings)
    return loss(estimates, actuals, return_components=return_components)


@typed
def l2snr_loss(
    estimates: Tensor, actuals: Tensor, *, return_components: bool = False, **settings: Any
) -> Output:
    """:class:`~torch_l1snr_fast.L2SNRLoss` as a function, with its settings by name.

    Example:
        >>> l2snr_loss(torch.full((2, 4), 0.1), torch.full((2, 4), 0.1), tau=0.01)
        tensor(-19.9572)
    """
    loss = L2SNRLoss("l2snr_loss", **settings)
    return loss(estimates, actuals, return_components=return_components)


@typed
def l1snrdb_loss(
    estimates: Tensor, actuals: Tensor, *, return_components: bool = False, **settings: Any
) -> Output:
    """:class:`~torch_l1snr_fast.L1SNRDBLoss` as a function, with its settings by name.

    Example:
        >>> actuals = torch.full((2, 4), 0.1)
        >>> l1snrdb_loss(0.5 * actuals, actuals, reduction="none", lambda0=0.2).shape
        torch.Size([2])
    """
    loss = L1SNRDBLoss("l1snrdb_loss", **settings)
    return loss(estimates, actuals, return_components=return_components)


@typed
def stft_l1snrdb_loss(
    estimates: Tensor, actuals: Tensor, *, return_components: bool = False, **settings: Any
) -> Output:
    """:class:`~torch_l1snr_fast.STFTL1SNRDBLoss` as a function, with its settings by name.

    It warns at every call that has cause to, where the module warns once.

    Example:
        >>> estimates, actuals = torch.zeros(2, 4096), torch.zeros(2, 4096)
        >>> loss, parts = stft_l1snrdb_loss(estimates, actuals, return_components=True)
        >>> sorted(parts)[:2]
        ['stft_1024_256_1024/d1', 'stft_1024_256_1024/l1']
    """
    loss = STFTL1SNRDBLoss("stft_l1snrdb_loss", **settings)
    return loss(estimates, actuals, return_components=return_components)


@typed
def multi_l1snrdb_loss(
    estimates: Tensor,
    actuals: Tensor,
    *,
    time_settings: Parameters | None = None,
    spec_settings: Parameters | None = None,
    return_components: bool = False,
    **settings: Any,
) -> Output:
    """:class:`~torch_l1snr_fast.MultiL1SNRDBLoss` as a function, with its settings by name.

    Args:
        time_settings: settings of :func:`l1snrdb_loss` for the time domain.
        spec_settings: settings of :func:`stft_l1snrdb_loss` for the STFT domain.

    Example:
        >>> estimates, actuals = torch.zeros(2, 4096), torch.zeros(2, 4096)
        >>> multi_l1snrdb_loss(estimates, actuals, spec_settings={"spec_reg_coef": 0.2})
        tensor(0.)
    """
    loss = MultiL1SNRDBLoss(
        "multi_l1snrdb_loss",
        time_loss_params=time_settings,
        spec_loss_params=spec_settings,
        **settings,
    )
    return loss(estimates, actuals, return_components=return_components)


@typed
def complex_stft_l1_loss(
    estimates: Tensor, actuals: Tensor, *, return_components: bool = False, **settings: Any
) -> Output:
    """:class:`~torch_l1snr_fast.MultiResolutionComplexSTFTLoss` as a function.

    Its settings by name.

    Example:
        >>> complex_stft_l1_loss(torch.full((1, 4096), 0.2), torch.zeros(1, 4096), weight=0.0)
        tensor(0.2000)
    """
    loss = MultiResolutionComplexSTFTLoss("complex_stft_l1_loss", **settings)
    return loss(estimates, actuals, return_components=return_components)
