"""Transforms that a config names: of torchvision, of albumentations, or any function of an image."""

from __future__ import annotations

import contextlib
import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from tlresearch.base.errors import DataError, one_line
from tlresearch.config.parts import identities_of, make
from tlresearch.config.schema import TransformConfig
from tlresearch.data.transforms import Augmentation

Step = Callable[..., Any]


class OwnTransforms:
    """Transforms one after another, on a uint8 image ``(C, H, W)`` alone or with a target in its plane.

    Those of albumentations that follow each other become one ``Compose``; each gets NumPy arrays, and draws from a
    generator that is seeded anew for each sample. All others get tensors, with a target torchvision's `tv_tensors`, and
    draw from the generators of torch, NumPy and Python, which are seeded too.

    Args:
        steps: The transforms by name.
        key: The config's key, for errors.
    """

    def __init__(self, steps: Sequence[tuple[str, Step]], key: str) -> None:
        self.key = key
        self.steps: list[tuple[str, Step]] = []
        for name, step in steps:
            previous = self.steps[-1][1] if self.steps else None
            if not _is_albumentations(step):
                self.steps.append((name, step))
            elif isinstance(previous, _Albumentations):
                self.steps[-1] = (f"{self.steps[-1][0]}, {name}", _Albumentations([*previous.transforms, step]))
            else:
                self.steps.append((name, _Albumentations([step])))

    def __call__(self, image: Tensor, *target: Any) -> Any:
        """Returns the image, and the target with it where there is one.

        Raises:
            DataError: If a transform raises, or gives anything but a uint8 image of the same channels.
        """
        given: tuple[Any, ...] = (image, *target)
        with _seeded_beside_torch():
            for name, step in self.steps:
                try:
                    moved = step(*given)
                except Exception as error:  # of whatever code
                    reason = f"{type(error).__name__}: {one_line(error, 300)}"
                    raise DataError(f"{self.key}: {name} does not take {_described(given)}: {reason}") from error
                given = self._checked(name, moved, given)
        return given if target else given[0]

    def _checked(self, name: str, moved: Any, before: tuple[Any, ...]) -> tuple[Any, ...]:
        parts = tuple(moved) if len(before) > 1 and isinstance(moved, (tuple, list)) else (moved,)
        image = parts[0]
        channels = before[0].shape[0]
        right = isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3
        if not right or image.shape[0] != channels:
            raise DataError(
                f"{self.key}: {name} must give an image uint8 ({channels}, height, width), but gave "
                f"{_described(parts[:1])}; it is scaled and normalised behind the transforms"
            )
        if len(parts) != len(before) or not all(isinstance(part, type(old)) for part, old in _pairs(parts, before)):
            raise DataError(
                f"{self.key}: {name} must give the image and its target, but gave {_described(parts)}: "
                f"it got {_described(before)}"
            )
        if any(
            isinstance(old, tv_tensors.BoundingBoxes) and len(part) != len(old) for part, old in _pairs(parts, before)
        ):
            raise DataError(f"{self.key}: {name} drops boxes without saying which; leave it out: tlresearch drops them")
        return parts


def _pairs(parts: Sequence[Any], before: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return iter(list(zip(parts, before, strict=False))[1:])


class _Albumentations:
    """A ``Compose`` of albumentations with tensors in and out.

    Args:
        transforms: Transforms of albumentations.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms = list(transforms)
        self._composed: dict[bool, Any] = {}

    def _compose(self, *, boxes: bool) -> Any:
        """The transforms as one; with boxes it keeps the row of each."""
        import albumentations

        if boxes not in self._composed:
            fields = albumentations.BboxParams(format="pascal_voc", label_fields=["rows"], clip=True) if boxes else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a transform moves no boxes
                self._composed[boxes] = albumentations.Compose(self.transforms, bbox_params=fields)
        return self._composed[boxes]

    def __call__(self, image: Tensor, *target: Any) -> Any:
        """Returns the image, with the target where there is one."""
        compose = self._compose(boxes=bool(target) and isinstance(target[0], tv_tensors.BoundingBoxes))
        compose.set_random_seed(int(torch.randint(2**31 - 1, (1,))))
        pixels = np.ascontiguousarray(image.as_subclass(Tensor).permute(1, 2, 0).numpy())
        if not target:
            return _image(compose(image=pixels)["image"])
        old = target[0]
        if isinstance(old, tv_tensors.BoundingBoxes):
            found = compose(image=pixels, bboxes=old.numpy(), rows=list(range(len(old))))
            moved = _image(found["image"])
            # What was dropped keeps its row, without area: whoever unwraps the boxes drops it with its class.
            boxes = torch.zeros_like(old.as_subclass(Tensor))
            for row, box in zip(found["rows"], found["bboxes"], strict=True):
                boxes[int(row)] = torch.as_tensor(np.asarray(box[:4]), dtype=boxes.dtype)
            size = (moved.shape[-2], moved.shape[-1])
            return moved, tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
        planes = old.as_subclass(Tensor).numpy()
        if planes.ndim == 2:
            found = compose(image=pixels, mask=planes)
            return _image(found["image"]), tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(found["mask"])))
        if not len(planes):
            moved = _image(compose(image=pixels)["image"])
            return moved, tv_tensors.Mask(old.new_zeros(0, *moved.shape[-2:]))
        found = compose(image=pixels, masks=planes)
        masks = np.stack([np.ascontiguousarray(mask) for mask in found["masks"]])
        return _image(found["image"]), tv_tensors.Mask(torch.from_numpy(masks))


def _image(pixels: Any) -> Any:
    """The tensor of an array ``(H, W, C)``; whatever else a transform gives is left to the check."""
    if not isinstance(pixels, np.ndarray):
        return pixels
    wide = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(np.ascontiguousarray(wide.transpose(2, 0, 1)))


def _is_albumentations(step: Any) -> bool:
    return any(kind.__module__.partition(".")[0] == "albumentations" for kind in type(step).__mro__)


def _described(parts: Sequence[Any]) -> str:
    def one(part: Any) -> str:
        if isinstance(part, (Tensor, np.ndarray)):
            what = type(part).__name__ + " " if isinstance(part, (tv_tensors.TVTensor, np.ndarray)) else ""
            return f"{what}{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}"
        return type(part).__name__

    return " and ".join(one(part) for part in parts)


@contextlib.contextmanager
def _seeded_beside_torch() -> Iterator[None]:
    """Seeds NumPy's and Python's generators from torch's for a block, and puts them back as they were."""
    seed = int(torch.randint(2**31 - 1, (1,)))
    numbers, state = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numbers)
        random.setstate(state)


def build_own(sections: Sequence[TransformConfig], key: str) -> Augmentation | None:
    """Builds the transforms that a config names, as one; ``None`` if it names none.

    Args:
        sections: The entries of the config.
        key: Their key.

    Raises:
        ConfigError: If one cannot be made.
    """
    if not sections:
        return None
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks a server for a newer version
    steps = [(section.name, make(section, f"{key}[{number}]")) for number, section in enumerate(sections)]
    return Augmentation(repr(identities_of(sections, key)), OwnTransforms(steps, key), framed=False)
