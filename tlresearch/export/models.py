"""What of each task's model is exported: what it reads and answers, what is inside of a file and what stays outside."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.errors import UserError
from tlresearch.data.base import Data, Preprocessing, SampleKey, SplitName, TargetKind
from tlresearch.data.framing import framed_mask
from tlresearch.export.network import Frame, Shipped, ShippedImages, Tokens, Waveform
from tlresearch.export.tokenizing import portable, reader
from tlresearch.serving.audio import AudioPredictor, load_audio_predictor
from tlresearch.serving.base import ClassPredictor
from tlresearch.serving.classification import Predictor, load_predictor
from tlresearch.serving.dense import DensePredictor, load_dense_predictor
from tlresearch.serving.text import TextPredictor, load_text_predictor
from tlresearch.tasks.classification import Meters
from tlresearch.tasks.detectors import DetectionHead
from tlresearch.tasks.segmentation import PixelMeters

_NO_LOSS = torch.tensor(0.0)  # an exported model does not know the loss


class Exportable(ABC):
    """A trained model as it is exported: from arrays that anybody can make to probabilities and an answer.

    Attributes:
        reads: What a sample is: image, text or sound.
        inputs: Names of the arrays, and what they are.
        output: The probabilities, in words.
        answer: The answer, in words.
        inside: What the file does, in words.
        sides: Which dimensions of each array are free.
        network: Backbone and head.
        classes: Class names in the order of the probabilities.
        kind: What the targets are.
        most: Samples that are measured unless said otherwise; ``None`` for all.
    """

    reads: ClassVar[str]
    inputs: ClassVar[Mapping[str, str]]
    output: ClassVar[str] = "probabilities: float32 (N, classes)"
    answer: ClassVar[str] = "answer: int64 (N,), the number of the likeliest class; of several labels bool (N, classes)"
    inside: ClassVar[str]
    sides: ClassVar[Sequence[int]] = (0, 1)
    most: ClassVar[int | None] = None
    network: nn.Sequential
    classes: tuple[str, ...]
    kind: TargetKind

    @property
    def backbone(self) -> StagedBackbone:
        """The backbone."""
        backbone = self.network[0]
        assert isinstance(backbone, StagedBackbone)
        return backbone

    @abstractmethod
    def front(self) -> nn.Module:
        """Returns what turns the arrays into the network's input."""

    @abstractmethod
    def arrays(self, samples: Sequence[Any]) -> tuple[NDArray[Any], ...]:
        """Turns raw samples into arrays: what stays outside. They must be alike where a batch has to be."""

    @abstractmethod
    def original(self, sample: Any) -> NDArray[Any]:
        """Returns the probabilities ``(1, classes, ...)`` of a raw sample as the project serves the model."""

    @abstractmethod
    def example(self) -> tuple[Tensor, ...]:
        """Returns arrays of two samples, from which a graph is made."""

    @abstractmethod
    def about(self) -> dict[str, str]:
        """Returns what a reader needs beside the arrays, for the metadata."""

    def shipped(self, network: nn.Module, dtype: torch.dtype) -> Shipped:
        """Returns the module that is exported, over a copy of the network."""
        return Shipped(self.front(), network, self.kind == "multilabel", dtype)

    def score(
        self, found: Sequence[NDArray[Any]], data: Data, split: SplitName, rows: Sequence[int]
    ) -> dict[str, float]:
        """Measures probabilities of samples by the metrics of the task, without the split's name."""
        targets = torch.as_tensor(data.splits[split].targets)[list(rows)]
        meters = Meters(data.kind, len(data.classes), thorough=True)
        probabilities = torch.from_numpy(np.concatenate(list(found))).float()
        meters.update(probabilities, targets.int() if data.kind == "multilabel" else targets, _NO_LOSS)
        return {name: value for name, value in meters.finish().items() if name != "loss"}


class _Classes(Exportable):
    """What the models of classes have in common.

    Args:
        predictor: The classifier.
    """

    predictor: ClassPredictor

    def __init__(self, predictor: ClassPredictor) -> None:
        assert isinstance(predictor.network, nn.Sequential)
        self.predictor, self.network = predictor, predictor.network
        self.classes, self.kind = predictor.classes, predictor.kind

    def original(self, sample: Any) -> NDArray[Any]:
        """Returns the probabilities ``(1, classes)`` of a raw sample as the project serves the model."""
        found: NDArray[Any] = self.predictor.predict([sample])[1].numpy()
        return found


class _Images(Exportable):
    """What the models of images have in common: pixels go in."""

    reads = "image"
    inputs: ClassVar[Mapping[str, str]] = {
        "images": "uint8 (N, height, width, channels), of any size; all of one batch alike"
    }
    inside = "resize, centre crop, scale to [0, 1], normalise, network, probabilities; decoding files is outside"
    sides = (0, 1, 2)
    preprocessing: Preprocessing

    def front(self) -> nn.Module:
        """Returns the frame."""
        return Frame(self.preprocessing)

    def arrays(self, samples: Sequence[Any]) -> tuple[NDArray[Any], ...]:
        """Turns images uint8 ``(C, H, W)`` of one size into ``(N, H, W, C)``."""
        return (np.ascontiguousarray(torch.stack(list(samples)).permute(0, 2, 3, 1).numpy()),)

    def example(self) -> tuple[Tensor, ...]:
        """Returns two black images."""
        return (torch.zeros(2, 48, 64, self.preprocessing.channels, dtype=torch.uint8),)

    def about(self) -> dict[str, str]:
        """Returns sizes, statistics and interpolation."""
        return {"preprocessing": json.dumps(asdict(self.preprocessing))}

    def shipped(self, network: nn.Module, dtype: torch.dtype) -> Shipped:
        """Returns the module that is exported, over a copy of the network."""
        return ShippedImages(self.front(), network, self.kind == "multilabel", dtype)


class ImageClasses(_Images, _Classes):
    """Classes of images.

    Args:
        predictor: The classifier.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(predictor)
        self.preprocessing = predictor.preprocessing


class TextClasses(_Classes):
    """Classes of texts, in from token numbers; the tokenizer is in the metadata, for the library `tokenizers`."""

    reads = "text"
    inputs: ClassVar[Mapping[str, str]] = {
        "ids": "int64 (N, tokens)",
        "mask": "bool (N, tokens), true where there is a token",
    }
    inside = "network, probabilities; the tokenizer is in the metadata (tokenizer), for the library tokenizers"
    predictor: TextPredictor

    def front(self) -> nn.Module:
        """Returns what puts numbers and mask together."""
        return Tokens()

    def arrays(self, samples: Sequence[str]) -> tuple[NDArray[Any], ...]:
        """Turns texts into token numbers and mask by the tokenizer that is shipped, not by the project's."""
        return self._read(samples)

    def example(self) -> tuple[Tensor, ...]:
        """Returns two texts of seven tokens."""
        return torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.bool)

    def about(self) -> dict[str, str]:
        """Returns the tokenizer, and the token of a text that has none."""
        return {"tokenizer": self._tokenizer, "unknown": str(self._unknown)}

    @cached_property
    def _tokenizer(self) -> str:
        return portable(self.predictor.preprocessing, self.predictor.max_length)

    @cached_property
    def _unknown(self) -> int:
        return self.predictor.preprocessing.tokenizer.texts([""], self.predictor.max_length)[0][0]

    @cached_property
    def _read(self) -> Callable[[Sequence[str]], tuple[NDArray[Any], NDArray[Any]]]:
        return reader(self._tokenizer, self._unknown)


class SoundClasses(_Classes):
    """Classes of sounds, in from waveforms at the network's rate."""

    reads = "sound"
    inputs: ClassVar[Mapping[str, str]] = {
        "audio": "float32 (N, samples) in -1 to 1, mono, at the rate of the metadata (rate); all of one length"
    }
    inside = "length, normalisation, spectrogram, network, probabilities; decoding, mono and resampling are outside"
    predictor: AudioPredictor

    def front(self) -> nn.Module:
        """Returns what brings waveforms to length and loudness."""
        return Waveform(self.predictor.preprocessing)

    def arrays(self, samples: Sequence[Any]) -> tuple[NDArray[Any], ...]:
        """Stacks waveforms of one length."""
        return (np.stack([clip.numpy() for clip in samples]),)

    def example(self) -> tuple[Tensor, ...]:
        """Returns two sounds of half a second, not silent: a spectrogram of nothing is a special case."""
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(2, self.predictor.preprocessing.sample_rate // 2, generator=generator),)

    def about(self) -> dict[str, str]:
        """Returns the rate, and what is done to a sound."""
        wanted = self.predictor.preprocessing
        return {"rate": str(wanted.sample_rate), "preprocessing": json.dumps(asdict(wanted))}


class ImageMasks(_Images):
    """A class for every pixel of an image.

    Args:
        predictor: The segmentation.

    Raises:
        UserError: If it is a detection.
    """

    output = "probabilities: float32 (N, classes, height, width)"
    answer = "answer: int64 (N, height, width), the number of each pixel's class"
    inside = "resize to the network's size, normalise, network, resize to the image's size, probabilities, mask"
    most = 100  # whole maps of probabilities are compared, which take much memory
    kind = "masks"

    def __init__(self, predictor: DensePredictor) -> None:
        if isinstance(predictor.head, DetectionHead):
            raise UserError("export: a detection answers with as many boxes as it finds, which no graph here holds")
        self.predictor, self.classes = predictor, predictor.classes
        self.network = nn.Sequential(predictor.backbone, predictor.head)
        self.preprocessing = predictor.evaluation.preprocessing

    def original(self, sample: Tensor) -> NDArray[Any]:
        """Returns the probabilities ``(1, classes, H, W)`` of an image as the project serves the model."""
        found: NDArray[Any] = self.predictor.scores(sample).softmax(dim=1).numpy()
        return found

    def score(
        self, found: Sequence[NDArray[Any]], data: Data, split: SplitName, rows: Sequence[int]
    ) -> dict[str, float]:
        """Measures masks at the size of the network's input, as training does."""
        meters, part = PixelMeters(data.classes), data.splits[split]
        for row, probabilities in zip(rows, found, strict=True):
            mask = torch.from_numpy(probabilities.argmax(axis=1)[0]).to(torch.uint8)
            if self.preprocessing.fit != "crop":
                mask = framed_mask(mask, self.preprocessing)
            meters.update(mask[None].long(), part[SampleKey(row, 0)][1][None], _NO_LOSS)
        return {name: value for name, value in meters.finish().items() if name != "loss"}


EXPORTED: Mapping[str, tuple[Callable[[Path], Any], Callable[[Any], Exportable]]] = {
    "tlresearch.serving.classification.load_predictor": (load_predictor, ImageClasses),
    "tlresearch.serving.text.load_text_predictor": (load_text_predictor, TextClasses),
    "tlresearch.serving.audio.load_audio_predictor": (load_audio_predictor, SoundClasses),
    "tlresearch.serving.dense.load_dense_predictor": (load_dense_predictor, ImageMasks),
}
"""What reads a stored model and what exports it, by the name of what the stored model is read by."""
