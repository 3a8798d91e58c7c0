"""Source `hf_dataset`: data sets of the Hugging Face hub, or saved in a local folder, with the package `datasets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlresearch.base.errors import DataError, MissingExtraError, UserError, first_line, nearest
from tlresearch.base.paths import find_data
from tlresearch.data.base import SplitName
from tlresearch.data.rows import Label
from tlresearch.data.table import Table, splits_among
from tlresearch.data.targets import numbers
from tlresearch.data.text_table import Texts, label_table, tag_table


def read_hub(
    dataset: str,
    *,
    text_columns: Sequence[str],
    label_column: str,
    targets: Sequence[str] = (),
    options: Mapping[str, Any],
) -> Table:
    """Reads a data set with the splits it has; a column of word lists beside tag lists makes a table of tags.

    Args:
        dataset: Name on the hub, or a folder written by `save_to_disk`.
        text_columns: Column of the text, or of the words; or the columns of the two texts of a pair.
        label_column: Column of the label, or of the tags.
        targets: Columns of numbers, which are learnt instead of the label.
        options: Further arguments of `datasets.load_dataset`, such as ``name`` (the configuration) and ``revision``.

    Raises:
        MissingExtraError: If `datasets` is not installed.
        DataError: If it cannot be loaded, or a column is missing.
    """
    loaded = _load(dataset, options)
    names: list[str] = []
    texts: list[Any] = []
    splits: list[SplitName] = []
    learnt: dict[str, list[Any]] = {column: [] for column in targets or (label_column,)}
    classes: tuple[str, ...] | None = None
    passed: dict[str, int] = {}
    meant = splits_among(loaded, dataset)
    for split, part in loaded.items():
        if split not in meant:
            passed[f"entries of '{split}'"] = len(part)
            continue
        _check_columns(dataset, part.column_names, (*text_columns, *learnt))
        first = next(iter(learnt))
        classes = _class_names(part.features[first])
        values = part[first][:]
        if all(value in (-1, None) for value in values):
            passed[f"entries of '{split}' without a label"] = len(values)  # those of a test that are kept secret
            continue
        names += [f"{split}/{index}" for index in range(len(values))]
        read = [part[column][:] for column in text_columns]
        texts += zip(*read, strict=True) if len(read) > 1 else read[0]
        for column, gathered in learnt.items():
            gathered += part[column][:]
        splits += [meant[split]] * len(values)
    if not names:
        raise DataError(f"{dataset} has no labelled split called train, validation or test; it has {', '.join(loaded)}")
    given = splits if len(set(splits)) > 1 else None
    short = Path(dataset).name
    if targets:
        fields = numbers(learnt, names.__getitem__)
        return Table(short, names=names, images=Texts(texts), splits=given, samples="texts", passed=passed, **fields)
    labels = [_names(value, classes) for value in learnt[label_column]]
    if isinstance(texts[0], list):
        return replace(tag_table(short, names=names, sentences=texts, tags=labels, splits=given), passed=passed)
    table = label_table(short, names=names, texts=texts, labels=labels, splits=given, classes=classes)
    return replace(table, passed=passed)


def _check_columns(dataset: str, columns: Sequence[str], needed: Sequence[str]) -> None:
    for column in needed:
        if column not in columns:
            raise DataError(
                f"{dataset} has no column '{column}'{nearest(column, columns)}; it has "
                f"{', '.join(columns)}. Choose with data.text_column, data.label_column or data.targets"
            )


def _load(dataset: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise MissingExtraError("datasets", "text") from None
    try:
        folder = find_data(dataset)
    except UserError:
        folder = Path()
    # Another folder of that name is none of the hub's: it has files in formats of its own.
    saved = any((folder / name).exists() for name in ("dataset_dict.json", "state.json"))
    try:
        found: Any = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(dataset, **options)
    except Exception as error:  # of the hub client, its HTTP library, and every file format
        reason = first_line(error)
        raise DataError(f"data.dataset: '{dataset}' cannot be loaded: {reason}") from None
    return found if isinstance(found, Mapping) else {"train": found}


def _class_names(feature: Any) -> tuple[str, ...] | None:
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return tuple(names) if names else None


def _names(value: Any, classes: tuple[str, ...] | None) -> Label:
    if isinstance(value, list):
        return [_name(member, classes) for member in value]
    return _name(value, classes)


def _name(value: Any, classes: tuple[str, ...] | None) -> str:
    return classes[value] if classes is not None and isinstance(value, int) else str(value)
