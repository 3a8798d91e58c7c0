"""Source `image_folder`: one folder per class, with or without split folders above them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tlresearch.base.errors import DataError
from tlresearch.data.base import SplitName
from tlresearch.data.files import FileImages
from tlresearch.data.medical import PICTURES
from tlresearch.data.table import SPLIT_ALIASES, Table, refuse

logger = logging.getLogger(__name__)

_EXPECTED = "expected <root>/train/<class>/<image> (with val and test beside train) or <root>/<class>/<image>"


def read_image_folder(root: Path) -> Table:
    """Reads ``root/{train,val,test}/<class>/*``, or ``root/<class>/*`` without given splits.

    As torchvision's ImageFolder, it looks into subfolders of a class and passes over other extensions.

    Raises:
        DataError: If folders are missing or empty.
    """
    if not root.is_dir():
        raise DataError(f"data.root: {root} is a file; image_folder needs a folder: {_EXPECTED}")
    folders = _folders(root)
    split_of = {name: SPLIT_ALIASES[name] for name in folders if name in SPLIT_ALIASES}
    if not split_of:
        classes = _classes(root, folders)
        return _table(root, classes, {(cls, None): _images(root, cls) for cls in classes})
    return _read_splits(root, folders, split_of)


def _read_splits(root: Path, folders: Sequence[str], split_of: dict[str, SplitName]) -> Table:
    if "train" not in split_of:
        raise DataError(f"{root} holds {', '.join(split_of)} but no train folder: {_EXPECTED}")
    if len(set(split_of.values())) < len(split_of):
        raise DataError(f"{root} holds two folders for one split ({', '.join(split_of)}): keep one of them")
    ignored = [name for name in folders if name not in split_of]
    if ignored:
        logger.warning("%s: folders beside the splits are not read: %s", root, ", ".join(ignored))
    present = {folder: _classes(root / folder, _folders(root / folder)) for folder in split_of}
    classes = sorted(set().union(*present.values()))
    refuse(
        [f"{folder} has no folder '{cls}'" for folder in present for cls in classes if cls not in present[folder]],
        what=f"{root}: classes missing from a split",
        cure="Every split needs a folder of the same name for every class",
    )
    found: dict[tuple[str, str | None], list[str]] = {
        (cls, folder): _images(root, f"{folder}/{cls}") for folder in split_of for cls in classes
    }
    return _table(root, classes, found, split_of)


def _table(
    root: Path,
    classes: Sequence[str],
    found: Mapping[tuple[str, str | None], Sequence[str]],
    split_of: Mapping[str, SplitName] | None = None,
) -> Table:
    """Builds the table from the images found for each class and split folder."""
    refuse(
        [cls if folder is None else f"{folder}/{cls}" for (cls, folder), names in found.items() if not names],
        what=f"{root}: class folders without an image",
        cure=f"Add images ({' '.join(PICTURES)}) or remove the folder",
    )
    number = {cls: position for position, cls in enumerate(classes)}
    names = [name for group in found.values() for name in group]
    splits = [split_of[folder] for (_, folder), group in found.items() if split_of and folder for _ in group]
    return Table(
        name=root.name,
        classes=tuple(classes),
        labels=torch.tensor([number[cls] for (cls, _), group in found.items() for _ in group]),
        names=names,
        images=FileImages(root, names),
        splits=splits or None,
    )


def _folders(folder: Path) -> list[str]:
    # Notebooks and macOS leave folders of their own behind; they are no classes.
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name != "__MACOSX"
    )


def _classes(folder: Path, classes: Sequence[str]) -> Sequence[str]:
    if not classes:
        raise DataError(f"{folder} holds no class folders: {_EXPECTED}")
    return classes


def _images(root: Path, folder: str) -> list[str]:
    found = []
    for place, _, files in sorted(os.walk(root / folder, followlinks=True)):
        below = Path(place).relative_to(root)
        found += [(below / file).as_posix() for file in sorted(files) if file.lower().endswith(PICTURES)]
    return found
