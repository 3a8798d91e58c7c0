"""Log-mel spectrograms of waveforms as a first stage, alone or in front of an image backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.errors import MissingExtraError, UserError
from tlresearch.modality.base import expect
from tlresearch.modality.image import Preprocessing
from tlresearch.modality.sound import AudioPreprocessing
from tlresearch.modality.values import Value

LOUDEST = 32_768.0
"""Waveforms in -1 to 1 are brought to the range of 16-bit samples, which the published front ends count in."""


def waveform(value: Value) -> tuple[Tensor, Tensor]:
    """Returns waveforms ``(batch, samples)`` and the real samples of each ``(batch,)``; all without a mask."""
    if isinstance(value, Tensor):
        return value, torch.full((value.shape[0],), value.shape[1], device=value.device)
    return value["audio"], value["mask"].sum(dim=1)


class LogMel(nn.Module):
    """Energy in mel bands, in decibels, at most 80 below the loudest of its clip.

    Args:
        rate: Samples per second.
        mels: Number of bands, on Slaney's scale and with its normalisation, as librosa has them.
        low: Lower end of the first band, in Hz.
        high: Upper end of the last band, in Hz.
        window: Length of the Hann window, in samples.
        hop: Samples from one frame to the next.
        size: Length of the Fourier transform.

    Raises:
        MissingExtraError: If transformers, which makes the filters, is not installed.
    """

    filters: Tensor
    window: Tensor

    def __init__(
        self,
        rate: int = 16_000,
        *,
        mels: int = 64,
        low: float = 20.0,
        high: float = 7600.0,
        window: int = 400,
        hop: int = 160,
        size: int = 512,
    ) -> None:
        super().__init__()
        if not 0 <= low < high <= rate / 2:
            raise UserError(f"log-mel: bands must lie between 0 and {rate / 2:g} Hz but got {low:g} to {high:g}")
        self.hop, self.size = hop, size
        self._words = f"{rate} Hz, {mels} bands {low:g}-{high:g} Hz, window {window}, hop {hop}, transform {size}"
        # Not in the state dict: they follow from the arguments.
        self.register_buffer("filters", _filters(rate, mels, low, high, size), persistent=False)
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    def extra_repr(self) -> str:
        """The arguments; stored activations depend on them."""
        return self._words

    def forward(self, audio: Tensor) -> Tensor:
        """Turns waveforms ``(batch, samples)`` in -1 to 1 into ``(batch, frames, mels)``.

        Frames begin every `hop` samples, the first with the first sample; the last ends within the clip.
        """
        short = self.size - audio.shape[1]
        audio = functional.pad(audio, (0, max(short, 0))) * LOUDEST
        spectrum = torch.stft(
            audio,
            self.size,
            hop_length=self.hop,
            win_length=len(self.window),
            window=self.window,
            center=False,
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()
        decibels = 10 * torch.log10((power.transpose(1, 2) @ self.filters).clamp(min=1e-10))
        return torch.maximum(decibels, decibels.amax(dim=(1, 2), keepdim=True) - 80)


class LogMelImage(nn.Module):
    """Spectrograms as images, each with mean 0 and variance 1, as image backbones are used to.

    Args:
        mel: The spectrogram.
        channels: Channels of the image, all the same.
        side: Side of the square image in pixels; ``None`` keeps bands x frames.
    """

    def __init__(self, mel: LogMel, channels: int, side: int | None) -> None:
        super().__init__()
        self.mel, self.channels, self.side = mel, channels, side

    def extra_repr(self) -> str:
        """What the image looks like; stored activations depend on it."""
        return f"{self.channels} channels, side {self.side}"

    def forward(self, value: Value) -> Tensor:
        """Turns waveforms into ``(batch, channels, mels, frames)``, low notes below; padding counts as silence."""
        image = self.mel(waveform(value)[0]).transpose(1, 2).flip(1)[:, None]
        spread, mean = torch.std_mean(image, dim=(2, 3), keepdim=True, correction=0)
        image = (image - mean) / (spread + 1e-5)
        if self.side is not None:
            image = functional.interpolate(image, size=(self.side, self.side), mode="bilinear", antialias=True)
        expanded: Tensor = image.expand(-1, self.channels, -1, -1)
        return expanded


def with_log_mel(
    backbone: StagedBackbone,
    *,
    seconds: float = 1.0,
    rate: int = 16_000,
    mels: int = 64,
    low: float = 20.0,
    high: float = 7600.0,
    window: int = 400,
    hop: int = 160,
    size: int = 512,
    side: int | None = None,
) -> StagedBackbone:
    """Puts a spectrogram as stage 0 in front of an image backbone.

    Args:
        backbone: The image backbone; its statistics of colours have no meaning here and are not used.
        seconds: Length every clip is cut or padded to, unless `data.seconds` says otherwise.
        rate: See `LogMel`; so for `mels`, `low`, `high`, `window`, `hop` and `size`.
        mels: See `LogMel`.
        low: See `LogMel`.
        high: See `LogMel`.
        window: See `LogMel`.
        hop: See `LogMel`.
        size: See `LogMel`.
        side: Side the image is resized to, in pixels; ``None`` keeps bands x frames, as convolutions can.

    Raises:
        UserError: If the backbone takes no images.
    """
    complaint = "backbone.name: log_mel/ goes in front of an image backbone, such as log_mel/torchvision/resnet18"
    images = expect(backbone.preprocessing, Preprocessing, UserError(complaint))
    mel = LogMel(rate, mels=mels, low=low, high=high, window=window, hop=hop, size=size)
    front = LogMelImage(mel, images.channels, side)
    return StagedBackbone(
        {"log_mel": front, **dict(backbone.named_stages())},
        out_features=backbone.out_features,
        preprocessing=AudioPreprocessing(rate, seconds=seconds, shortest=size),
        weights=backbone.weights,
    )


def _filters(rate: int, mels: int, low: float, high: float, size: int) -> Tensor:
    try:
        from transformers.audio_utils import mel_filter_bank
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "transformers":
            raise
        raise MissingExtraError("transformers", "speech") from None
    bank = mel_filter_bank(size // 2 + 1, mels, low, high, rate, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(bank).float()
