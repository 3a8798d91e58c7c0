"""A classifier with its preprocessing inside, in operations that export: from uint8 images of any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tlresearch.data.base import Preprocessing, TargetKind
from tlresearch.errors import UserError

_MODES = ("bilinear", "bicubic")


class Frame(nn.Module):
    """Resize, centre crop and normalise as `tlresearch.data.transforms.Evaluation`, with sizes that stay symbols.

    The sizes are computed in whole numbers from those of the input, so that a traced graph takes any image. The result
    equals torchvision's functions on uint8 tensors, which round the resized image to whole levels.

    Args:
        preprocessing: Sizes, statistics and interpolation of the network.

    Raises:
        UserError: If images are framed in a way that the graph has no operations for.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        if preprocessing.fit != "crop" or preprocessing.interpolation not in _MODES:
            raise UserError(
                f"export: images are prepared by '{preprocessing.fit}' with {preprocessing.interpolation} "
                f"interpolation, but an exported model can only resize ({' or '.join(_MODES)}) and cut the centre out"
            )
        self.resize = 0 if preprocessing.resize is None else preprocessing.resize
        self.crop = 0 if preprocessing.crop is None else preprocessing.crop
        self.mode = preprocessing.interpolation
        self.antialias = preprocessing.antialias
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Turns uint8 ``(N, H, W, C)`` into the network's input ``(N, C, crop, crop)``, float32."""
        x = images.permute(0, 3, 1, 2).float()
        if self.resize > 0:
            x = self._resized(x)
        if self.crop > 0:
            if self.resize == 0:
                x = self._padded(x)
            x = x.narrow(2, self._start(x.shape[2]), self.crop).narrow(3, self._start(x.shape[3]), self.crop)
        return (x / 255.0 - self.mean) / self.std

    def _resized(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        # A script knows `min` only, and an exported graph keeps symbols through `sym_min` only.
        # Asked in the very condition, so that a script leaves the other branch out.
        short = min(height, width) if torch.jit.is_scripting() else torch.sym_min(height, width)  # type: ignore[attr-defined]
        size = [self.resize * height // short, self.resize * width // short]
        x = functional.interpolate(
            x,
            size=size,  # type: ignore[arg-type]
            mode=self.mode,
            antialias=self.antialias,
            align_corners=False,
        )
        if self.mode == "bicubic":
            x = x.clamp(0.0, 255.0)  # it overshoots
        return x.round()

    def _padded(self, x: Tensor) -> Tensor:
        """Fills up images that are smaller than the crop, black, as torchvision's `center_crop`."""
        lacks_h, lacks_w = self._lacking(x.shape[2]), self._lacking(x.shape[3])
        sides = [lacks_w // 2, (lacks_w + 1) // 2, lacks_h // 2, (lacks_h + 1) // 2]
        return functional.pad(x, sides)

    def _lacking(self, size: int) -> int:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return max(self.crop - size, 0)
        return torch.sym_max(self.crop - size, 0)  # type: ignore[return-value]

    def _start(self, size: int) -> int:
        """Half of what is too much, halves to the even number, as Python's `round` and so torchvision."""
        half = (size - self.crop) // 2
        return half + ((size - self.crop) % 2) * (half % 2)


class Shipped(nn.Module):
    """What is exported: frame, network and probabilities in one module.

    Args:
        network: Backbone and head; takes ``(N, C, crop, crop)``, gives ``(N, classes)``.
        preprocessing: How images become its input.
        kind: Several labels have independent probabilities.
        dtype: Number format of the network; frame and probabilities stay float32.
    """

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, kind: TargetKind, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.frame = Frame(preprocessing)
        self.network = network.to(dtype)
        self.multilabel = kind == "multilabel"
        self.dtype = dtype
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Returns the probabilities ``(N, classes)``, float32, of uint8 images ``(N, H, W, C)``."""
        outputs: Tensor = self.network(self.frame(images).to(self.dtype)).float()
        return outputs.sigmoid() if self.multilabel else outputs.softmax(dim=1)
