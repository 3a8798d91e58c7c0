"""Source `image_csv`: a folder of images and a CSV table of their labels."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tlresearch.base.errors import DataError, nearest
from tlresearch.data.base import SplitName
from tlresearch.data.files import FileImages
from tlresearch.data.table import SPLIT_ALIASES, Table, in_order, refuse


def read_image_csv(
    root: Path,
    *,
    table: str,
    image_column: str,
    label_column: str,
    split_column: str | None,
    group_column: str | None = None,
) -> Table:
    """Reads a CSV file with a header: paths relative to `root`, labels (joined by ';'), perhaps splits and groups.

    Raises:
        DataError: If the table or a column is missing, or a row is incomplete.
    """
    path = root / table
    rows = _read_rows(path, [image_column, label_column, *filter(None, (split_column, group_column))])
    names = [Path(row[image_column].strip()).as_posix() if row[image_column].strip() else "" for row in rows]
    refuse(
        [f"row {number}" for number, name in enumerate(names, start=2) if not name],
        what=f"{path}: rows without an image in column '{image_column}'",
        cure="Name the image or remove the row",
    )
    refuse(
        [f"{name} ({count} rows)" for name, count in Counter(names).items() if count > 1],
        what=f"{path}: images listed more than once",
        cure="Keep one row per image; several labels of one image are joined by ';'",
    )
    classes, labels = _read_labels(path, [row[label_column] for row in rows], label_column)
    splits = _read_splits(path, [row[split_column] for row in rows], split_column) if split_column else None
    groups = [row[group_column].strip() for row in rows] if group_column else None
    refuse(
        [f"row {number}" for number, group in enumerate(groups or [], start=2) if not group],
        what=f"{path}: rows without an entry in column '{group_column}'",
        cure="Say whose image it is or remove the row",
    )
    return Table(root.name, classes, labels, names, FileImages(root, names), splits, groups=groups)


def _read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"data.table: {path} does not exist; it is looked up inside data.root")
    try:
        # utf-8-sig: spreadsheets put a byte order mark in front of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            header = list(reader.fieldnames or [])
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8: {error}") from None
    for column in columns:
        if column not in header:
            known = ", ".join(header) or "none"
            raise DataError(f"{path} has no column '{column}'{nearest(column, header)}; its columns are: {known}")
    if not rows:
        raise DataError(f"{path} has a header but no rows: add one row per image")
    refuse(
        [f"row {number}" for number, row in enumerate(rows, start=2) if None in row],
        what=f"{path}: rows with more fields than the header",
        cure="Put a text that contains a comma in double quotes",
    )
    return rows


def _read_labels(path: Path, texts: Sequence[str], column: str) -> tuple[tuple[str, ...], Tensor]:
    several = [[part.strip() for part in text.split(";") if part.strip()] for text in texts]
    found = in_order(label for labels in several for label in labels)
    number = {label: position for position, label in enumerate(found)}
    if any(";" in text for text in texts):
        matrix = torch.zeros(len(texts), len(found))
        for row, labels in enumerate(several):
            matrix[row, [number[label] for label in labels]] = 1
        return found, matrix
    refuse(
        [f"row {row}" for row, labels in enumerate(several, start=2) if not labels],
        what=f"{path}: rows without a label in column '{column}'",
        cure="Fill in the label or remove the row",
    )
    return found, torch.tensor([number[labels[0]] for labels in several], dtype=torch.int64)


def _read_splits(path: Path, texts: Sequence[str], column: str) -> list[SplitName]:
    refuse(
        [f"row {row} has '{text}'" for row, text in enumerate(texts, start=2) if text.strip() not in SPLIT_ALIASES],
        what=f"{path}: unknown splits in column '{column}'",
        cure="A split is train, val or test",
    )
    return [SPLIT_ALIASES[text.strip()] for text in texts]
