"""Source `image_folder`: one folder per class, with or without split folders above them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tlresearch.base.errors import DataError
from tlresearch.config.schema import DataConfig
from tlresearch.data.base import SplitName
from tlresearch.data.files import PICTURES, FileImages, sliced
from tlresearch.data.folders import check_names, is_hidden, list_files
from tlresearch.data.rows import clean
from tlresearch.data.table import Table, refuse, splits_among
from tlresearch.data.volumes import read_reading

logger = logging.getLogger(__name__)

_EXPECTED = "expected <root>/train/<class>/<image> (with val and test beside train) or <root>/<class>/<image>"


def read_image_folder(root: Path, config: DataConfig) -> Table:
    """Reads ``root/{train,val,test}/<class>/*``, or ``root/<class>/*`` without given splits.

    Split folders may be spelt otherwise (see `split_of`). It looks into subfolders of a class; files that are no
    pictures, and hidden ones, are counted.

    Raises:
        DataError: If folders are missing or empty.
    """
    if not root.is_dir():
        raise DataError(f"data.root: {root} is a file; image_folder needs a folder: {_EXPECTED}")
    folders = _folders(root)
    split_of = splits_among(folders, str(root))
    if split_of and len(split_of) < len(folders) and not any(_folders(root / name) for name in split_of):
        split_of = {}  # classes, one of which is called train or test
    passed = Counter(list_files(root, (), deep=False).passed)
    for folder in split_of:
        passed += list_files(root, (), below=folder, deep=False).passed
    images: dict[tuple[str, str | None], str] = {(name, None): name for name in folders}
    if split_of:
        images = _by_split(root, folders, split_of)
    if not images:
        raise DataError(f"{root} holds no class folders: {_EXPECTED}")
    files = {key: list_files(root, PICTURES, below=folder) for key, folder in images.items()}
    refuse(
        [images[key] for key, listed in files.items() if not listed.names],
        what=f"{root}: class folders without an image",
        cure=f"Add images ({' '.join(PICTURES)}) or remove the folder",
    )
    passed = sum((listed.passed for listed in files.values()), passed)
    table = _table(root, {key: _in_order(listed.names) for key, listed in files.items()}, split_of, passed)
    return sliced(table, root, read_reading(config.options, config.orientation))


def _by_split(
    root: Path, folders: Sequence[str], split_of: Mapping[str, SplitName]
) -> dict[tuple[str, str | None], str]:
    """Folder of each class in each split folder."""
    if "train" not in split_of.values():
        raise DataError(f"{root} holds {', '.join(split_of)} but no train folder: {_EXPECTED}")
    ignored = [name for name in folders if name not in split_of]
    if ignored:
        logger.warning("%s: folders beside the splits are not read: %s", root, ", ".join(ignored))
    # Names are compared as classes are called; the folders may be written otherwise.
    present = {folder: {clean(name): name for name in _folders(root / folder)} for folder in split_of}
    for folder, inside in present.items():
        if not inside:
            loose = len(list_files(root, PICTURES, below=folder, deep=False).names)
            cure = (
                f"move its {loose} images out of {root} (tlresearch predict answers for them)" if loose else _EXPECTED
            )
            raise DataError(f"{root / folder} holds no class folders, so its images have no labels: {cure}")
    classes = sorted({name for names in present.values() for name in names})
    train = next(folder for folder in split_of if split_of[folder] == "train")
    refuse(
        [f"{train} has no folder '{name}'" for name in classes if name not in present[train]],
        what=f"{root}: classes missing from a split",
        cure="Every class needs a folder of its name in train; names differ in capitals too",
    )
    return {
        (name, folder): f"{folder}/{present[folder][name]}"
        for folder in split_of
        for name in classes
        if name in present[folder]
    }


def _table(
    root: Path,
    images: Mapping[tuple[str, str | None], Sequence[str]],
    split_of: Mapping[str, SplitName],
    passed: Mapping[str, int],
) -> Table:
    """Builds the table from the images of each class and split folder."""
    classes = tuple(dict.fromkeys(clean(name) for name in sorted({name for name, _ in images})))
    names = [name for group in images.values() for name in group]
    return Table(
        name=root.name,
        classes=classes,
        labels=torch.tensor([classes.index(clean(name)) for (name, _), group in images.items() for _ in group]),
        names=names,
        images=FileImages(root, names),
        splits=[split_of[folder] for (_, folder), group in images.items() if folder for _ in group] or None,
        passed=passed,
    )


def _folders(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    check_names(names, str(folder))
    return names


def _in_order(names: Sequence[str]) -> list[str]:
    """Images folder by folder, as every earlier run had them: the order of samples is part of a fingerprint."""
    return sorted(names, key=lambda name: (name.rpartition("/")[0], name))
