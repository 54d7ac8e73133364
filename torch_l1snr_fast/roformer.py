"""The loss inside BS-RoFormer and Mel-Band RoFormer as a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import functional, validation
from .functional import Output
from .kernels.complex_plan import ComplexPlan
from .losses import _Loss


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


class MultiResolutionComplexSTFTLoss(_Loss):
    r"""L1 distance of complex spectra over several window lengths, and of the waveforms.

    With STFT_w of centred frames, borders reflected, under a Hann window of w samples as it is (not
    divided by its norm) in transforms of max(w, n_fft) samples,

    .. math::
        loss = waveform\_weight\; mean|\hat y - y|
             + weight \sum_w mean|STFT_w(\hat y) - STFT_w(y)|

    where the modulus is that of the complex difference, and the mean is over channels, bins and
    frames of each batch item. It is the loss inside BS-RoFormer and Mel-Band RoFormer
    (arXiv:2309.02612, 2310.01809) with the settings of lucidrains' BS-RoFormer package, whose newer
    Mel-Band RoFormer has hops of max(147, w // 4): ``hop_lengths=[1024, 512, 256, 147, 147]``.

    Args:
        name: of the loss.
        weight: factor of the spectral terms.
        waveform_weight: factor of the waveform term.
        win_lengths: the windows, in samples.
        n_fft: samples of a transform, of a window that is not longer.
        hop_lengths: samples from frame to frame, for all windows or for each.
        grad_scale, reduction: as in :class:`~torch_l1snr_fast.L1SNRLoss`.
        stem_dimension: as in :class:`~torch_l1snr_fast.MultiL1SNRDBLoss`.

    Shape and errors: as in :class:`~torch_l1snr_fast.L1SNRLoss`; ValueError for audio of no more
    than half of the longest transform, whose borders cannot be reflected. The gradient is 0 where a
    modulus is 0. Values that are not finite show in the loss. Components: ``"time/l1"`` and
    ``"stft_{n_fft}_{hop}_{win}/l1"``.

    Example:
        >>> loss = MultiResolutionComplexSTFTLoss("stft", win_lengths=[4], n_fft=8, hop_lengths=2)
        >>> loss(torch.full((1, 8), 0.2), torch.full((1, 8), 0.1))
        tensor(0.2000)
    """

    def __init__(
        self,
        name: str,
        weight: float = 1.0,
        waveform_weight: float = 1.0,
        win_lengths: Sequence[int] = (4096, 2048, 1024, 512, 256),
        n_fft: int = 2048,
        hop_lengths: int | Sequence[int] = 147,
        grad_scale: float = 1.0,
        *,
        stem_dimension: int | Sequence[int] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(name, weight, grad_scale, reduction)
        validation.stems(stem_dimension)
        self.waveform_weight = waveform_weight
        self.win_lengths = _copied(win_lengths)
        self.n_fft = n_fft
        self.hop_lengths = _copied(hop_lengths)
        self.stem_dimension = _copied(stem_dimension)
        self._plan()

    def _plan(self) -> ComplexPlan:
        return functional.complex_stft_plan(
            weight=self.weight,
            waveform_weight=self.waveform_weight,
            win_lengths=self.win_lengths,
            n_fft=self.n_fft,
            hop_lengths=self.hop_lengths,
        )

    def forward(
        self, estimates: Tensor, actuals: Tensor, *, return_components: bool = False
    ) -> Output:
        call = self._call(estimates, actuals, return_components).select(self.stem_dimension)
        return call.result(*functional.complex_stft_loss(call, self._plan()))
