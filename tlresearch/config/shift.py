"""Further test sets of a run: what `data.shift` says, as one data section for each set. No torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from omegaconf import OmegaConf

from tlresearch.base.errors import MissingFileError, nearest
from tlresearch.config.merging import assign, merge
from tlresearch.config.schema import DataConfig

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "gaussian_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "fog",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
)
"""Kinds that `data/corruptions.py` has a function for."""
SEVERITIES = (1, 2, 3, 4, 5)
SPLITS = ("train", "val", "test", "all")
_OWN = ("split", "corruptions")
# What only concerns training, and what would make a test set smaller than the set is.
_WHOLE = {
    "shift": {},
    "augment": "none",
    "transforms": [],
    "mixup": 0.0,
    "cutmix": 0.0,
    "labels_per_class": None,
    "train_fraction": 1.0,
}


@dataclass(frozen=True)
class ShiftedSet:
    """One further test set.

    Attributes:
        name: Its name in metrics: ``shift/<name>/accuracy``.
        entry: The entry of `data.shift` it is from.
        data: The data section it is built from.
        changed: Whether that differs from the run's own; else it is the run's own samples, corrupted.
        split: ``train``, ``val``, ``test`` or ``all``; ``None`` is the split the run itself is tested on.
        corruption: Kind, of `CORRUPTIONS`; empty for none.
        severity: Strength of the corruption, 1 to 5; 0 without one.
    """

    name: str
    entry: str
    data: DataConfig
    changed: bool
    split: str | None = None
    corruption: str = ""
    severity: int = 0


def shifted_sets(data: DataConfig) -> list[ShiftedSet]:
    """Returns the sets of a section that passed `shift_problems`, in its order; one per corruption and severity."""
    found = []
    for entry, values in data.shift.items():
        changes = {key: value for key, value in values.items() if key not in _OWN}
        one = ShiftedSet(entry, entry, _section(data, entry, changes, []), bool(changes), values.get("split"))
        wanted = values.get("corruptions")
        if wanted is None:
            found.append(one)
            continue
        for kind in wanted["kinds"]:
            for severity in wanted.get("severities", SEVERITIES):
                name = f"{entry}_{kind}_{severity}"
                found.append(dataclasses.replace(one, name=name, corruption=kind, severity=severity))
    return found


def shift_problems(data: DataConfig, check: Callable[[DataConfig], Iterable[str]]) -> Iterator[str]:
    """Yields one line per mistake in `data.shift` that can be seen without the data.

    Args:
        data: The data section.
        check: Returns what is wrong with a data section, shifted sets aside.
    """
    found = list(_mistakes(data))
    yield from found
    if found:
        return
    known = set(check(data))
    for one in {one.entry: one for one in shifted_sets(data)}.values():
        lines = [line.removeprefix("data.") for line in check(one.data) if line not in known]
        yield from (f"data.shift[{one.entry}].{line}" for line in lines)


def missing_shift(data: DataConfig, find: Callable[[str], object], sources: Sequence[str]) -> Iterator[str]:
    """Yields one line per folder or file of a shifted set that is not here.

    Args:
        data: A data section, right or wrong.
        find: Finds a folder or file by its name.
        sources: The data sources that read files of the user's.
    """
    if list(_mistakes(data)):
        return
    for root, entry in {one.data.root: one.entry for one in shifted_sets(data) if one.data.name in sources}.items():
        if root is not None and root != data.root:
            try:
                find(root)
            except MissingFileError as error:
                yield str(error).replace("data.root", f"data.shift[{entry}].root", 1)


def _mistakes(data: DataConfig) -> Iterator[str]:
    for entry, values in data.shift.items():
        key = f"data.shift[{entry}]"
        if not re.fullmatch(r"[\w.-]+", entry):
            yield f"{key}: a name is made of letters, digits and _ . -, as it is part of the names of metrics"
        if not values:
            yield f"{key}: says nothing; give what differs from `data`, such as root, or corruptions"
        split = values.get("split")
        if split is not None and split not in SPLITS:
            yield f"{key}.split: must be one of {', '.join(SPLITS)}, but got {split!r}"
        if "shift" in values:
            yield f"{key}.shift: a shifted set has none of its own"
        if "corruptions" in values:
            yield from _corruption_problems(f"{key}.corruptions", values["corruptions"])
        problems: list[str] = []
        _section(data, entry, {name: value for name, value in values.items() if name not in _OWN}, problems)
        yield from problems


def _corruption_problems(key: str, wanted: Any) -> Iterator[str]:
    if not isinstance(wanted, Mapping) or not wanted.get("kinds") or not set(wanted) <= {"kinds", "severities"}:
        yield f"{key}: must be {{kinds: [...], severities: [...]}}, where severities are 1 to 5, but got {wanted!r}"
        return
    for what, known in (("kinds", CORRUPTIONS), ("severities", SEVERITIES)):
        given = wanted.get(what, [])
        if not isinstance(given, list):
            yield f"{key}.{what}: must be a list, but got {given!r}"
            continue
        for value in given:
            if value not in known:
                close = nearest(str(value), [str(each) for each in known])
                yield f"{key}.{what}: {value!r} is unknown{close}; known: {', '.join(map(str, known))}"


def _section(data: DataConfig, entry: str, changes: Mapping[str, Any], problems: list[str]) -> DataConfig:
    """The run's data section with what differs in place; problems are added to the list."""
    values: dict[str, Any] = {**dataclasses.asdict(data), **_WHOLE}
    for key, value in changes.items():
        assign(values, str(key), value)
    tree = OmegaConf.structured(DataConfig)
    merge(tree, DataConfig, values, f"data.shift[{entry}].", problems)
    return cast(DataConfig, OmegaConf.to_object(tree))
