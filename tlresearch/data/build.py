"""From the `data` section of a config to splits ready for training; the registry of sources."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path

import torch

from tlresearch.base.errors import DataError, call_object, load_object, nearest, one_line
from tlresearch.base.paths import find_data
from tlresearch.config.schema import DataConfig
from tlresearch.data.audio import build_audio
from tlresearch.data.base import Data, Split, SplitName
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
from tlresearch.data.transforms import build_augmentation
from tlresearch.modality.base import Modality, expect
from tlresearch.modality.image import Evaluation, Preprocessing


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


def build_data(config: DataConfig, *, preprocessing: Modality, seed: int) -> Data:
    """Reads, checks and splits the samples of a config.

    Args:
        config: The `data` section.
        preprocessing: The backbone's; `data.image_size` overrides its size (see `Preprocessing.sized`).
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


def _build_images(config: DataConfig, *, preprocessing: Modality, seed: int) -> Data:
    table = _own(config, preprocessing) if config.name not in SOURCES else None
    if isinstance(table, Data):
        return table
    complaint = DataError(f"data.name: {config.name} gives images, which this backbone does not take")
    preprocessing = expect(preprocessing, Preprocessing, complaint)
    if preprocessing.channels not in (1, 3):
        raise DataError(f"the backbone takes {preprocessing.channels} channels; images have 1 or 3")
    if table is None:
        table = SOURCES[config.name](config)
    found = prepare(table, config)
    prepared = preprocessing.sized(config.image_size, config.resize)
    return Data(
        name=table.name,
        splits=_build_splits(table, found, config, prepared, seed),
        classes=found.classes,
        kind=found.kind,
        fingerprint=found.fingerprint,
        preprocessing=prepared,
        skipped=found.skipped,
    )


def _own(config: DataConfig, preprocessing: Modality) -> Table | Data:
    """What a function of the user's own gives: a table of images, or data with splits of any modality."""
    if "." not in config.name:
        raise DataError(
            f"data.name: unknown source '{config.name}'{nearest(config.name, [*SOURCES, *BUILDERS])}; "
            f"choose from {', '.join([*SOURCES, *BUILDERS])}, or give the dotted path of your own"
        )
    arguments = dict(config.options)
    if config.root is not None:
        arguments["root"] = find_data(config.root)
    function = load_object(config.name, "data.name")
    if callable(function) and "preprocessing" in inspect.signature(function).parameters:
        arguments["preprocessing"] = preprocessing
    given = call_object(config.name, "data.name", arguments)
    if not isinstance(given, (Table, Data)):
        raise DataError(
            f"data.name: {config.name} must return a tlresearch Table or Data but got {type(given).__name__}"
        )
    return given


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
