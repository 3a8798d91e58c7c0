"""What stands for a class in the name of a metric, such as ``car`` in ``map_car``."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

LONGEST = 100
"""Characters of a class's name that a metric's name keeps; MLflow takes 250 for the whole key."""
_MARK = 6  # hexadecimal digits that tell apart names which would become equal


def metric_names(classes: Iterable[str], *, reserved: Collection[str] = ()) -> dict[str, str]:
    r"""Returns a part of a metric's name for each class: distinct, of letters of any language, digits and ``_``.

    Spaces, dashes and dots become ``_``. A name that loses anything else (``C++``), is too long, would be equal to
    another class's, or is reserved, ends in six digits of its hash: it depends on the name and never on the order of
    the classes.

    Args:
        classes: Names of the classes.
        reserved: What no class may be called, because the task has a metric of that name.
    """
    names = list(dict.fromkeys(classes))
    plain = {name: re.sub(r"[\s.-]", "_", unicodedata.normalize("NFC", name)) for name in names}
    taken = Counter(plain.values())
    kept = {
        name
        for name in names
        if re.fullmatch(rf"\w{{1,{LONGEST}}}", plain[name])
        and plain[name] not in reserved
        # Of several that would become equal, the one that was written so keeps its name.
        and (taken[plain[name]] == 1 or plain[name] == name)
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


def _marked(name: str, plain: str, digits: int) -> str:
    stem = re.sub(r"\W+", "_", plain)[:LONGEST]
    return f"{stem}_{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:digits]}"
