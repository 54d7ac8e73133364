"""A small band-split network that separates by masking the mixture's spectrogram."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BandSplitSeparator(nn.Module):
    """Estimate every stem of a mixture with one complex mask per stem, channel and frequency bin.

    The spectrogram is cut into equal bands, each band becomes a vector per frame, and recurrent
    layers pass information along time and across bands in turn: the plan of the band-split RNNs
    for which the L1SNR losses were made, at a size that two CPU cores train in a minute.
    """

    window: Tensor

    def __init__(
        self,
        sources: int,
        channels: int,
        *,
        width: int = 48,
        blocks: int = 2,
        bands: int = 32,
        n_fft: int = 1024,
    ) -> None:
        super().__init__()
        self.sources, self.channels, self.bands, self.n_fft = sources, channels, bands, n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        bins = n_fft // 2 // bands  # per band; the Nyquist bin is left out
        # Grouped 1x1 convolutions are one linear layer per band, all run at once.
        self.split = nn.Conv1d(bands * 3 * channels * bins, bands * width, 1, groups=bands)
        self.blocks = nn.ModuleList(_DualPathBlock(width) for _ in range(blocks))
        self.masks = nn.Conv1d(
            bands * width, bands * 2 * sources * channels * bins, 1, groups=bands
        )
        # Masks start at 1 / sources, an even share of the mixture, as zeros are added to it.
        for parameter in self.masks.parameters():
            nn.init.zeros_(parameter)

    def forward(self, mixture: Tensor) -> Tensor:
        """Map a mixture (batch, channels, samples) to stems (batch, sources, channels, samples)."""
        batch, channels, samples = mixture.shape
        spectrum = torch.stft(
            mixture.flatten(0, 1), self.n_fft, window=self.window, return_complex=True
        ).unflatten(0, (batch, channels))
        frames = spectrum.shape[-1]

        x = self.split(self._features(spectrum))
        x = x.unflatten(1, (self.bands, -1)).permute(0, 1, 3, 2)  # batch, bands, frames, width
        for block in self.blocks:
            x = block(x)
        x = self.masks(x.permute(0, 1, 3, 2).flatten(1, 2))

        x = x.float().reshape(batch, self.bands, 2, self.sources, channels, -1, frames)
        x = x.permute(0, 3, 4, 1, 5, 6, 2).flatten(3, 4).contiguous()  # ..., bins, frames, re/im
        masks = torch.view_as_complex(x) + 1 / self.sources
        stems = F.pad(masks, (0, 0, 0, 1)) * spectrum.unsqueeze(1)
        return torch.istft(
            stems.flatten(0, 2), self.n_fft, window=self.window, length=samples
        ).unflatten(0, (batch, self.sources, channels))

    def _features(self, spectrum: Tensor) -> Tensor:
        """Compress each bin to a log magnitude and a unit phase, independent of the level."""
        spectrum = spectrum[:, :, :-1]  # batch, channels, bins, frames
        magnitude = spectrum.abs()
        level = magnitude.mean(dim=(1, 2, 3), keepdim=True) + 1e-8
        log_magnitude = torch.log10(magnitude / level + 1e-3)
        phase = torch.view_as_real(spectrum / (magnitude + 1e-3 * level))
        features = torch.cat([log_magnitude.unsqueeze(-1), phase], dim=-1)
        features = features.unflatten(2, (self.bands, -1)).permute(0, 2, 1, 3, 5, 4)
        return features.flatten(1, 4)


class _DualPathBlock(nn.Module):
    """Let every band see its past and future, then every frame its other bands."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time = _ResidualGRU(width)
        self.band = _ResidualGRU(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.time(x)
        return self.band(x.transpose(1, 2)).transpose(1, 2)


class _ResidualGRU(nn.Module):
    """Add a two-way GRU over the last but one axis of (batch, others, sequence, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.project = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.gru(self.norm(x).flatten(0, 1))
        return x + self.project(hidden).unflatten(0, x.shape[:2])
