"""What must hold of a data set before anything trains on it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from tlresearch.base.errors import DataError, nearest
from tlresearch.data.base import SplitName
from tlresearch.data.table import Checked, Table, refuse
from tlresearch.modality.image import Preprocessing

logger = logging.getLogger(__name__)


def check_table(table: Table) -> None:
    """Checks what a source returned: lengths, names and the range of the labels.

    Raises:
        DataError: If the parts do not fit together or a label is out of range.
    """
    count = len(table.names)
    lengths = {"labels": len(table.labels), "splits": count if table.splits is None else len(table.splits)}
    for part, length in lengths.items():
        if length != count:
            raise DataError(f"{table.name}: {count} names but {length} {part}; every sample needs one of each")
    if not count:
        raise DataError(f"{table.name} holds no samples: check data.root")
    refuse(
        [f"{name} ({times} times)" for name, times in Counter(table.names).items() if times > 1],
        what=f"{table.name}: names that several samples have",
        cure="Every sample needs a name of its own",
    )
    classes = len(table.classes)
    if table.multilabel:
        if table.labels.shape[1] != classes:
            raise DataError(f"{table.name}: {classes} classes but {table.labels.shape[1]} label columns")
        return
    if table.labels.is_floating_point():
        raise DataError(f"{table.name}: labels must be integers but got {table.labels.dtype}")
    outside = ((table.labels < 0) | (table.labels >= classes)).nonzero().flatten().tolist()
    refuse(
        [f"{table.names[row]} has {int(table.labels[row])}" for row in outside],
        what=f"{table.name}: labels outside 0 to {classes - 1}",
        cure="A label is the number of its class, counted from 0",
    )


def keep_classes(table: Table, wanted: Sequence[str]) -> tuple[Tensor, tuple[str, ...], list[int]]:
    """Keeps the wanted classes in their order; all if none is named.

    Samples of other classes are left out. With several labels per sample only columns are left out: a sample
    without any of the wanted labels is a negative example of all of them.

    Returns:
        Labels of all samples by the new numbers (-1 where left out), the classes, and the rows kept.

    Raises:
        DataError: If a class is unknown or named twice, or only one remains.
    """
    rows = list(range(len(table.names)))
    classes = tuple(wanted) or table.classes
    refuse(
        [f"'{name}'{nearest(name, table.classes)}" for name in classes if name not in table.classes],
        what=f"data.classes: unknown to {table.name}",
        cure=f"Its classes are: {', '.join(table.classes[:50])}",
    )
    if len(set(classes)) < len(classes):
        twice = sorted({name for name in classes if classes.count(name) > 1})
        raise DataError(f"{table.name}: classes named twice: {', '.join(twice)}; every class needs one name of its own")
    if not table.multilabel and len(classes) < 2:
        raise DataError(
            f"{table.name} has a single class ({', '.join(classes) or 'none'}): "
            "there is nothing to tell apart; add a class folder or label"
        )
    numbers = [table.classes.index(name) for name in classes]
    if table.multilabel:
        return table.labels[:, numbers], classes, rows
    labels = table.labels.new_full(table.labels.shape, -1)
    for new, old in enumerate(numbers):
        labels[table.labels == old] = new
    return labels, classes, [row for row, label in enumerate(labels.tolist()) if label >= 0]


def check_splits(name: str, splits: Mapping[SplitName, Sequence[int]], labels: Tensor, classes: Sequence[str]) -> None:
    """Checks that every class is in train and val; the test may lack some, and val a rare label of many.

    Raises:
        DataError: If a split is empty or lacks a class.
    """
    problems = []
    for split, rows in splits.items():
        if not rows:
            raise DataError(f"{name}: the {split} split is empty; add samples to it")
        part = labels[list(rows)]
        present = part.sum(0) > 0 if part.ndim == 2 else part.bincount(minlength=len(classes)) > 0
        for cls, found in zip(classes, present.tolist(), strict=True):
            if found:
                continue
            if split == "test" or (part.ndim == 2 and split == "val"):
                logger.warning("%s: no sample of the %s split has the label '%s'", name, split, cls)
            else:
                problems.append(f"{split} has no sample of '{cls}'")
    refuse(
        problems,
        what=f"{name}: classes missing from a split",
        cure="Add samples (names of classes differ in capitals too), or leave the class out with data.classes",
    )


def check_groups(name: str, splits: Mapping[SplitName, Sequence[int]], whose: Sequence[str]) -> None:
    """Checks that no group, such as a patient, stands in two splits: that would flatter the result.

    Raises:
        DataError: If one does.
    """
    found: dict[str, set[SplitName]] = {}
    for split, rows in splits.items():
        for row in rows:
            found.setdefault(whose[row], set()).add(split)
    refuse(
        [f"'{group}' in {' and '.join(sorted(places))}" for group, places in found.items() if len(places) > 1],
        what=f"{name}: groups in more than one split",
        cure="Move their samples to one split, or give no splits and let them be held out group by group",
    )


def check_sizes(
    names: Sequence[str], checked: Mapping[int, Checked], preprocessing: Preprocessing
) -> tuple[int, int] | None:
    """Returns the common ``(height, width)`` of images taken as they are; ``None`` if they are cropped.

    Raises:
        DataError: If images are not cropped and differ in size.
    """
    if preprocessing.crop is not None:
        return None
    sizes: dict[tuple[int, int], int] = {}
    for row, record in checked.items():
        sizes.setdefault((record.height, record.width), row)
    if len(sizes) > 1:
        examples = ", ".join(f"{names[row]} is {width}x{height}" for (height, width), row in list(sizes.items())[:3])
        raise DataError(
            f"images are taken as they are but differ in size: {examples}; set data.image_size to bring them to one"
        )
    return next(iter(sizes))


def warn_of_duplicates(
    name: str, splits: Mapping[SplitName, Sequence[int]], names: Sequence[str], checked: Mapping[int, Checked]
) -> None:
    """Warns of samples that are in two splits with the same content: they flatter the result."""
    first: dict[str, tuple[SplitName, int]] = {}
    found = []
    for split, rows in splits.items():
        for row in rows:
            where, other = first.setdefault(checked[row].digest, (split, row))
            if where != split:
                found.append(f"{names[row]} ({split}) = {names[other]} ({where})")
    if found:
        listing = "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")
        logger.warning("%s: %d samples are in two splits with the same content: %s", name, len(found), listing)
