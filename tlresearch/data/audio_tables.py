"""Sources `audio_folder` and `audio_manifest`: which sound files there are, with label or transcript, and split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tlresearch.base.errors import DataError, nearest
from tlresearch.data.base import SplitName
from tlresearch.data.folders import find_listed, list_files
from tlresearch.data.rows import check_labels, clean, read_rows
from tlresearch.data.table import refuse, splits_among
from tlresearch.data.targets import Learning, Learnt
from tlresearch.modality.sound import EXTENSIONS

Groups = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Listing:
    """Sound files with what is said of them.

    Attributes:
        root: Folder the names are relative to.
        names: Paths of the files.
        texts: Label or transcript of each.
        splits: Split of each where the source gives one; a source without a test split may leave rows of it out.
        passed: Number of files and rows that are no samples, by their ending or by why.
        numbers: What is learnt, where that is numbers.
    """

    root: Path
    names: Sequence[str]
    texts: Sequence[str]
    splits: Sequence[SplitName] | None = None
    passed: Mapping[str, int] = field(default_factory=dict)
    numbers: Learnt | None = None


def list_folder(
    root: Path, *, pattern: str | None = None, test: Groups | None = None, val: Groups | None = None
) -> Listing:
    r"""Lists the sound files below a folder.

    Args:
        root: ``<class>/<file>`` or ``{train,val,test}/<class>/<file>``, or any folders with a `pattern`.
        pattern: Regular expression that the path of a file (relative to `root`) must contain, with the named group
            ``label`` and any others: ``(?P<label>\d)_(?P<speaker>\w+)_(?P<take>\d+)\.wav``.
        test: Files of the test split by values of the pattern's groups: ``{speaker: [theo, lucas]}``.
        val: Files of the val split, likewise.

    Raises:
        DataError: If there are no files, the pattern does not fit, or files would be in two splits.
    """
    if not root.is_dir():
        raise DataError(f"data.root: {root} is a file; audio_folder needs a folder of sound files")
    files = list_files(root, EXTENSIONS)
    names = sorted(files.names)
    if not names:
        raise DataError(f"{root} holds no sound files ({' '.join(EXTENSIONS)}): check data.root")
    for key, chosen in (("test", test), ("val", val)):
        if chosen and not isinstance(chosen, Mapping):
            raise DataError(f"data.options.{key}: maps groups of the pattern to lists of values, but got {chosen!r}")
    if pattern is None:
        if test or val:
            raise DataError("data.options: test and val choose by the groups of data.options.pattern, which is not set")
        return replace(_by_folder(root, names), passed=files.passed)
    groups: Mapping[SplitName, Groups] = {"test": test or {}, "val": val or {}}
    return replace(_by_pattern(root, names, _compile(pattern), groups), passed=files.passed)


def list_manifest(
    root: Path,
    table: str,
    *,
    path_column: str,
    text_column: str,
    targets: Sequence[str] = (),
    split_column: str | None,
    delimiter: str | None = None,
    encoding: str | None = None,
    labels: bool = True,
) -> Listing:
    """Reads a manifest: a table with one sound file per row; see `read_rows`.

    Args:
        root: Folder that holds the manifest; paths in it are relative to this folder.
        table: Name of the manifest.
        path_column: Column (key) of the paths.
        text_column: Column of labels or transcripts.
        targets: Columns of numbers, which are learnt instead.
        split_column: Column of splits; ``None`` if there is none.
        delimiter: What separates values; ``None`` finds it.
        encoding: Encoding of the manifest; ``None`` finds it.
        labels: Whether the texts are labels, which are checked as such.

    Raises:
        DataError: If the manifest or a column is missing, or a row is incomplete.
    """
    path = root / table
    learning = Learning(text_column, targets)
    columns = [path_column, *learning.columns, *([split_column] if split_column else [])]
    rows = read_rows(path, columns, delimiter=delimiter, encoding=encoding)
    files = find_listed(root, rows.texts(path_column), EXTENSIONS, str(path))
    rows.refuse_repeated(files.names, "files", "Keep one row per file")
    splits = rows.splits(split_column) if split_column else None
    listing = Listing(root, files.names, (), splits, files.passed + rows.passed)
    if targets:
        learning.add(rows)
        return replace(listing, numbers=learning.learnt())
    texts = [" ".join(text.split()) for text in rows.texts(text_column)]
    if labels:
        check_labels(f"{path}, column '{text_column}'", texts)
    return replace(listing, texts=texts)


def _by_folder(root: Path, names: Sequence[str]) -> Listing:
    parts = [name.split("/") for name in names]
    split_of = splits_among(sorted({part[0] for part in parts if len(part) > 1}), str(root))
    if split_of and not any(len(part) > 2 and part[0] in split_of for part in parts):
        split_of = {}  # classes, one of which is called train or test
    depth = 1 + bool(split_of)
    refuse(
        [
            name
            for name, part in zip(names, parts, strict=True)
            if len(part) <= depth or (split_of and part[0] not in split_of)
        ],
        what=f"{root}: sound files outside a class folder",
        cure="Expected <root>/<class>/<file> or <root>/{train,val,test}/<class>/<file>; "
        "labels in file names are read by data.options.pattern",
    )
    splits = [split_of[part[0]] for part in parts] if split_of else None
    return Listing(root, names, [clean(part[depth - 1]) for part in parts], splits)


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"data.options.pattern: '{pattern}' is not a regular expression: {error}") from None
    if "label" not in compiled.groupindex:
        raise DataError(f"data.options.pattern: '{pattern}' has no group (?P<label>...) for the class")
    return compiled


def _by_pattern(
    root: Path, names: Sequence[str], pattern: re.Pattern[str], chosen: Mapping[SplitName, Groups]
) -> Listing:
    matches = [pattern.search(name) for name in names]
    refuse(
        [name for name, match in zip(names, matches, strict=True) if match is None],
        what=f"{root}: file names that data.options.pattern does not fit",
        cure="Correct the pattern or move these files elsewhere",
    )
    groups = [match.groupdict() for match in matches if match is not None]
    given = {split: _choose(split, wanted, groups) for split, wanted in chosen.items() if wanted}
    both = sorted(set.intersection(*given.values())) if len(given) == 2 else []
    refuse(
        [names[row] for row in both], what=f"{root}: files in both test and val", cure="Choose disjoint groups for them"
    )
    splits: list[SplitName] | None = None
    if given:
        splits = ["train"] * len(names)
        for split, rows in given.items():
            for row in rows:
                splits[row] = split
    return Listing(root, names, [group["label"] for group in groups], splits)


def _choose(split: SplitName, wanted: Groups, groups: Sequence[Mapping[str, str]]) -> set[int]:
    """Rows of a split: those whose every named group has one of the wanted values."""
    rows = set(range(len(groups)))
    for name, values in wanted.items():
        key = f"data.options.{split}"
        if name not in groups[0]:
            known = list(groups[0])
            raise DataError(
                f"{key}: the pattern has no group '{name}'{nearest(name, known)}; it has {', '.join(known)}"
            )
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise DataError(f"{key}.{name}: must be a list of values but got {values!r}")
        present = {group[name] for group in groups}
        refuse(
            [f"'{value}'" for value in values if str(value) not in present],
            what=f"{key}.{name}: values that no file has",
            cure=f"The files have {', '.join(sorted(present)[:20])}",
        )
        rows &= {row for row, group in enumerate(groups) if group[name] in {str(value) for value in values}}
    return rows
