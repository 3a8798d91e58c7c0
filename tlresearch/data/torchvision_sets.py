"""Source `torchvision`: the image classification data sets of torchvision.datasets."""

from __future__ import annotations

import hashlib
import inspect
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor

from tlresearch.base.errors import DataError, nearest
from tlresearch.data.arrays import ArrayImages
from tlresearch.data.base import SplitName
from tlresearch.data.files import FileImages
from tlresearch.data.table import Checked, Images, Table
from tlresearch.data.volumes import Reading
from tlresearch.modality.decoding import Orientation, to_channels, turned

_SPLIT_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "trainval"),
    "val": ("val", "valid"),
    "test": ("test",),
}
# Where torchvision keeps the labels and the files of a split; there is no common name.
_LABELS = ("targets", "labels", "_labels", "y")
_FILES = ("samples", "_samples", "_image_files", "_images")


def read_torchvision(
    folder: Path, *, dataset: str, download: bool, options: Mapping[str, Any], orientation: Orientation = "exif"
) -> Table:
    """Reads all splits of a data set below `folder`.

    Args:
        folder: Where it lies, or is downloaded to.
        dataset: Class name in torchvision.datasets.
        download: Whether to download what is not there.
        options: Further arguments of the class, such as ``split`` of EMNIST.
        orientation: See `Preprocessing.orientation`.

    Raises:
        DataError: If there is no such data set, it is not there, or it is not image classification.
    """
    known = [name for name in datasets.__all__ if isinstance(getattr(datasets, name), type)]
    if dataset not in known:
        raise DataError(
            f"data.dataset: torchvision.datasets has no '{dataset}'{nearest(dataset, known)}; "
            "its names are listed in torchvision's documentation"
        )
    before = set(folder.iterdir()) if folder.is_dir() else None
    try:
        parts = _open_splits(getattr(datasets, dataset), folder, download=download, options=dict(options))
    except DataError:
        _tidy(folder, before)
        raise
    labels = [_labels(part, dataset) for part in parts.values()]
    sizes = [len(part) for part in labels]
    return Table(
        name=dataset,
        classes=_classes(next(iter(parts.values())), labels),
        labels=torch.cat(labels),
        names=[f"{split}/{index:06d}" for split, size in zip(parts, sizes, strict=True) for index in range(size)],
        images=_Joined([_images(part, orientation) for part in parts.values()], sizes),
        splits=[split for split, size in zip(parts, sizes, strict=True) for _ in range(size)]
        if len(parts) > 1
        else None,
    )


def _open_splits(cls: type, folder: Path, *, download: bool, options: dict[str, Any]) -> dict[SplitName, Any]:
    parameters = inspect.signature(cls).parameters
    fixed = dict(options)
    if "root" in parameters:
        fixed["root"] = str(folder)
    # MNIST's relatives pass these two on as keyword arguments.
    mnist = issubclass(cls, datasets.MNIST)
    can_download = download and ("download" in parameters or mnist)
    if "train" in parameters or mnist:
        pair: tuple[tuple[SplitName, bool], ...] = (("train", True), ("test", False))
        return {split: _open(cls, {**fixed, "train": train}, can_download) for split, train in pair}
    if "split" not in parameters or "split" in options:
        return {"train": _open(cls, fixed, can_download)}
    parts: dict[SplitName, Any] = {}
    for split, names in _SPLIT_NAMES.items():
        for name in names:
            try:
                parts[split] = _open(cls, {**fixed, "split": name}, can_download)
                break
            except ValueError:
                continue  # The data set does not know a split of this name.
    if "train" not in parts:
        raise DataError(f"data.dataset: {cls.__name__} has no split called train; name one with data.options.split")
    return parts


def _tidy(folder: Path, before: set[Path] | None) -> None:
    """Removes the new folders without a file that torchvision leaves where a download failed."""
    made = set(folder.iterdir()) - (before or set()) if folder.is_dir() else set()
    for path in made:
        if path.is_dir() and not any(inner.is_file() for inner in path.rglob("*")):
            shutil.rmtree(path, ignore_errors=True)
    if before is None and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _open(cls: type, arguments: dict[str, Any], download: bool) -> Any:
    try:
        # Without download first: then nothing is written where the data already lie.
        return cls(**arguments)
    except (OSError, RuntimeError) as error:
        problem: Exception = error
    except TypeError as error:
        raise DataError(f"data.options: {cls.__name__} cannot be opened: {error}") from None
    if download:
        try:
            return cls(**arguments, download=True)
        except (OSError, RuntimeError, EOFError) as error:
            problem = error
    tried = "could not be downloaded" if download else "is not there and data.download is off (or not offered)"
    first_line = (str(problem).splitlines() or [type(problem).__name__])[0]
    raise DataError(
        f"data.dataset: {cls.__name__} {tried}: {first_line}; "
        f"put it into {arguments.get('root', 'the data directory')} by hand, or connect to the network"
    ) from None


def _labels(part: Any, dataset: str) -> Tensor:
    for attribute in _LABELS:
        found = getattr(part, attribute, None)
        if found is not None and len(found) == len(part):
            values = list(found)
            break
    else:
        values = [part[index][1] for index in range(len(part))]
    try:
        numbers = [int(value) for value in values]
    except (TypeError, ValueError):
        raise DataError(
            f"data.dataset: {dataset} gives labels such as {values[0]!r}: it is not an image classification data set"
        ) from None
    return torch.tensor(numbers, dtype=torch.int64)


def _classes(part: Any, labels: Sequence[Tensor]) -> tuple[str, ...]:
    names = getattr(part, "classes", None) or getattr(part, "categories", None)
    count = max((int(each.max()) + 1 for each in labels if len(each)), default=0)
    if isinstance(names, (list, tuple)) and len(names) >= count and all(isinstance(name, str) for name in names):
        return tuple(names)
    return tuple(str(number) for number in range(count))


def _images(part: Any, orientation: Orientation) -> Images:
    """Takes the shortest way to the same pixels: the array, the files, or the images one by one."""
    data = getattr(part, "data", None)
    if isinstance(data, (np.ndarray, Tensor)) and len(part):
        array = np.asarray(data)
        if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
            array = array.transpose(0, 2, 3, 1)
        if array.dtype == np.uint8 and array.shape[0] == len(part) and array.ndim in (3, 4):
            images = ArrayImages(array)
            if torch.equal(images.load(0, 3), _Single(part, orientation).load(0, 3)):
                return images
    for attribute in _FILES:
        entries = getattr(part, attribute, None)
        if isinstance(entries, (list, tuple)) and len(entries) == len(part) and entries:
            paths = [entry[0] if isinstance(entry, tuple) else entry for entry in entries]
            if all(isinstance(path, (str, Path)) for path in paths):
                root = Path(part.root).absolute()
                # Joining an absolute path to the root gives that path.
                reading = Reading(orientation=orientation)
                return FileImages(root, [str(Path(path).absolute()) for path in paths], reading)
    return _Single(part, orientation)


class _Single:
    """Images of a data set that only gives them one by one, as PIL images."""

    def __init__(self, part: Any, orientation: Orientation) -> None:
        self._part = part
        self._orientation = orientation

    def load(self, index: int, channels: int) -> Tensor:
        try:
            image = self._part[index][0]
        except (OSError, SyntaxError) as error:
            raise ValueError(str(error)) from None
        if not isinstance(image, Image.Image):
            raise ValueError(f"it is a {type(image).__name__}, not an image")
        if self._orientation == "exif":
            image = turned(image)
        return to_channels(pil_to_tensor(image.convert("L" if image.mode in ("1", "L") else "RGB")), channels)

    def check(self, indices: Sequence[int]) -> list[Checked]:
        return [self._check(index) for index in indices]

    def _check(self, index: int) -> Checked:
        try:
            image = self.load(index, 3)
        except ValueError as error:
            return Checked("", 0, 0, str(error))
        shape = "x".join(map(str, image.shape)) + ":"
        return Checked(
            hashlib.sha256(shape.encode() + image.numpy().tobytes()).hexdigest(),
            image.shape[1],
            image.shape[2],
        )


class _Joined:
    """The images of several splits behind one another."""

    def __init__(self, parts: Sequence[Images], sizes: Sequence[int]) -> None:
        self._place = [(part, index) for part, size in zip(parts, sizes, strict=True) for index in range(size)]

    def load(self, index: int, channels: int) -> Tensor:
        part, position = self._place[index]
        return part.load(position, channels)

    def check(self, indices: Sequence[int]) -> list[Checked]:
        checked: dict[int, Checked] = {}
        # All of one part at once, so that files are read in threads.
        grouped: dict[int, list[int]] = {}
        for index in indices:
            grouped.setdefault(id(self._place[index][0]), []).append(index)
        for group in grouped.values():
            part = self._place[group[0]][0]
            checked.update(zip(group, part.check([self._place[index][1] for index in group]), strict=True))
        return [checked[index] for index in indices]
