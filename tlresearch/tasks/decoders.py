"""Heads that turn feature maps into a map of class scores at the input size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

from tlresearch.backbones.pyramid import FeatureMap

Maps = dict[str, Tensor]


class SegmentationHead(nn.Module):
    """A decoder, whose scores are brought to the input size.

    Args:
        decoder: Takes the maps by name and gives scores ``(batch, classes, H, W)`` of any size.
        size: Height and width of the result in pixels.
        dropout: Probability of dropping whole channels in front of the decoder's last layer; see `Unet` and `Fpn`.
    """

    def __init__(self, decoder: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.decoder = decoder
        self.size = size

    def forward(self, maps: Maps) -> Tensor:
        """Returns scores ``(batch, classes, height, width)``."""
        scores: Tensor = self.decoder(maps)
        if tuple(scores.shape[-2:]) == self.size:
            return scores
        return functional.interpolate(scores, self.size, mode="bilinear", align_corners=False)


class Unet(nn.Module):
    """The expanding path of a U-Net (Ronneberger et al. 2015) over the maps of any encoder.

    From the coarsest map on, the value is enlarged to the next finer map, joined with it, and goes through two
    convolutions with batch norm; nearest-neighbour enlargement, so that maps may have any sizes.

    Args:
        maps: The encoder's maps, finest first.
        classes: Number of classes.
        width: Channels at the finest map; each coarser one has twice as many, up to 16 times.
        dropout: Probability of dropping whole channels in front of the last layer.
    """

    def __init__(self, maps: Sequence[FeatureMap], classes: int, *, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.names = [found.name for found in maps]
        blocks = []
        channels = maps[-1].channels
        for level in reversed(range(len(maps) - 1)):
            wide = width * 2 ** min(level, 4)
            blocks.append(
                nn.Sequential(
                    Conv2dNormActivation(channels + maps[level].channels, wide, 3), Conv2dNormActivation(wide, wide, 3)
                )
            )
            channels = wide
        self.blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, classes, 1))

    def forward(self, maps: Maps) -> Tensor:
        """Returns scores at the size of the finest map."""
        x = maps[self.names[-1]]
        for block, name in zip(self.blocks, reversed(self.names[:-1]), strict=True):
            skip = maps[name]
            x = block(torch.cat([functional.interpolate(x, skip.shape[-2:], mode="nearest"), skip], dim=1))
        scores: Tensor = self.out(x)
        return scores


class Fpn(nn.Module):
    """A feature pyramid whose levels are enlarged to the finest and added (Kirillov et al. 2019).

    Args:
        maps: The encoder's maps, finest first.
        classes: Number of classes.
        width: Channels of every level.
        dropout: Probability of dropping whole channels in front of the last layer.
    """

    def __init__(self, maps: Sequence[FeatureMap], classes: int, *, width: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        self.names = [found.name for found in maps]
        self.pyramid = FeaturePyramidNetwork([found.channels for found in maps], width)
        self.levels = nn.ModuleList([Conv2dNormActivation(width, width, 3) for _ in maps])
        self.out = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1))

    def forward(self, maps: Maps) -> Tensor:
        """Returns scores at the size of the finest map."""
        pyramid = self.pyramid({name: maps[name] for name in self.names})
        size = pyramid[self.names[0]].shape[-2:]
        levels = [level(pyramid[name]) for level, name in zip(self.levels, self.names, strict=True)]
        enlarged = [functional.interpolate(x, size, mode="bilinear", align_corners=False) for x in levels]
        scores: Tensor = self.out(torch.stack(enlarged).sum(dim=0))
        return scores


DECODERS: Mapping[str, Callable[..., nn.Module]] = {"unet": Unet, "fpn": Fpn}
