"""The loss inside BS-RoFormer and Mel-Band RoFormer as a module."""

from __future__ import annotations

from torch import Tensor

from .. import validation
from ..computation import Call, Components, complex_stft_loss
from ..kernels.complex_plan import ComplexPlan
from ..validation import NonNegative, Positive, Reduction, Size, SizeOrSizes, Sizes, Stems
from .base import Loss, settings


@settings
class MultiResolutionComplexSTFTLoss(Loss):
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

    weight: NonNegative  # not learnt
    waveform_weight: NonNegative
    win_lengths: Sizes
    n_fft: Size
    hop_lengths: SizeOrSizes
    stem_dimension: Stems

    def __init__(
        self,
        name: str,
        weight: NonNegative = 1.0,
        waveform_weight: NonNegative = 1.0,
        win_lengths: Sizes = (4096, 2048, 1024, 512, 256),
        n_fft: Size = 2048,
        hop_lengths: SizeOrSizes = 147,
        grad_scale: Positive = 1.0,
        *,
        stem_dimension: Stems = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            name,
            weight=weight,
            waveform_weight=waveform_weight,
            win_lengths=win_lengths,
            n_fft=n_fft,
            hop_lengths=hop_lengths,
            grad_scale=grad_scale,
            stem_dimension=stem_dimension,
            reduction=reduction,
        )
        self._plan()

    def _plan(self) -> ComplexPlan:
        resolutions = validation.complex_resolutions(self.win_lengths, self.n_fft, self.hop_lengths)
        return ComplexPlan(self.waveform_weight, self._inner_weight(), resolutions)

    def _compute(self, call: Call) -> tuple[Tensor, Components]:
        return complex_stft_loss(call.select(self.stem_dimension), self._plan())
