"""What stands for a class in the name of a metric, such as ``car`` in ``map_car``."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping

LONGEST = 100
"""Characters of a class's name that a metric's name keeps; MLflow takes 250 for the whole key."""
_MARK = 6  # hexadecimal digits that tell apart names which would become equal


def metric_names(classes: Iterable[str], *, reserved: Collection[str] = ()) -> dict[str, str]:
    r"""Returns a part of a metric's name for each class: distinct, of letters of any language, digits and ``_``.

    They are distinct without regard to capitals and accents too, as MySQL compares them.

    Spaces, dashes and dots become ``_``. A name that loses anything else (``C++``), is too long, would be equal to
    another class's, or is reserved, ends in six digits of its hash: it depends on the name and never on the order of
    the classes.

    Args:
        classes: Names of the classes.
        reserved: What no class may be called, because the task has a metric of that name.
    """
    names = list(dict.fromkeys(classes))
    plain = {name: re.sub(r"[\s.-]", "_", unicodedata.normalize("NFC", name)) for name in names}
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_folded(plain[name]), []).append(name)
    kept = {
        name
        for same, several in alike.items()
        for name in several
        if re.fullmatch(rf"\w{{1,{LONGEST}}}", plain[name])
        and same not in reserved
        and name == _keeper(several, same, plain)
    }
    used = {*reserved, *(plain[name] for name in kept)}
    for digits in range(_MARK, 65):  # more than six where even the marked names would be equal
        marked = {name: _marked(name, plain[name], digits) for name in names if name not in kept}
        if len(set(marked.values()) - used) == len(marked):
            break
    return {name: marked.get(name, plain[name]) for name in names}


def renamed(names: Mapping[str, str]) -> dict[str, str]:
    """Returns the classes that are called otherwise in metrics, for the record."""
    return {name: part for name, part in names.items() if part != name}


def _keeper(several: list[str], same: str, plain: Mapping[str, str]) -> str | None:
    """Of names that would become equal, the one that keeps its own: written so in small letters, else written so."""
    for written in ([name for name in several if name == same], [name for name in several if name == plain[name]]):
        if written:
            return written[0] if len(written) == 1 else None
    return several[0] if len(several) == 1 else None


def _folded(name: str) -> str:
    """A name without capitals and accents."""
    return "".join(sign for sign in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(sign))


def _marked(name: str, plain: str, digits: int) -> str:
    stem = re.sub(r"\W+", "_", plain)[:LONGEST]
    return f"{stem}_{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:digits]}"
