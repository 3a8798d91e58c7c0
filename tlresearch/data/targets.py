"""What is learnt of the rows of a table: labels, or numbers of one or several columns (`data.targets`)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from tlresearch.base.errors import DataError
from tlresearch.data.base import TargetKind
from tlresearch.data.rows import Label, Rows, clean, numbered

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?\d+,\d+")
LOST = 1e-3
"""Most that float32 may round a number by, as a share of its column's standard deviation."""


class Learnt(TypedDict, total=False):
    """The fields of a `Table` that say what is learnt."""

    classes: tuple[str, ...]
    labels: Tensor
    targets: Tensor
    kind: TargetKind
    problems: Mapping[int, str]


class Learning:
    """Gathers what is learnt from the rows of tables.

    Args:
        label_column: Column of the label.
        targets: Columns of numbers, which are learnt instead of the label; empty for none.
    """

    def __init__(self, label_column: str, targets: Sequence[str] = ()) -> None:
        self.columns = list(targets) or [label_column]
        self._numbers = bool(targets)
        self._labels: list[Label] = []
        self._values: dict[str, list[Any]] = {column: [] for column in targets}
        self._places: list[str] = []

    def add(self, rows: Rows) -> None:
        """Takes the rows of a file, which were read with `columns`."""
        if not self._numbers:
            self._labels += rows.labels(self.columns[0])
            return
        for column, values in self._values.items():
            values += rows.columns[column]
        self._places += [f"{rows.path.name}, {rows.place(row)}" for row in range(len(rows.lines))]

    def learnt(self) -> Learnt:
        """Returns what was gathered.

        Raises:
            DataError: If numbers lie where float32 loses their differences.
        """
        if self._numbers:
            return numbers(self._values, self._places.__getitem__)
        return labelled(self._labels)


def labelled(labels: Sequence[Label]) -> Learnt:
    """Numbers labels by their classes, in order."""
    classes, numbers_of = numbered(labels)
    return Learnt(classes=classes, labels=numbers_of)


def numbers(columns: Mapping[str, Sequence[Any]], place: Callable[[int], str]) -> Learnt:
    """Reads numbers; what is none is a problem of its row, which stops the reading or is skipped.

    Args:
        columns: Values by the name of their column: text, or numbers.
        place: Says where a row stands.

    Raises:
        DataError: If numbers lie where float32 loses their differences.
    """
    read = {column: [_number(value) for value in values] for column, values in columns.items()}
    count = len(next(iter(read.values())))
    problems: dict[int, str] = {}
    for column, values in read.items():
        for row, value in enumerate(values):
            if isinstance(value, str):
                problems.setdefault(row, f"{place(row)}, column '{column}': {value}")
        _check_scale(column, [value for value in values if not isinstance(value, str)], place(0))
    table = [[math.nan if isinstance(value, str) else value for value in values] for values in read.values()]
    return Learnt(
        classes=tuple(columns),
        labels=torch.zeros(count, dtype=torch.int64),
        targets=torch.tensor(table, dtype=torch.float64).T.float().contiguous(),
        kind="numbers",
        problems=problems,
    )


def check_varied(name: str, columns: Sequence[str], targets: Tensor) -> None:
    """Refuses numbers that are the same in all training samples.

    Args:
        name: Name of the data set.
        columns: Names of the columns.
        targets: Numbers of the training samples ``(samples, columns)``.

    Raises:
        DataError: If a column has one value alone.
    """
    for column, values in zip(columns, targets.T, strict=True):
        if len(values) and bool((values == values[0]).all()):
            raise DataError(
                f"{name}, column '{column}': the number is {values[0]:g} in all {len(values)} training samples, so "
                "there is nothing to learn; leave it out of data.targets, or add samples with other numbers"
            )


def _number(value: Any) -> float | str:
    """A number, or why a value is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "nothing stands there"
    if isinstance(value, str):
        text = clean(value)
        if _COMMA.fullmatch(text):
            return f"'{text}' has a decimal comma; write a point"
        if not _NUMBER.fullmatch(text):
            infinite = text.lstrip("+-").casefold() in ("inf", "infinity", "nan")
            return f"'{text}' is not finite" if infinite else f"'{text[:40]}' is no number"
        value = text
    if isinstance(value, bool) or not isinstance(value, (str, int, float, np.integer, np.floating)):
        return f"{value!r} is no number"
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isnan(number):
        return "nan is not finite"
    if abs(number) > torch.finfo(torch.float32).max:
        return f"'{value}' is too large for float32; choose another unit"
    return number


def _check_scale(column: str, values: Sequence[float], first: str) -> None:
    exact = np.asarray(values, dtype=np.float64)
    spread = float(exact.std()) if len(exact) else 0.0
    lost = float(np.abs(exact - exact.astype(np.float32)).max()) if len(exact) else 0.0
    if spread > 0 and lost > LOST * spread:
        raise DataError(
            f"{first.partition(',')[0]}, column '{column}': numbers of about {exact.mean():.6g} that differ by "
            f"{spread:.3g} only lose their differences in float32; subtract a constant from all of them"
        )
