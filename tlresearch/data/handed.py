"""Data sets that somebody else's code gives: torch's, Hugging Face's and LightningDataModules, as a table.

Each sample is read once at the start, for its label, its size and its hash; images are then read when they are needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tlresearch.base.errors import DataError, nearest, one_line
from tlresearch.config.schema import DataConfig
from tlresearch.data.base import SplitName
from tlresearch.data.datasets import loaders_of
from tlresearch.data.mask_files import Pairs
from tlresearch.data.plane import MaskTargets
from tlresearch.data.rows import numbered
from tlresearch.data.table import SPLITS, Checked, Table, splits_among
from tlresearch.data.text_table import label_table
from tlresearch.modality.decoding import to_channels

FORMS = "a torch Dataset with len(), a mapping of them by split, a data set of Hugging Face, or a LightningDataModule"


def table_of(made: Any, config: DataConfig, *, texts: bool) -> Table:
    """Makes a table of a data set.

    Args:
        made: One of `FORMS`.
        config: The `data` section: columns of samples that are mappings, names of classes.
        texts: Whether the backbone takes texts; else images.

    Raises:
        DataError: If the data set is of no such form, or its samples are not.
    """
    parts = _parts(made, config.name)
    read = _Reading(config, texts)
    for split, dataset in parts.items():
        read.take(split, dataset)
    return read.table(config.name.rpartition(".")[2])


def _parts(made: Any, name: str) -> dict[SplitName | None, Any]:
    """The data sets by split; of one alone the split is ``None``."""
    if isinstance(made, L.LightningDataModule):
        made = _of_module(made, name)
    if isinstance(made, Mapping):
        meant = splits_among(made, f"data.name: {name}")
        parts: dict[SplitName | None, Any] = {split: made[key] for key, split in meant.items()}
        if "train" not in parts:
            raise DataError(f"data.name: {name} gives no train split; it gives {', '.join(map(str, made))}")
    elif isinstance(made, (tuple, list)) and 2 <= len(made) <= 3 and all(hasattr(part, "__getitem__") for part in made):
        parts = dict(zip(SPLITS, made, strict=False))
    else:
        parts = {None: made}
    for split, part in parts.items():
        dataset = part.dataset if isinstance(part, DataLoader) else part
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        ):
            kind = type(dataset).__name__
            raise DataError(f"data.name: {name} must give {FORMS}, but gave {kind}{f' for {split}' if split else ''}")
        if not len(dataset):
            raise DataError(f"data.name: {name} gives no samples{f' for {split}' if split else ''}")
        parts[split] = dataset
    return parts


def _of_module(module: L.LightningDataModule, name: str) -> dict[SplitName, Any]:
    """The data sets behind the loaders of a LightningDataModule; how they batch and shuffle is of no effect."""
    loaders = loaders_of(module)
    for split, loader in loaders.items():
        if not isinstance(loader, DataLoader):
            raise DataError(f"data.name: {name}.{split}_dataloader() must give one DataLoader, but gave {loader!r:.80}")
    return loaders


@dataclass
class _Reading:
    """What is found while the samples are read."""

    config: DataConfig
    texts: bool
    names: list[str] = field(default_factory=list)
    splits: list[SplitName] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    places: list[tuple[Any, int]] = field(default_factory=list)
    checked: list[Checked] = field(default_factory=list)
    classes: Sequence[str] | None = None

    def take(self, split: SplitName | None, dataset: Any) -> None:
        """Reads every sample of a data set."""
        self.classes = self.classes or _class_names(dataset, self.config.label_column)
        for index in range(len(dataset)):
            name = f"{split or 'sample'}/{index}"
            value, label = self.sample(dataset, index, name)
            if index == 0 and not self.texts and not torch.equal(value, self.sample(dataset, 0, name)[0]):
                raise DataError(
                    f"data.name: {self.config.name} gives another image each time sample 0 is read; leave its random "
                    "transforms out: data.transforms takes them"
                )
            self.names.append(name)
            self.labels.append(label)
            self.places.append((dataset, index))
            if split:
                self.splits.append(split)
            if self.texts:
                self.inputs.append(value)
                continue
            content = f"{tuple(value.shape)}:".encode() + value.numpy().tobytes()
            content += label.numpy().tobytes() if isinstance(label, Tensor) and label.ndim == 2 else b""
            self.checked.append(Checked(hashlib.sha256(content).hexdigest(), *value.shape[-2:]))

    def sample(self, dataset: Any, index: int, name: str) -> tuple[Any, Any]:
        """Returns text or image of a sample, with what is learnt of it."""
        source = self.config.name
        try:
            item = dataset[index]
        except Exception as error:  # of whatever code
            reason = f"{type(error).__name__}: {one_line(error, 300)}"
            raise DataError(f"data.name: {source} cannot give sample {name}: {reason}") from error
        if isinstance(item, Mapping):
            columns = (self.config.text_column if self.texts else self.config.image_column, self.config.label_column)
            keys = ("text_column" if self.texts else "image_column", "label_column")
            for key, column in zip(keys, columns, strict=True):
                if column not in item:
                    raise DataError(
                        f"data.{key}: samples of {source} have no '{column}'{nearest(column, [*map(str, item)])}; they "
                        f"have {', '.join(map(str, item))}"
                    )
            value, label = (item[column] for column in columns)
        elif isinstance(item, (tuple, list)) and len(item) == 2:
            value, label = item
        else:
            what = f"{type(item).__name__} of {len(item)}" if isinstance(item, (tuple, list)) else type(item).__name__
            raise DataError(
                f"data.name: samples of {source} must be (input, label) or a mapping of columns, but {name} is a {what}"
            )
        if self.texts and not isinstance(value, str):
            raise DataError(
                f"data.name: {source} must give texts, which this backbone takes, but {name} is {_kind(value)}"
            )
        return (value if self.texts else _as_image(value, source, name)), _as_label(label, source, name)

    def table(self, name: str) -> Table:
        """Makes the table."""
        given = self.splits or None
        first = self.labels[0]
        if any(type(label) is not type(first) for label in self.labels):
            kinds = " and ".join(sorted({type(label).__name__ for label in self.labels}))
            raise DataError(f"data.name: labels of {self.config.name} must be of one kind, but are {kinds}")
        if self.texts:
            words = [self._named(label) for label in self.labels]
            return label_table(
                name, names=self.names, texts=self.inputs, labels=words, splits=given, classes=self.classes
            )
        images = _Handed(self)
        if isinstance(first, float):
            targets = torch.tensor(self.labels, dtype=torch.float32)[:, None]
            named = tuple(self.config.targets) or (self.config.label_column,)
            empty = torch.zeros(len(self.names), dtype=torch.int64)
            return Table(name, named, empty, self.names, images, given, targets=targets, kind="numbers")
        if isinstance(first, Tensor) and _is_mask(first):
            return self._masks(name, images)
        classes, labels = numbered([self._named(label) for label in self.labels], self._ordered())
        return Table(name, classes, labels, self.names, images, given)

    def _ordered(self) -> Sequence[str] | None:
        if self.classes is not None or not isinstance(self.labels[0], int):
            return self.classes
        return [str(number) for number in range(max(self.labels) + 1)]

    def _named(self, label: Any) -> Any:
        """A label by its name; several labels, one column each, by their names."""
        if isinstance(label, Tensor):
            columns = self.classes or [str(number) for number in range(len(label))]
            return [columns[number] for number in label.nonzero().flatten().tolist()]
        if isinstance(label, int):
            if self.classes is not None and not 0 <= label < len(self.classes):
                raise DataError(
                    f"data.name: {self.config.name} has {len(self.classes)} classes, but a label is {label}"
                )
            return self.classes[label] if self.classes is not None else str(label)
        return label

    def _masks(self, name: str, images: _Handed) -> Table:
        numbers = sorted({int(value) for label in self.labels for value in torch.unique(label)} - {255})
        classes = tuple(self.classes or (str(number) for number in range(numbers[-1] + 1)))
        if numbers[-1] >= len(classes):
            raise DataError(f"data.name: {self.config.name} has {len(classes)} classes, but a mask holds {numbers[-1]}")
        for sample, mask, seen in zip(self.names, self.labels, self.checked, strict=True):
            if tuple(mask.shape) != (seen.height, seen.width):
                raise DataError(
                    f"data.name: the mask of {sample} is {mask.shape[1]}x{mask.shape[0]} pixels, but its image "
                    f"{seen.width}x{seen.height}"
                )
        return Table(
            name,
            classes,
            torch.zeros(len(self.names), dtype=torch.int64),
            self.names,
            images,
            self.splits or None,
            targets=[torch.empty(0)] * len(self.names),  # an image's hash holds the mask
            kind="masks",
            samples="images with masks",
            plane=lambda sizes: MaskTargets(cast(Pairs, images)),
            fit="stretch",
        )


class _Handed:
    """Images of data sets, read when they are needed."""

    def __init__(self, read: _Reading) -> None:
        self._read = read

    def load(self, index: int, channels: int) -> Tensor:
        """Returns one image as uint8 ``(channels, H, W)``."""
        return to_channels(self._sample(index)[0], channels)

    def mask(self, index: int) -> Tensor:
        """Returns a mask, uint8 ``(H, W)``."""
        mask: Tensor = self._sample(index)[1].to(torch.uint8)
        return mask

    def check(self, indices: Sequence[int]) -> list[Checked]:
        """Says what was seen when the samples were read."""
        return [self._read.checked[index] for index in indices]

    def _sample(self, index: int) -> tuple[Any, Any]:
        dataset, place = self._read.places[index]
        return self._read.sample(dataset, place, self._read.names[index])


def _class_names(dataset: Any, column: str) -> Sequence[str] | None:
    """The names of the classes, as torchvision's and Hugging Face's data sets give them."""
    feature = (getattr(dataset, "features", None) or {}).get(column)
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None) or getattr(dataset, "classes", None)
    inside = getattr(dataset, "dataset", None)  # of a Subset
    if names is None and inside is not None:
        return _class_names(inside, column)
    return [str(name) for name in names] if names else None


def _as_image(value: Any, source: str, name: str) -> Tensor:
    """An image as uint8 ``(C, H, W)``: Pillow's, an array ``(H, W[, C])``, or a tensor ``(C, H, W)``."""
    if isinstance(value, Image.Image):
        value = np.array(value.convert("L" if value.mode in ("1", "L", "I;16", "I") else "RGB"))
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
        value = value[None] if value.ndim == 2 else value.permute(2, 0, 1) if value.ndim == 3 else value
    if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[0] not in (1, 3):
        raise DataError(
            f"data.name: {source} must give images: Pillow's, arrays (H, W[, C]) or tensors (C, H, W) with 1 or 3 "
            f"channels, but {name} is {_kind(value)}"
        )
    if value.dtype == torch.uint8:
        return value
    if value.is_floating_point() and float(value.min()) >= 0 and float(value.max()) <= 1:
        return (value * 255).round().to(torch.uint8)
    raise DataError(
        f"data.name: {source} must give images of uint8, or of floats from 0 to 1, but {name} is {_kind(value)} from "
        f"{float(value.min()):.3g} to {float(value.max()):.3g}; leave its normalisation out: tlresearch normalises"
    )


def _as_label(label: Any, source: str, name: str) -> Any:
    """A label as a number, a text, a list of texts, 0/1 columns, or a mask ``(H, W)``."""
    if isinstance(label, Image.Image):
        label = np.array(label)
    if isinstance(label, (np.ndarray, np.generic)):
        label = torch.from_numpy(np.ascontiguousarray(label))
    if isinstance(label, Tensor):
        label = label.squeeze(0) if label.ndim == 3 and label.shape[0] == 1 else label
        if label.numel() == 1:
            label = label.item()
        elif _is_mask(label) or (label.ndim == 1 and bool(((label == 0) | (label == 1)).all())):
            return label
    if isinstance(label, list) and all(isinstance(entry, str) for entry in label):
        return label
    if isinstance(label, (bool, int, float, str)):
        return int(label) if isinstance(label, bool) else label
    raise DataError(
        f"data.name: labels of {source} must be class numbers, texts, numbers, 0/1 columns or masks (H, W), but that "
        f"of {name} is {_kind(label)}"
    )


def _is_mask(label: Tensor) -> bool:
    return label.ndim == 2 and not label.is_floating_point()


def _kind(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__ if not isinstance(value, dict) else json.dumps(sorted(map(str, value)))[:60]
