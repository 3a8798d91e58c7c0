"""Sounds: how they are decoded, brought to a rate, a length and a loudness, also inside of an exported graph."""

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
"""Endings of sounds that libsndfile reads, in small letters; ``.m4a`` and ``.wma`` it does not."""
SLOWEST, FASTEST = 1000, 400_000
"""Samples per second that a sound may have: with other rates resampling would take all memory, or forever."""
LONGEST = 2**28
"""Samples of all channels that a file may have, 1 GB once decoded: 4 hours at 16 kHz."""


class _Content(io.BytesIO):
    """The bytes of a file; going to a place in front of them fails as in a file, which libsndfile understands."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return -1


@dataclass(frozen=True)
class AudioPreprocessing(Modality):
    """How a sound becomes the network's input; the part of the weights that is not a tensor.

    Attributes:
        sample_rate: Samples per second that the network takes.
        seconds: Every clip is cut or padded with silence to this length; ``None`` keeps the lengths and masks the
            padding of a batch.
        shortest: Clips with fewer samples are padded with silence to this many, in samples at `sample_rate`.
        normalise: Whether each clip is brought to mean 0 and variance 1, over its real samples.
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
            A tensor ``(samples,)`` where the length is fixed, else ``audio`` and ``mask`` of that length.
        """
        if self.normalise and len(clip):
            # As transformers' Wav2Vec2FeatureExtractor does it; 1e-7 keeps silence finite.
            clip = (clip - clip.mean()) / torch.sqrt(clip.var(correction=0) + 1e-7)
        if self.seconds is not None:
            length = max(round(self.seconds * self.sample_rate), self.shortest)
            return functional.pad(clip[:length], (0, max(0, length - len(clip))))
        clip = functional.pad(clip, (0, max(0, self.shortest - len(clip))))
        return {"audio": clip, "mask": torch.ones(len(clip), dtype=torch.bool)}

    @property
    def raw(self) -> RawSounds:
        """Sound files and waveforms."""
        return RawSounds(self.sample_rate)

    def prepare(self, sample: Tensor) -> Value:
        """Prepares a waveform ``(samples,)``; see `__call__`."""
        return self(sample)

    def handed(self, sample: Tensor) -> NDArray[Any]:
        """Returns a waveform as an array."""
        return sample.numpy()

    def front(self) -> Waveform:
        """Returns what brings waveforms to length and loudness."""
        return Waveform(self)

    def example(self) -> Value:
        """Returns an input of one sample (one second where the length is free), without a batch dimension."""
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

    def value(self, given: Any) -> Tensor:
        """Takes an array ``(samples,)`` at the network's rate."""
        clip = torch.as_tensor(given, dtype=torch.float32)
        if clip.ndim != 1 or not len(clip):
            raise ValueError(f"a sound must be an array (samples,) but got {tuple(clip.shape)}")
        return clip


def decode(content: bytes, rate: int) -> tuple[Tensor, int]:
    """Decodes a sound file (WAV, FLAC, OGG, MP3 and what else libsndfile reads), mixed to mono.

    Args:
        content: The file.
        rate: Wanted samples per second. Resampling is polyphase, with a filter against aliasing.

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


def resample(clip: np.ndarray, own: int, wanted: int) -> np.ndarray:
    """Resamples a waveform ``(samples,)``; as it is where the rates are equal."""
    if own == wanted:
        return clip
    common = math.gcd(own, wanted)
    return np.asarray(resample_poly(clip, wanted // common, own // common), dtype=np.float32)


def _soundfile() -> ModuleType:
    try:
        import soundfile
    except ModuleNotFoundError as error:
        if error.name != "soundfile":
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
        """Turns float32 ``(N, samples)`` at the network's rate, all real, into the network's input."""
        wanted = self.preprocessing
        if wanted.normalise:
            spread, mean = torch.var_mean(audio, dim=1, keepdim=True, correction=0)
            audio = (audio - mean) / torch.sqrt(spread + 1e-7)
        if wanted.seconds is not None:
            length = max(round(wanted.seconds * wanted.sample_rate), wanted.shortest)
            # Silence first, so that what is cut out has a size that is known.
            return functional.pad(audio, (0, length)).narrow(1, 0, length)
        lacking: Any = torch.sym_max(wanted.shortest - audio.shape[1], 0)
        # Without a mask: all is real, which a graph could not read off its values.
        return functional.pad(audio, (0, lacking))

    def arrays(self, samples: Sequence[Any]) -> tuple[NDArray[Any], ...]:
        """Stacks waveforms of one length."""
        return (np.stack([clip.numpy() for clip in samples]),)

    def example(self) -> tuple[Tensor, ...]:
        """Returns two sounds of half a second, not silent: a spectrogram of nothing is a special case."""
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(2, self.preprocessing.sample_rate // 2, generator=generator),)

    def about(self) -> dict[str, str]:
        """Returns the rate, and what is done to a sound."""
        wanted = self.preprocessing
        return {"rate": str(wanted.sample_rate), "preprocessing": json.dumps(wanted.description())}
