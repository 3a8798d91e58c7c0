"""What lies in a folder: which files are samples, and what was passed over, counted by kind."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tlresearch.data.table import refuse

HIDDEN = "hidden"
LOOPS = "links to a folder above"
_LEFT_BEHIND = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"}
)
"""Names that systems and cloud drives leave behind without the point that hides them elsewhere, in small letters."""


@dataclass(frozen=True)
class Files:
    """The files below a folder.

    Attributes:
        names: Paths of the samples relative to the root, in no order.
        passed: Number of files that were passed over, by their ending or by why.
    """

    names: list[str]
    passed: Counter[str]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: hidden, or left behind by a system."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def list_files(root: Path, endings: Sequence[str], *, below: str = "", deep: bool = True) -> Files:
    """Lists the samples in a folder and all folders below it, through links as well.

    Args:
        root: Folder that names are relative to.
        endings: Endings of samples in small letters; capitals are the same ending.
        below: Folder inside `root` to look in.
        deep: Whether folders inside that one are looked into.

    Raises:
        DataError: If a name cannot be recorded because it is not in the file system's encoding.
    """
    files = Files([], Counter())
    _look(root, root / below, tuple(endings), deep, (), files)
    check_names(files.names, str(root))
    return files


def check_names(names: Sequence[str], where: str) -> None:
    """Refuses names of files that are no text, such as those of old archives.

    Raises:
        DataError: If there is one; the text names it and the cure.
    """
    refuse(
        [
            name.encode(errors="surrogateescape").decode(errors="backslashreplace")
            for name in names
            if not _is_text(name)
        ],
        what=f"{where}: names of files that are not UTF-8",
        cure="Rename them, such as with convmv -f latin1 -t utf8 --notest",
    )


def find_listed(root: Path, names: Sequence[str], endings: Sequence[str], where: str) -> Files:
    """Finds the files that a table lists, and counts those beside them that it does not.

    A name may lack its ending, have the backslashes of Windows, or be composed of other letters than the file's.

    Args:
        root: Folder the names are relative to.
        names: Names as the table has them.
        endings: Endings of samples in small letters.
        where: The table, for errors.

    Returns:
        The files in the order of the table; a file that is not there keeps its name, and is named when it is read.

    Raises:
        DataError: If a name without its ending fits several files.
    """
    folders: dict[Path, dict[str, list[str]]] = {}

    def inside(folder: Path) -> dict[str, list[str]]:
        """Names of the samples in a folder by their name in full, and without the ending."""
        if folder not in folders:
            there: dict[str, list[str]] = {}
            with contextlib.suppress(OSError, ValueError):
                for name in os.listdir(folder):
                    ending = ending_of(name, endings)
                    if ending and not is_hidden(name):
                        for key in {composed(name), composed(name[: -len(ending)])}:
                            there.setdefault(key, []).append(name)
            folders[folder] = there
        return folders[folder]

    paths, problems = [], []
    for name in names:
        path = Path(name)
        if "\\" in name and composed(path.name) not in inside(root / path.parent):
            path = Path(name.replace("\\", "/"))
        there = inside(root / path.parent)
        alike = there.get(composed(path.name), [])
        exact = [file for file in alike if composed(file) == composed(path.name)]
        if not exact and len(alike) > 1:
            problems.append(f"{name} fits {' and '.join(sorted(alike))}")
        choice = path.name if path.name in exact else (exact or alike or [path.name])[0]
        paths.append((path.parent / choice).as_posix())
    refuse(problems, what=f"{where}: names that fit several files", cure="Write them with their ending")
    listed = {root / path for path in paths}
    beside = {folder / file for folder, there in folders.items() for files in there.values() for file in files}
    count = len(beside - listed)
    return Files(paths, Counter({"not in the table": count} if count else {}))


def ending_of(name: str, endings: Sequence[str]) -> str:
    """Returns the longest of the endings that a name has, such as all of ``.nii.gz``; empty if it has none."""
    return max((ending for ending in endings if name.lower().endswith(ending)), key=len, default="")


def stem_of(name: str, endings: Sequence[str]) -> str:
    """Returns a name without its ending."""
    return name[: len(name) - len(ending_of(name, endings))]


def composed(name: str) -> str:
    """Returns a name with composed letters, by which names are compared: macOS stores é as e and an accent."""
    return unicodedata.normalize("NFC", name)


def summary(passed: Mapping[str, int]) -> str:
    """Says in a few words what was passed over: ``40 passed over: 38 .heic, 2 hidden``."""
    parts = sorted(passed.items(), key=lambda item: (item[0] == HIDDEN, -item[1], item[0]))
    shown = [f"{count} {kind}" for kind, count in parts[:6]]
    more = [f"{sum(count for _, count in parts[6:])} of other kinds"] if len(parts) > 6 else []
    return f"{sum(passed.values())} passed over: {', '.join([*shown, *more])}"


def _look(
    root: Path, folder: Path, endings: tuple[str, ...], deep: bool, above: tuple[tuple[int, int], ...], files: Files
) -> None:
    stat = folder.stat()
    place = (stat.st_dev, stat.st_ino)
    if place in above:  # a link to a folder that it lies in would be followed until the system stops it
        files.passed[LOOPS] += 1
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_hidden(entry.name):
                files.passed[HIDDEN] += 1
            elif entry.is_dir():
                if deep:
                    _look(root, folder / entry.name, endings, deep, (*above, place), files)
            elif entry.name.lower().endswith(endings):
                files.names.append((folder / entry.name).relative_to(root).as_posix())
            else:
                files.passed[Path(entry.name).suffix.lower() or "without an ending"] += 1


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
