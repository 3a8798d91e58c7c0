"""From the `data` section of a config to splits ready for training; the registry of sources."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tlresearch.base.errors import DataError, call_object, nearest, one_line
from tlresearch.base.paths import find_data
from tlresearch.config.schema import DataConfig
from tlresearch.data.audio import build_audio
from tlresearch.data.base import Data, Preprocessing, Split, SplitName
from tlresearch.data.checks import check_sizes
from tlresearch.data.detection import READERS as BOX_READERS
from tlresearch.data.detection import build_boxes
from tlresearch.data.digits import read_digits
from tlresearch.data.download import ensure_here
from tlresearch.data.image_csv import read_image_csv
from tlresearch.data.image_folder import read_image_folder
from tlresearch.data.images import ImageSplit
from tlresearch.data.medical import with_medical
from tlresearch.data.npz import read_npz
from tlresearch.data.prepared import Prepared, prepare
from tlresearch.data.sampling import check_sampling
from tlresearch.data.segmentation import build_masks
from tlresearch.data.table import Table
from tlresearch.data.text import TEXT_SOURCES, build_text
from tlresearch.data.torchvision_sets import read_torchvision
from tlresearch.data.transforms import Evaluation, build_augmentation, resized


def _root(config: DataConfig) -> Path:
    if config.root is None:
        raise DataError(f"data.root is not set: {config.name} needs the folder or file of the images")
    return find_data(config.root)


def _image_folder(config: DataConfig) -> Table:
    return with_medical(read_image_folder(_root(config)), config.options)


def _image_csv(config: DataConfig) -> Table:
    table = read_image_csv(
        _root(config),
        table=config.table,
        image_column=config.image_column,
        label_column=config.label_column,
        split_column=config.split_column,
        group_column=config.group_column,
    )
    return with_medical(table, config.options)


def _npz(config: DataConfig) -> Table:
    return read_npz(_root(config))


def _torchvision(config: DataConfig) -> Table:
    if config.dataset is None:
        raise DataError("data.dataset is not set: torchvision needs the name of a data set, such as CIFAR10")
    # Not looked up with find_data: before a download the folder need not exist.
    folder = Path(os.environ.get("TLRESEARCH_DATA", "data"), config.root or "").expanduser().absolute()
    return read_torchvision(folder, dataset=config.dataset, download=config.download, options=config.options)


def _digits(config: DataConfig) -> Table:
    return read_digits()


SOURCES: dict[str, Callable[[DataConfig], Table]] = {
    "image_folder": _image_folder,
    "image_csv": _image_csv,
    "npz": _npz,
    "torchvision": _torchvision,
    "digits": _digits,
}


BUILDERS: dict[str, Callable[..., Data]] = {
    "audio_folder": build_audio,
    "audio_manifest": build_audio,
    **dict.fromkeys(TEXT_SOURCES, build_text),
    "masks": build_masks,
    **dict.fromkeys(BOX_READERS, build_boxes),
}
"""Sources of other samples than images, which build their splits themselves."""


def build_data(config: DataConfig, *, preprocessing: Any, seed: int) -> Data:
    """Reads, checks and splits the samples of a config.

    Args:
        config: The `data` section.
        preprocessing: The backbone's; `data.image_size` overrides its size (see `transforms.resized`).
        seed: Seed of the augmentation.

    Raises:
        UserError: If anything about the data is wrong; the text names the place and the cure.
    """
    build: Callable[..., Data] = BUILDERS.get(config.name, _build_images)
    try:
        ensure_here(config)
        data = build(config, preprocessing=preprocessing, seed=seed)
    except OSError as error:  # a folder that may not be read, a name that no file can have, a disk that is full
        raise DataError(f"data: {config.name} cannot be read: {one_line(error, 200)}") from None
    if config.sampling == "balanced":
        check_sampling(data)
    return data


def _build_images(config: DataConfig, *, preprocessing: Any, seed: int) -> Data:
    if not isinstance(preprocessing, Preprocessing):
        raise DataError(f"data.name: {config.name} gives images, which this backbone does not take")
    if preprocessing.channels not in (1, 3):
        raise DataError(f"the backbone takes {preprocessing.channels} channels; images have 1 or 3")
    table = _read(config)
    found = prepare(table, config)
    prepared = resized(preprocessing, config.image_size, config.resize)
    return Data(
        name=table.name,
        splits=_build_splits(table, found, config, prepared, seed),
        classes=found.classes,
        kind=found.kind,
        fingerprint=found.fingerprint,
        preprocessing=prepared,
        skipped=found.skipped,
    )


def _read(config: DataConfig) -> Table:
    if config.name in SOURCES:
        return SOURCES[config.name](config)
    if "." not in config.name:
        raise DataError(
            f"data.name: unknown source '{config.name}'{nearest(config.name, [*SOURCES, *BUILDERS])}; "
            f"choose from {', '.join([*SOURCES, *BUILDERS])}, or give the dotted path of your own"
        )
    arguments = dict(config.options)
    if config.root is not None:
        arguments["root"] = find_data(config.root)
    table = call_object(config.name, "data.name", arguments)
    if not isinstance(table, Table):
        raise DataError(f"data.name: {config.name} must return a tlresearch Table but got {type(table).__name__}")
    return table


def _build_splits(
    table: Table, found: Prepared, config: DataConfig, preprocessing: Preprocessing, seed: int
) -> dict[SplitName, Split]:
    size = check_sizes(table.names, found.checked, preprocessing)
    evaluation = Evaluation(preprocessing)
    augmentation = build_augmentation(config.augment, evaluation, size=size)
    return {
        split: ImageSplit(
            table.images,
            rows,
            targets=torch.as_tensor(found.targets_of(split)),
            names=[table.names[row] for row in rows],
            evaluation=evaluation,
            augmentation=augmentation if split == "train" else None,
            seed=seed,
        )
        for split, rows in found.splits.items()
    }
