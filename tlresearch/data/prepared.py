"""What every table of samples goes through, whatever the samples are: checks, classes, splits, fingerprint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tlresearch.base.errors import DataError
from tlresearch.config.schema import DataConfig
from tlresearch.data.base import Fingerprint, SplitName, TargetKind
from tlresearch.data.checks import check_groups, check_splits, check_table, keep_classes, warn_of_duplicates
from tlresearch.data.fingerprint import fingerprint
from tlresearch.data.splits import assign_splits, subset
from tlresearch.data.table import Checked, Table, refuse
from tlresearch.data.targets import check_varied


@dataclass(frozen=True)
class Prepared:
    """A table's samples, read once and distributed over the splits.

    Attributes:
        classes: Class names in the order of their numbers.
        kind: What the targets are.
        splits: Rows of the table in each split.
        targets: Targets of all rows: a tensor, or one by one.
        checked: What is known of each readable row.
        skipped: Unreadable samples that were left out, with the reason, by name.
        fingerprint: Content hash over all splits.
    """

    classes: tuple[str, ...]
    kind: TargetKind
    splits: dict[SplitName, list[int]]
    targets: Tensor | Sequence[Any]
    checked: dict[int, Checked]
    skipped: dict[str, str]
    fingerprint: Fingerprint

    def targets_of(self, split: SplitName) -> Tensor | list[Any]:
        """Targets of one split."""
        rows = self.splits[split]
        return self.targets[rows] if isinstance(self.targets, Tensor) else [self.targets[row] for row in rows]


def prepare(table: Table, config: DataConfig) -> Prepared:
    """Checks a table, keeps the wanted classes, reads every sample once and distributes them over the splits.

    Args:
        table: What the source returned.
        config: The `data` section.

    Raises:
        UserError: If anything about the data is wrong; the text names the place and the cure.
    """
    check_table(table)
    if table.targets is None:
        labels, classes, rows = keep_classes(table, config.classes)
        groups, kind = classes, _kind(labels, classes)
    else:
        if config.classes and tuple(config.classes) != table.classes:  # those of boxes are chosen where they are read
            raise DataError(f"data.classes: {table.name} has no classes to choose from; leave it empty")
        # One group: there is nothing to stratify by.
        labels, classes, rows = (
            torch.zeros(len(table.names), dtype=torch.int64),
            table.classes,
            [*range(len(table.names))],
        )
        groups, kind = ("any",), table.kind
    whose = _whose(table, config.group_pattern)
    checked, skipped = _check(table, rows, config.on_error)
    splits = assign_splits(
        labels,
        table.names,
        rows=list(checked),
        given=table.splits,
        classes=groups,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        split_seed=config.split_seed,
        whose=whose,
    )
    if whose is not None:
        check_groups(table.name, splits, whose)
    check_splits(table.name, splits, labels, groups)
    warn_of_duplicates(table.name, splits, table.names, checked)
    splits["train"] = subset(
        splits["train"],
        labels,
        table.names,
        classes=groups,
        labels_per_class=config.labels_per_class,
        train_fraction=config.train_fraction,
        split_seed=config.split_seed,
    )
    targets = labels if table.targets is None else table.targets
    if kind == "numbers" and isinstance(targets, Tensor):
        check_varied(table.name, classes, targets[splits["train"]])
    hashed = fingerprint(splits, labels=targets, names=table.names, classes=classes, checked=checked)
    return Prepared(classes, kind, splits, targets, checked, skipped, hashed)


def _whose(table: Table, pattern: str | None) -> Sequence[str] | None:
    """What each sample is of: from its name where a pattern says how, else as the source says."""
    if pattern is None:
        return table.groups
    found = [re.search(pattern, name) for name in table.names]
    refuse(
        [name for name, match in zip(table.names, found, strict=True) if match is None or match[1] is None],
        what=f"{table.name}: names in which data.group_pattern '{pattern}' finds no group",
        cure="Change the pattern; it is looked for anywhere in the name",
    )
    return [match[1] for match in found if match is not None]


def _check(table: Table, rows: Sequence[int], on_error: str) -> tuple[dict[int, Checked], dict[str, str]]:
    """Reads every sample once; returns the readable ones by row, and why the others were skipped by name."""
    faults = {row: table.problems[row] for row in rows if row in table.problems}
    if on_error == "raise":
        refuse(
            list(faults.values()),
            what=f"{table.name}: targets that cannot be used",
            cure="Correct the table, or set data.on_error=skip",
        )
    checked = {
        row: record._replace(problem=faults.get(row, record.problem))
        for row, record in zip(rows, table.images.check(rows), strict=True)
    }
    problems = {table.names[row]: record.problem for row, record in checked.items() if record.problem is not None}
    if on_error == "raise":
        refuse(
            [f"{name}: {problem}" for name, problem in problems.items()],
            what=f"{table.name}: unreadable {table.samples}",
            cure="Replace or remove them, or set data.on_error=skip",
        )
    readable = {row: record for row, record in checked.items() if record.problem is None}
    if not readable:
        name, why = next(iter(problems.items()), ("", ""))
        raise DataError(f"{table.name}: none of {len(rows)} {table.samples} can be read, such as {name}: {why}")
    return readable, problems


def _kind(labels: Tensor, classes: Sequence[str]) -> TargetKind:
    if labels.ndim == 2:
        return "multilabel"
    return "binary" if len(classes) == 2 else "multiclass"
