"""Sounds: decoding, resampling, length and normalisation, also inside an exported graph."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch import Tensor
from torch.nn import functional

from tlresearch.base.errors import MissingExtraError
from tlresearch.modality.base import Front, Modality, RawInput
from tlresearch.modality.values import Value

EXTENSIONS = (
    *(".wav", ".wave", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aiff", ".aif", ".aifc", ".au", ".snd", ".caf"),
)
"""Endings of sound files that libsndfile reads, in lower case. It reads neither ``.m4a`` nor ``.wma``."""
SLOWEST, FASTEST = 1000, 400_000
"""Samples per second that a file may have: with other rates resampling would take all memory, or for ever."""
LONGEST = 2**28
"""Samples that a file may have over all channels: 1 GB once decoded, 4 hours at 16 kHz in mono."""


class _Content(io.BytesIO):
    """The bytes of a file. Seeking to a negative position returns -1, as libsndfile expects; BytesIO would raise."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return -1


@dataclass(frozen=True)
class AudioPreprocessing(Modality):
    """How a sound becomes the network's input. It belongs to the weights, like their tensors.

    Attributes:
        sample_rate: Samples per second that the network takes.
        seconds: Length to which every clip is cut or padded with silence; ``None`` keeps the lengths, and masks the
            padding of a batch.
        shortest: Number of samples, at `sample_rate`, to which shorter clips are padded with silence.
        normalise: Whether to bring the samples of each clip, without padding, to mean 0 and variance 1.
    """

    sample = "sound"
    packages = ("transformers", "soundfile", "scipy")

    sample_rate: int = 16_000
    seconds: float | None = None
    shortest: int = 1
    normalise: bool = False

    def __call__(self, clip: Tensor) -> Value:
        """Turns a waveform ``(samples,)`` into the network's input.

        Returns:
            A tensor ``(samples,)`` if the length is fixed, else ``audio`` and ``mask`` of the clip's length.
        """
        if self.normalise and len(clip):
            # As transformers' Wav2Vec2FeatureExtractor does; 1e-7 prevents a division by zero for silence.
            clip = (clip - clip.mean()) / torch.sqrt(clip.var(correction=0) + 1e-7)
        if self.seconds is not None:
            length = max(round(self.seconds * self.sample_rate), self.shortest)
            return functional.pad(clip[:length], (0, max(0, length - len(clip))))
        clip = functional.pad(clip, (0, max(0, self.shortest - len(clip))))
        return {"audio": clip, "mask": torch.ones(len(clip), dtype=torch.bool)}

    @property
    def raw(self) -> RawSounds:
        """Raw samples: sound files and waveforms."""
        return RawSounds(self.sample_rate)

    def prepare(self, sample: Tensor) -> Value:
        """Prepares a waveform ``(samples,)``; see `__call__`."""
        return self(sample)

    def handed(self, sample: Tensor) -> NDArray[Any]:
        """Returns a waveform as an array."""
        return sample.numpy()

    def front(self) -> Waveform:
        """Returns the module that fixes the length of waveforms and normalises them."""
        return Waveform(self)

    def example(self) -> Value:
        """Returns the input of one sample (one second if the length is free), without a batch dimension."""
        return self(torch.zeros(round((self.seconds or 1.0) * self.sample_rate)))


class RawSounds(RawInput):
    """Sounds; a sample is a waveform float32 ``(samples,)`` in -1 to 1 at the network's rate.

    Args:
        rate: Samples per second that the network takes.
    """

    name, column, suffixes, dims = "sound", "audio", EXTENSIONS, (1,)

    def __init__(self, rate: int) -> None:
        self.rate = rate

    def decode(self, content: bytes) -> Tensor:
        """Decodes a sound file, mixed to mono and resampled."""
        return decode(content, self.rate)[0]

    def value(self, array: Any) -> Tensor:
        """Converts an array ``(samples,)`` at the network's rate."""
        clip = torch.as_tensor(array, dtype=torch.float32)
        if clip.ndim != 1 or not len(clip):
            raise ValueError(f"a sound must be an array (samples,) but got {tuple(clip.shape)}")
        return clip


def decode(content: bytes, rate: int) -> tuple[Tensor, int]:
    """Decodes a sound file (WAV, FLAC, OGG, MP3 and all others that libsndfile reads), mixed to mono.

    Args:
        content: The bytes of the file.
        rate: Samples per second of the result. Resampling is polyphase, with a filter against aliasing.

    Returns:
        The waveform float32 ``(samples,)`` in -1 to 1, and the file's own samples per second.

    Raises:
        ValueError: If it cannot be decoded or holds no samples; the text says why.
        MissingExtraError: If soundfile is not installed.
    """
    soundfile = _soundfile()
    if not content:
        raise ValueError("the file is empty (0 bytes)")
    try:
        with soundfile.SoundFile(_Content(content)) as file:
            own, frames, channels = file.samplerate, file.frames, file.channels
            # The header is checked before anything is decoded: a damaged one may announce any number.
            if not SLOWEST <= own <= FASTEST:
                raise ValueError(f"it says {own} samples per second, but {SLOWEST} to {FASTEST} can be read")
            if frames * channels > LONGEST:
                raise ValueError(f"it says that it has {frames} samples in {channels} channels; cut it into clips")
            clip = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"not a sound file, or a damaged one ({error.error_string.rstrip('.')})") from None
    if not len(clip):
        raise ValueError("it holds no samples")
    mono = clip.mean(axis=1)
    if not np.isfinite(mono).all():
        raise ValueError("it holds samples that are not numbers")
    return torch.from_numpy(resample(mono, own, rate)), int(own)


def resample(clip: np.ndarray, own: int, rate: int) -> np.ndarray:
    """Resamples a waveform ``(samples,)`` from `own` to `rate` samples per second."""
    if own == rate:
        return clip
    common = math.gcd(own, rate)
    return np.asarray(resample_poly(clip, rate // common, own // common), dtype=np.float32)


def _soundfile() -> ModuleType:
    try:
        import soundfile
    except ModuleNotFoundError as error:
        if error.name != "soundfile":  # soundfile is installed, and something that it needs is not
            raise
        raise MissingExtraError("soundfile", "speech") from None
    module: ModuleType = soundfile
    return module


class Waveform(Front):
    """Prepares waveforms as `AudioPreprocessing`.

    Args:
        preprocessing: Length and normalisation.
    """

    inputs: Mapping[str, str] = {
        "audio": "float32 (N, samples) in -1 to 1, mono, at the rate of the metadata (rate); all of one length"
    }
    inside = "length, normalisation, spectrogram, {network}; decoding, mono and resampling are outside"

    def __init__(self, preprocessing: AudioPreprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, audio: Tensor) -> Tensor:
        """Turns float32 ``(N, samples)`` at the network's rate, without padding, into the network's input."""
        preprocessing = self.preprocessing
        if preprocessing.normalise:
            variance, mean = torch.var_mean(audio, dim=1, keepdim=True, correction=0)
            audio = (audio - mean) / torch.sqrt(variance + 1e-7)
        if preprocessing.seconds is not None:
            length = max(round(preprocessing.seconds * preprocessing.sample_rate), preprocessing.shortest)
            # Pad by the whole length and then cut: a traced graph cannot choose between padding and cutting.
            return functional.pad(audio, (0, length)).narrow(1, 0, length)
        lacking: Any = torch.sym_max(preprocessing.shortest - audio.shape[1], 0)
        # Without a mask: all samples are real, and a traced graph could not tell from the mask's values.
        return functional.pad(audio, (0, lacking))

    def arrays(self, samples: Sequence[Any]) -> tuple[NDArray[Any], ...]:
        """Stacks waveforms of one length."""
        return (np.stack([clip.numpy() for clip in samples]),)

    def example(self) -> tuple[Tensor, ...]:
        """Returns two sounds of half a second, not silent: the spectrogram of silence is a special case."""
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(2, self.preprocessing.sample_rate // 2, generator=generator),)

    def metadata(self) -> dict[str, str]:
        """Returns the rate and the preprocessing."""
        preprocessing = self.preprocessing
        return {"rate": str(preprocessing.sample_rate), "preprocessing": json.dumps(preprocessing.description())}
