"""What is exported: preprocessing, network and answer in one module, in operations that the formats know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tlresearch.base.errors import UserError
from tlresearch.data.audio_decoding import AudioPreprocessing
from tlresearch.data.base import Preprocessing

_MODES = ("bilinear", "bicubic")

# Of whole numbers and of symbols that stand for them; torch annotates a union that fits nowhere.
_least: Any = torch.sym_min
_most: Any = torch.sym_max


class Frame(nn.Module):
    """Frames and normalises images as `tlresearch.data.transforms.Evaluation`, with sizes that stay symbols.

    The sizes are computed in whole numbers from those of the input, so that a traced graph takes any image. The result
    equals torchvision's functions on uint8 tensors, which round the resized image to whole levels.

    Args:
        preprocessing: Sizes, statistics, interpolation and fit.

    Raises:
        UserError: If images are interpolated in a way that the graph has no operations for.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        if preprocessing.interpolation not in _MODES:
            raise UserError(
                f"export: images are resized with {preprocessing.interpolation} interpolation, but an exported model "
                f"has {' or '.join(_MODES)} only"
            )
        self.resize = 0 if preprocessing.resize is None else preprocessing.resize
        self.crop = 0 if preprocessing.crop is None else preprocessing.crop
        self.fit = "crop" if self.crop == 0 else str(preprocessing.fit)
        self.mode = preprocessing.interpolation
        self.antialias = preprocessing.antialias
        self.mean: Tensor
        self.std: Tensor
        self.fill: Tensor
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, -1, 1, 1))
        self.register_buffer("fill", (255 * self.mean).round())

    def forward(self, images: Tensor) -> Tensor:
        """Turns uint8 ``(N, H, W, C)`` into the network's input ``(N, C, crop, crop)``, float32."""
        x = images.permute(0, 3, 1, 2).float()
        if self.fit != "crop":
            x = self._fitted(x)
        else:
            if self.resize > 0:
                short = _least(x.shape[2], x.shape[3])
                x = self._resized(x, self.resize * x.shape[2] // short, self.resize * x.shape[3] // short)
            if self.crop > 0:
                if self.resize == 0:
                    x = self._padded(x)
                x = x.narrow(2, self._start(x.shape[2]), self.crop).narrow(3, self._start(x.shape[3]), self.crop)
        return (x / 255.0 - self.mean) / self.std

    def unframed(self, scores: Tensor, images: Tensor) -> Tensor:
        """Brings scores ``(N, classes, crop, crop)`` back to the size of their images, if framing kept all of these."""
        if self.fit == "crop":
            return scores
        height, width = images.shape[1], images.shape[2]
        if self.fit == "letterbox":
            scores = scores.narrow(2, 0, self._inner(height, width)).narrow(3, 0, self._inner(width, height))
        return functional.interpolate(scores, size=[height, width], mode="bilinear", align_corners=False)

    def _fitted(self, x: Tensor) -> Tensor:
        if self.fit == "stretch":
            return self._resized(x, self.crop, self.crop)
        height, width = self._inner(x.shape[2], x.shape[3]), self._inner(x.shape[3], x.shape[2])
        x = self._resized(x, height, width)
        # Filled up with the mean colour; padding knows one value for all channels.
        return functional.pad(x - self.fill, [0, self.crop - width, 0, self.crop - height]) + self.fill

    def _inner(self, side: int, other: int) -> int:
        """A side within a letterbox: scaled with the longer one, halves to the even number, at least one pixel."""
        long: int = _most(side, other)
        whole = side * self.crop // long
        rest = 2 * (side * self.crop - whole * long) - long  # above 0: round up; 0: to the even number
        up = _least(_most(rest, 0), 1)
        half = 1 - _least(_most(rest, -rest), 1)
        inner: int = _most(whole + up + half * (whole % 2), 1)
        return inner

    def _resized(self, x: Tensor, height: int, width: int) -> Tensor:
        x = functional.interpolate(
            x,
            size=[height, width],
            mode=self.mode,
            antialias=self.antialias,
            align_corners=False,
        )
        if self.mode == "bicubic":
            x = x.clamp(0.0, 255.0)  # it overshoots
        return x.round()

    def _padded(self, x: Tensor) -> Tensor:
        """Fills up images that are smaller than the crop, black, as torchvision's `center_crop`."""
        lacks_h, lacks_w = _most(self.crop - x.shape[2], 0), _most(self.crop - x.shape[3], 0)
        sides = [lacks_w // 2, (lacks_w + 1) // 2, lacks_h // 2, (lacks_h + 1) // 2]
        return functional.pad(x, sides)

    def _start(self, size: int) -> int:
        """Half of what is too much, halves to the even number, as Python's `round` and so torchvision."""
        half = (size - self.crop) // 2
        return half + ((size - self.crop) % 2) * (half % 2)


class Tokens(nn.Module):
    """Token numbers with their mask, as a backbone over text takes them."""

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Puts ``ids`` and ``mask``, both ``(N, length)``, together."""
        return {"ids": ids, "mask": mask}


class Waveform(nn.Module):
    """Prepares waveforms as `tlresearch.data.audio_decoding.AudioPreprocessing`.

    Args:
        preprocessing: Length and normalisation.
    """

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
        lacking: int = _most(wanted.shortest - audio.shape[1], 0)
        # Without a mask: all is real, which a graph could not read off its values.
        return functional.pad(audio, (0, lacking))


class Shipped(nn.Module):
    """What is exported: preprocessing, network and answer in one module.

    Args:
        front: Turns arrays into the network's input.
        network: Backbone and head; gives logits ``(N, classes)`` or ``(N, classes, height, width)``.
        multilabel: Labels have independent probabilities.
        dtype: Number format of the network; what is in front and behind stays float32.
    """

    def __init__(
        self, front: nn.Module, network: nn.Module, multilabel: bool, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.front = front
        self.network = network.to(dtype)
        self.multilabel = multilabel
        self.dtype = dtype
        self.eval()

    def forward(self, *arrays: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``probabilities``, float32, classes in dimension 1, and the ``answer``: the likeliest, int64.

        Of several labels the answer is bool, of the probabilities' shape: those above one half.
        """
        value = self.front(*arrays)
        if isinstance(value, dict):
            value = {name: t.to(self.dtype) if t.is_floating_point() else t for name, t in value.items()}
        else:
            value = value.to(self.dtype)
        return self.answer(self.network(value).float())

    def answer(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Makes probabilities and answer of logits."""
        if self.multilabel:
            probabilities = scores.sigmoid()
            return probabilities, probabilities > 0.5
        probabilities = scores.softmax(dim=1)
        return probabilities, probabilities.argmax(dim=1)


class ShippedImages(Shipped):
    """`Shipped` over images, whose forward can be scripted, and whose maps of scores get the size of their images."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """See `Shipped`; takes uint8 ``(N, height, width, channels)``."""
        scores = self.network(self.front(images).to(self.dtype)).float()
        if scores.dim() == 4:
            scores = self.front.unframed(scores, images)  # type: ignore[operator]
        return self.answer(scores)
