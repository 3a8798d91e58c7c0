"""From the `data` section of a config to splits ready for training; the registry of sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from tlresearch.config.paths import find_data
from tlresearch.config.schema import DataConfig
from tlresearch.data.base import Data, Preprocessing, Split, SplitName, TargetKind
from tlresearch.data.checks import check_sizes, check_splits, check_table, keep_classes, warn_of_duplicates
from tlresearch.data.digits import read_digits
from tlresearch.data.fingerprint import fingerprint
from tlresearch.data.image_csv import read_image_csv
from tlresearch.data.image_folder import read_image_folder
from tlresearch.data.images import ImageSplit
from tlresearch.data.npz import read_npz
from tlresearch.data.splits import assign_splits, subset
from tlresearch.data.table import Checked, Table, refuse
from tlresearch.data.torchvision_sets import read_torchvision
from tlresearch.data.transforms import Evaluation, build_augmentation, resized
from tlresearch.errors import DataError, call_object, nearest


def _root(config: DataConfig) -> Path:
    if config.root is None:
        raise DataError(f"data.root is not set: {config.name} needs the folder or file of the images")
    return find_data(config.root)


def _image_folder(config: DataConfig) -> Table:
    return read_image_folder(_root(config))


def _image_csv(config: DataConfig) -> Table:
    return read_image_csv(
        _root(config),
        table=config.table,
        image_column=config.image_column,
        label_column=config.label_column,
        split_column=config.split_column,
    )


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


def build_data(config: DataConfig, *, preprocessing: Preprocessing, seed: int) -> Data:
    """Reads, checks and splits the images of a config.

    Args:
        config: The `data` section.
        preprocessing: The backbone's; `data.image_size` overrides its size (see `transforms.resized`).
        seed: Seed of the augmentation.

    Raises:
        UserError: If anything about the data is wrong; the text names the place and the cure.
    """
    if preprocessing.channels not in (1, 3):
        raise DataError(f"the backbone takes {preprocessing.channels} channels; images have 1 or 3")
    table = _read(config)
    check_table(table)
    labels, classes, rows = keep_classes(table, config.classes)
    checked, skipped = _check_images(table, rows, config.on_error)
    splits = assign_splits(
        labels,
        table.names,
        rows=list(checked),
        given=table.splits,
        classes=classes,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        split_seed=config.split_seed,
    )
    check_splits(table.name, splits, labels, classes)
    warn_of_duplicates(table.name, splits, table.names, checked)
    splits["train"] = subset(
        splits["train"],
        labels,
        table.names,
        classes=classes,
        labels_per_class=config.labels_per_class,
        train_fraction=config.train_fraction,
        split_seed=config.split_seed,
    )
    prepared = resized(preprocessing, config.image_size)
    return Data(
        name=table.name,
        splits=_build_splits(table, splits, labels, checked, config, prepared, seed),
        classes=classes,
        kind=_kind(labels, classes),
        fingerprint=fingerprint(splits, labels=labels, names=table.names, classes=classes, checked=checked),
        preprocessing=prepared,
        skipped=skipped,
    )


def _read(config: DataConfig) -> Table:
    if config.name in SOURCES:
        return SOURCES[config.name](config)
    if "." not in config.name:
        raise DataError(
            f"data.name: unknown source '{config.name}'{nearest(config.name, list(SOURCES))}; "
            f"choose from {', '.join(SOURCES)}, or give the dotted path of your own"
        )
    arguments = dict(config.options)
    if config.root is not None:
        arguments["root"] = find_data(config.root)
    table = call_object(config.name, "data.name", arguments)
    if not isinstance(table, Table):
        raise DataError(f"data.name: {config.name} must return a tlresearch Table but got {type(table).__name__}")
    return table


def _check_images(table: Table, rows: Sequence[int], on_error: str) -> tuple[dict[int, Checked], dict[str, str]]:
    """Reads every image once; returns the readable ones by row, and why the others were skipped by name."""
    checked = dict(zip(rows, table.images.check(rows), strict=True))
    problems = {table.names[row]: record.problem for row, record in checked.items() if record.problem is not None}
    if on_error == "raise":
        refuse(
            [f"{name}: {problem}" for name, problem in problems.items()],
            what=f"{table.name}: unreadable images",
            cure="Replace or remove them, or set data.on_error=skip",
        )
    readable = {row: record for row, record in checked.items() if record.problem is None}
    if not readable:
        raise DataError(f"{table.name}: none of {len(rows)} images can be read; check data.root")
    return readable, problems


def _build_splits(
    table: Table,
    splits: dict[SplitName, list[int]],
    labels: Tensor,
    checked: dict[int, Checked],
    config: DataConfig,
    preprocessing: Preprocessing,
    seed: int,
) -> dict[SplitName, Split]:
    size = check_sizes(table.names, checked, preprocessing)
    evaluation = Evaluation(preprocessing)
    augmentation = build_augmentation(config.augment, evaluation, size=size)
    return {
        split: ImageSplit(
            table.images,
            rows,
            targets=labels[rows],
            names=[table.names[row] for row in rows],
            evaluation=evaluation,
            augmentation=augmentation if split == "train" else None,
            seed=seed,
        )
        for split, rows in splits.items()
    }


def _kind(labels: Tensor, classes: Sequence[str]) -> TargetKind:
    if labels.ndim == 2:
        return "multilabel"
    return "binary" if len(classes) == 2 else "multiclass"
