"""Fog, snow and moving cameras over images, with the strengths of ImageNet-C (Hendrycks and Dietterich 2019).

After the authors' code (github.com/hendrycks/robustness, Apache-2.0), in torch alone: shifted and enlarged images are
sampled by torch, and random numbers come from its global generator. Frost is not here: it is six photos of the authors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def fog(image: Tensor, strength: tuple[float, float]) -> Tensor:
    """Adds a cloud: how much of it, and how smooth it is.

    Args:
        image: In [0, 1], ``(C, H, W)``.
        strength: Its density, and how much rougher its large shapes are than its small ones.
    """
    density, decay = strength
    brightest = image.max()
    cloud = plasma(max(image.shape[1:]), decay)[: image.shape[1], : image.shape[2]]
    return (image + density * cloud) * brightest / (brightest + density)


def snow(image: Tensor, strength: tuple[float, float, float, float, int, int, float]) -> Tensor:
    """Lets flakes fall over a whitened image.

    Args:
        image: In [0, 1], ``(C, H, W)``.
        strength: Mean and spread of the noise that flakes are cut from, how much it is enlarged, the least value of a
            flake, reach and spread of its fall in pixels, and the share of the image that is not whitened.
    """
    mean, spread, factor, least, reach, blur, shown = strength
    height, width = image.shape[1:]
    flakes = enlarged(mean + spread * torch.randn(1, height, width), factor)
    flakes = torch.where(flakes < least, 0.0, flakes).clamp(0, 1)
    flakes = _moved(flakes, reach, blur, -135 + 90 * float(torch.rand(())))
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None] if len(image) == 3 else torch.ones(1)
    grey = (image * weights).sum(dim=0, keepdim=True)
    white = shown * image + (1 - shown) * torch.maximum(image, grey * 1.5 + 0.5)
    return white + flakes + flakes.flip(1, 2)


def motion_blur(image: Tensor, strength: tuple[int, int]) -> Tensor:
    """Moves the camera in a random direction, within 45 degrees of level: reach and spread in pixels."""
    return _moved(image, *strength, -45 + 90 * float(torch.rand(())))


def zoom_blur(image: Tensor, factors: tuple[float, float]) -> Tensor:
    """Moves the camera towards the scene: the mean of enlargements from 1 to below `end`, in steps; both are given."""
    end, step = factors
    count = math.ceil((end - 1) / step - 1e-9)
    total = image.clone()
    for number in range(count):
        total += enlarged(image, 1 + number * step)
    return total / (count + 1)


def enlarged(image: Tensor, factor: float) -> Tensor:
    """The middle of an image ``(C, H, W)``, enlarged to its size."""
    height, width = image.shape[1:]
    inner_h, inner_w = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    inner = image[None, :, top : top + inner_h, left : left + inner_w]
    return functional.interpolate(inner, size=(height, width), mode="bilinear", align_corners=True)[0]


def plasma(size: int, decay: float) -> Tensor:
    """A cloud by the diamond-square algorithm.

    Args:
        size: Least side in pixels.
        decay: What the randomness is divided by from one scale to the next.

    Returns:
        Values in [0, 1], square, its side a power of two.
    """
    side = 2 ** math.ceil(math.log2(max(size, 2)))
    cloud = torch.zeros(side, side)
    step, wibble = side, 100.0

    def mean(corners: Tensor) -> Tensor:
        return corners / 4 + wibble * wibble * (2 * torch.rand(corners.shape) - 1)

    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        rows = corners + corners.roll(-1, 0)
        cloud[half::step, half::step] = mean(rows + rows.roll(-1, 1))
        centres, corners = cloud[half::step, half::step], cloud[::step, ::step]
        cloud[::step, half::step] = mean(centres + centres.roll(1, 0) + corners + corners.roll(-1, 1))
        cloud[half::step, ::step] = mean(centres + centres.roll(1, 1) + corners + corners.roll(-1, 0))
        step, wibble = half, wibble / decay
    cloud -= cloud.min()
    return cloud / cloud.max()


def _moved(image: Tensor, reach: int, spread: float, angle: float) -> Tensor:
    """The weighted mean of an image ``(C, H, W)`` and its copies shifted in one direction; its border is repeated.

    Args:
        image: The image.
        reach: Radius of the kernel in pixels: the furthest copy is shifted by twice as much.
        spread: Standard deviation of the weights in pixels.
        angle: Direction in degrees.
    """
    height, width = image.shape[1:]
    down, across = torch.arange(height), torch.arange(width)
    direction = math.radians(angle)
    total, weights = torch.zeros_like(image), 0.0
    for number in range(2 * reach + 1):
        weight = math.exp(-(number**2) / (2 * spread**2))
        if weight < 1e-4:
            break
        rows = (down - round(number * math.sin(direction))).clamp(0, height - 1)
        columns = (across - round(number * math.cos(direction))).clamp(0, width - 1)
        total += weight * image[:, rows][:, :, columns]
        weights += weight
    return total / weights
