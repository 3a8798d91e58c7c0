"""Further test sets, built beside the data of a run: checked before anything trains."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tlresearch.base.errors import DataError, UserError
from tlresearch.config.schema import DataConfig
from tlresearch.config.shift import ShiftedSet, shifted_sets
from tlresearch.data.base import Data, Fingerprint, Split, SplitName
from tlresearch.data.build import build_data
from tlresearch.data.corruptions import CorruptedSplit
from tlresearch.data.joined import join

log = logging.getLogger(__name__)

LEAST = 4
"""Samples without which no distance can be measured."""


@dataclass(frozen=True)
class TestSet:
    """A set of samples that a run is evaluated on.

    Attributes:
        name: Its name.
        split: Its samples.
        data: The data it is from; its fingerprint is that of this set.
        severity: Strength of the corruption, 1 to 5; 0 for none.
        corruption: Kind of the corruption; empty for none.
        entry: The entry of `data.shift` that named it.
    """

    __test__ = False

    name: str
    split: Split
    data: Data
    severity: int = 0
    corruption: str = ""
    entry: str = ""


@dataclass(frozen=True)
class Shifted:
    """What a run reaches on one further test set.

    Attributes:
        name: Name of the set.
        samples: Number of its samples.
        fingerprint: Content hash of the set.
        metrics: The task's own metrics.
        drop: What the monitored metric has lost against the source: positive is worse, whichever way it should go.
        distances: Distance from the source's features by name and stage.
        corruption: Kind of the corruption; empty for none.
        severity: Its strength, 1 to 5; 0 for none.
    """

    name: str
    samples: int
    fingerprint: str
    metrics: dict[str, float]
    drop: float
    distances: dict[str, dict[str, float]] = field(default_factory=dict)
    corruption: str = ""
    severity: int = 0

    def flat(self) -> dict[str, float]:
        """All numbers by the name they are logged under; a distance without a stage is that of the last one."""
        found = {f"shift/{self.name}/{key}": value for key, value in {**self.metrics, "drop": self.drop}.items()}
        for distance, stages in self.distances.items():
            found[f"shift/{self.name}/{distance}"] = list(stages.values())[-1]
            found |= {f"shift/{self.name}/stages/{stage}/{distance}": value for stage, value in stages.items()}
        return found


def source_split(data: Data) -> SplitName:
    """The split that the shifted sets are held against: test, or val where there is none."""
    return "test" if "test" in data.splits else "val"


def source_set(data: Data) -> TestSet:
    """The run's own test samples."""
    name = source_split(data)
    return _as_set(ShiftedSet(name, "", DataConfig(), False, name), data, data.splits[name])


def build_sets(config: DataConfig, data: Data, *, preprocessing: Any, seed: int) -> tuple[TestSet, ...]:
    """Builds the sets that `data.shift` names.

    Args:
        config: The `data` section.
        data: The run's own data.
        preprocessing: The backbone's.
        seed: The run's seed.

    Raises:
        UserError: If a set cannot be read, or its classes are not those of the run; the text names set and classes.
    """
    built: dict[str, Data] = {}
    found: list[TestSet] = []
    for wanted in shifted_sets(config):
        if wanted.entry not in built:
            built[wanted.entry] = _build(wanted, data, preprocessing, seed) if wanted.changed else data
        found.append(_as_set(wanted, built[wanted.entry], _samples(wanted, built[wanted.entry])))
    _warn_of_training_samples(found, data)
    return tuple(found)


def _warn_of_training_samples(sets: Sequence[TestSet], data: Data) -> None:
    contents = data.fingerprint.files
    trained = {contents[name] for name in data.splits["train"].names if name in contents}
    for one in {one.entry: one for one in sets}.values():
        again = sum(content in trained for content in one.data.fingerprint.files.values())
        if again:
            log.warning(
                "data.shift[%s]: %d of its %d samples are among those the run is trained with, by their content; "
                "what it reaches there is no test",
                one.entry,
                again,
                len(one.split),
            )


def _build(wanted: ShiftedSet, data: Data, preprocessing: Any, seed: int) -> Data:
    try:
        found = build_data(wanted.data, preprocessing=preprocessing, seed=seed)
    except UserError as error:
        raise DataError(f"data.shift[{wanted.entry}]: {error}") from None
    if (found.classes, found.kind) != (data.classes, data.kind):
        raise DataError(f"data.shift[{wanted.entry}]: {_mismatch(found, data)}")
    return found


def _mismatch(found: Data, data: Data) -> str:
    """Says in which classes two sets differ."""
    lacking = [f"'{name}'" for name in data.classes if name not in found.classes]
    strange = [f"'{name}'" for name in found.classes if name not in data.classes]
    parts = [f"it has no {', '.join(lacking)}"] if lacking else []
    parts += [f"{data.name} has no {', '.join(strange)}"] if strange else []
    parts = parts or [f"they are in another order: {', '.join(found.classes)} and {', '.join(data.classes)}"]
    if found.kind != data.kind and not (lacking or strange):
        parts = [f"its targets are {found.kind}, those of {data.name} {data.kind}"]
    return f"its classes are not those of {data.name}: {'; '.join(parts)}; data.classes chooses those that both have"


def _samples(wanted: ShiftedSet, data: Data) -> Split:
    chosen = wanted.split or source_split(data)
    if chosen != "all" and chosen not in data.splits:
        raise DataError(
            f"data.shift[{wanted.entry}].split: there is no {chosen} split; it has {', '.join(data.splits)}, "
            "and `all` takes every sample"
        )
    parts: Sequence[Split] = [data.splits[name] for name in data.splits if chosen in (name, "all")]
    if not all(part.deterministic for part in parts):
        raise DataError(
            f"data.shift[{wanted.entry}].split: the run's own training samples are augmented at random; "
            "take val or test, or set data.augment=none"
        )
    split = join(parts)
    if len(split) < LEAST:
        raise DataError(f"data.shift[{wanted.entry}]: has {len(split)} samples; at least {LEAST} are needed")
    if wanted.corruption:
        split = CorruptedSplit(split, wanted.corruption, wanted.severity, name=wanted.entry)
    return split


def _as_set(wanted: ShiftedSet, data: Data, split: Split) -> TestSet:
    mark = _fingerprint(split, data, f"{wanted.corruption} {wanted.severity}")
    # As `val`: that is the split that the activation cache serves and nothing shuffles.
    own = replace(data, splits={"val": split}, fingerprint=mark)
    return TestSet(wanted.name, split, own, wanted.severity, wanted.corruption, wanted.entry)


def _fingerprint(split: Split, data: Data, corruption: str) -> Fingerprint:
    """Hashes classes, then name, content and target of every sample; how the rest of the set was split is no matter."""
    digest = hashlib.sha256(json.dumps([*data.classes, corruption]).encode())
    files = {}
    for name, target in zip(split.names, split.targets, strict=True):
        files[name] = data.fingerprint.files.get(name, data.fingerprint.digest)
        digest.update(json.dumps([name, files[name], target.tolist()]).encode())
    return Fingerprint(digest.hexdigest(), files)
