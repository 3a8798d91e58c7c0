"""Source `npz`: arrays in the MedMNIST layout, ``{train,val,test}_{images,labels}``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tlresearch.base.errors import DataError, one_line
from tlresearch.data.arrays import ArrayImages
from tlresearch.data.base import SplitName
from tlresearch.data.table import SPLITS, Table, refuse
from tlresearch.data.targets import Learnt, numbers


def read_npz(root: Path, targets: Sequence[str] = ()) -> Table:
    """Reads an npz file, or the only one of a folder; nothing in it is ever unpickled.

    Labels are class numbers ``(N,)`` or ``(N, 1)``, or 0/1 columns ``(N, K)``. Class names are the numbers,
    unless the file has a text array ``classes``. With `targets` they are numbers ``(N,)`` or ``(N, K)``.

    Args:
        root: The file, or its folder.
        targets: What each column of numbers is called; empty where labels are classes.

    Raises:
        DataError: If keys are missing or the arrays do not fit together.
    """
    path = _find(root)
    arrays = load_arrays(path)
    found = [split for split in SPLITS if f"{split}_images" in arrays or f"{split}_labels" in arrays]
    missing = [
        key for split in found or ["train"] for key in (f"{split}_images", f"{split}_labels") if key not in arrays
    ]
    if "train" not in found or missing:
        raise DataError(
            f"{path} lacks {', '.join(missing or ['train_images', 'train_labels'])}; it holds "
            f"{', '.join(arrays) or 'nothing'}. Expected train_images, train_labels, and so for val and test"
        )
    for split in found:
        sizes = len(arrays[f"{split}_images"]), len(arrays[f"{split}_labels"])
        if sizes[0] != sizes[1]:
            raise DataError(f"{path}: {split}_images has {sizes[0]} samples but {split}_labels has {sizes[1]}")
    learnt = _numbers(path, arrays, found, targets) if targets else _classified(path, arrays, found)
    splits: list[SplitName] = [split for split in found for _ in arrays[f"{split}_labels"]]
    further = len(set(arrays) - {"classes"} - {f"{split}_{part}" for split in found for part in ("images", "labels")})
    return Table(
        name=path.stem,
        names=[f"{split}/{index}" for split in found for index in range(len(arrays[f"{split}_labels"]))],
        images=_images(path, arrays, found),
        splits=None if found == ["train"] else splits,
        passed={"arrays of other names": further} if further else {},
        **learnt,
    )


def _find(root: Path) -> Path:
    if root.is_file():
        return root
    files = sorted(root.glob("*.npz"))
    if len(files) != 1:
        raise DataError(f"data.root: {root} holds {len(files)} npz files; name the one file")
    return files[0]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an npz file; nothing in it is ever unpickled.

    Raises:
        DataError: If it is damaged, or holds objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # of a damaged file zipfile, zlib and NumPy raise whatever its broken part leads to
        if isinstance(error, ValueError) and "pickle" in str(error) and "Object arrays" in str(error):
            raise DataError(
                f"{path} holds object arrays, which could run code when loaded; "
                "save plain uint8 images and integer labels"
            ) from None
        raise DataError(f"{path} is not a readable npz file: {one_line(error)}") from None


def _classified(path: Path, arrays: dict[str, np.ndarray], found: Sequence[SplitName]) -> Learnt:
    labels = torch.cat([_labels(arrays[f"{split}_labels"], f"{path}: {split}_labels") for split in found])
    return Learnt(classes=_classes(path, arrays, labels), labels=labels)


def _numbers(path: Path, arrays: dict[str, np.ndarray], found: Sequence[SplitName], targets: Sequence[str]) -> Learnt:
    parts = [arrays[f"{split}_labels"].reshape(len(arrays[f"{split}_labels"]), -1) for split in found]
    places = [f"{path.name}, {split}_labels[{row}]" for split in found for row in range(len(arrays[f"{split}_labels"]))]
    for split, part in zip(found, parts, strict=True):
        if part.shape[1] != len(targets) or part.dtype.kind not in "iuf":
            raise DataError(
                f"{path}: data.targets names {len(targets)} numbers ({', '.join(targets)}), but {split}_labels is "
                f"{arrays[f'{split}_labels'].dtype} {arrays[f'{split}_labels'].shape}; name each column once"
            )
    return numbers(dict(zip(targets, np.concatenate(parts).T.tolist(), strict=True)), places.__getitem__)


def _labels(array: np.ndarray, where: str) -> Tensor:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2) or array.dtype.kind not in "iufb":
        raise DataError(f"{where}: labels must be numbers (N,), (N, 1) or (N, K) but got {array.dtype} {array.shape}")
    bad = ~np.isfinite(array) if array.dtype.kind == "f" else np.zeros(array.shape, dtype=bool)
    bad |= (array != np.floor(array)) if array.dtype.kind == "f" else False
    refuse(
        [f"row {row} has {array[row]}" for row in np.unique(np.nonzero(bad)[0])],
        what=f"{where}: labels that are not integers",
        cure="Labels are class numbers from 0, or 0/1 columns",
    )
    if array.ndim == 1:
        return torch.from_numpy(array.astype(np.int64))
    refuse(
        [f"row {row} has {array[row]}" for row in np.unique(np.nonzero((array != 0) & (array != 1))[0])],
        what=f"{where}: multi-label columns that are not 0 or 1",
        cure="Each column says whether the sample has that label",
    )
    return torch.from_numpy(array.astype(np.float32))


def _classes(path: Path, arrays: dict[str, np.ndarray], labels: Tensor) -> tuple[str, ...]:
    if "classes" in arrays:
        return tuple(str(name) for name in arrays["classes"].ravel())
    count = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1 if len(labels) else 0
    if labels.ndim == 1 and count > max(len(labels), 2):
        raise DataError(f"{path}: the largest label is {count - 1} but there are only {len(labels)} samples")
    return tuple(str(number) for number in range(count))


def _images(path: Path, arrays: dict[str, np.ndarray], found: list[SplitName]) -> ArrayImages:
    parts = [arrays[f"{split}_images"] for split in found]
    shapes = {split: part.shape[1:] for split, part in zip(found, parts, strict=True)}
    if len(set(shapes.values())) > 1:
        listing = ", ".join(f"{split} {shape}" for split, shape in shapes.items())
        raise DataError(f"{path}: images differ in shape between the splits: {listing}")
    try:
        return ArrayImages(np.concatenate(parts))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
