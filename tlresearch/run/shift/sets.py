"""Further test sets of a run, built and checked before training."""

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
"""Smallest number of samples for which distances can be measured."""


@dataclass(frozen=True)
class TestSet:
    """A set of samples on which a run is evaluated.

    Attributes:
        name: Its name.
        split: Its samples.
        data: The data with this set as the only split, and the fingerprint of this set.
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
    """The results of a run on a further test set.

    Attributes:
        name: Name of the set.
        samples: Number of its samples.
        fingerprint: Content hash of the set.
        metrics: The task's own metrics.
        drop: Drop of the monitored metric against the source: positive is worse, for either direction of the metric.
        distances: Distance from the source's features, by name of the distance and stage.
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
        """Returns all numbers by their names in MLflow; a distance without a stage is that of the last stage."""
        metrics = {f"shift/{self.name}/{key}": value for key, value in {**self.metrics, "drop": self.drop}.items()}
        for distance, stages in self.distances.items():
            metrics[f"shift/{self.name}/{distance}"] = list(stages.values())[-1]
            metrics |= {f"shift/{self.name}/stages/{stage}/{distance}": value for stage, value in stages.items()}
        return metrics


def source_split(data: Data) -> SplitName:
    """Returns the split with which shifted sets are compared: test, or val if there is no test."""
    return "test" if "test" in data.splits else "val"


def source_set(data: Data) -> TestSet:
    """Returns the run's own test samples as a set."""
    name = source_split(data)
    return _as_set(ShiftedSet(name, "", DataConfig(), False, name), data, data.splits[name])


def build_sets(config: DataConfig, data: Data, *, preprocessing: Any, seed: int) -> tuple[TestSet, ...]:
    """Builds the sets that `data.shift` names.

    Args:
        config: The `data` section.
        data: The run's own data.
        preprocessing: The backbone's preprocessing.
        seed: The run's seed.

    Raises:
        UserError: If a set cannot be read, or its classes differ from those of the run; the text names set and classes.
    """
    built: dict[str, Data] = {}
    sets: list[TestSet] = []
    for declared in shifted_sets(config):
        if declared.entry not in built:
            built[declared.entry] = _build(declared, data, preprocessing, seed) if declared.changed else data
        sets.append(_as_set(declared, built[declared.entry], _samples(declared, built[declared.entry])))
    _warn_of_training_samples(sets, data)
    return tuple(sets)


def _warn_of_training_samples(sets: Sequence[TestSet], data: Data) -> None:
    contents = data.fingerprint.files
    trained = {contents[name] for name in data.splits["train"].names if name in contents}
    for test_set in {test_set.entry: test_set for test_set in sets}.values():
        trained_on = sum(content in trained for content in test_set.data.fingerprint.files.values())
        if trained_on:
            log.warning(
                "data.shift[%s]: %d of its %d samples are training samples of the run, by their content; "
                "its metrics there are no test",
                test_set.entry,
                trained_on,
                len(test_set.split),
            )


def _build(declared: ShiftedSet, data: Data, preprocessing: Any, seed: int) -> Data:
    try:
        shifted = build_data(declared.data, preprocessing=preprocessing, seed=seed)
    except UserError as error:
        raise DataError(f"data.shift[{declared.entry}]: {error}") from None
    if (shifted.classes, shifted.kind) != (data.classes, data.kind):
        raise DataError(f"data.shift[{declared.entry}]: {_mismatch(shifted, data)}")
    return shifted


def _mismatch(shifted: Data, data: Data) -> str:
    """Says in which classes two data sets differ."""
    lacking = [f"'{name}'" for name in data.classes if name not in shifted.classes]
    strange = [f"'{name}'" for name in shifted.classes if name not in data.classes]
    parts = [f"it has no {', '.join(lacking)}"] if lacking else []
    parts += [f"{data.name} has no {', '.join(strange)}"] if strange else []
    parts = parts or [f"they are in another order: {', '.join(shifted.classes)} and {', '.join(data.classes)}"]
    if shifted.kind != data.kind and not (lacking or strange):
        parts = [f"its targets are {shifted.kind}, those of {data.name} {data.kind}"]
    return f"its classes are not those of {data.name}: {'; '.join(parts)}; data.classes chooses those that both have"


def _samples(declared: ShiftedSet, data: Data) -> Split:
    chosen = declared.split or source_split(data)
    if chosen != "all" and chosen not in data.splits:
        raise DataError(
            f"data.shift[{declared.entry}].split: there is no {chosen} split; it has {', '.join(data.splits)}, "
            "and `all` takes every sample"
        )
    parts: Sequence[Split] = [data.splits[name] for name in data.splits if chosen in (name, "all")]
    if not all(part.deterministic for part in parts):
        raise DataError(
            f"data.shift[{declared.entry}].split: the run's own training samples are augmented at random; "
            "take val or test, or set data.augment=none"
        )
    split = join(parts)
    if len(split) < LEAST:
        raise DataError(f"data.shift[{declared.entry}]: has {len(split)} samples; at least {LEAST} are needed")
    if declared.corruption:
        split = CorruptedSplit(split, declared.corruption, declared.severity, name=declared.entry)
    return split


def _as_set(declared: ShiftedSet, data: Data, split: Split) -> TestSet:
    fingerprint = _fingerprint(split, data, f"{declared.corruption} {declared.severity}")
    # The only split is called `val`, because the activation cache serves that split and nothing shuffles it.
    own = replace(data, splits={"val": split}, fingerprint=fingerprint)
    return TestSet(declared.name, split, own, declared.severity, declared.corruption, declared.entry)


def _fingerprint(split: Split, data: Data, corruption: str) -> Fingerprint:
    """Hashes classes, and name, content and target of every sample, but not how the data set was split."""
    digest = hashlib.sha256(json.dumps([*data.classes, corruption]).encode())
    files = {}
    for name, target in zip(split.names, split.targets, strict=True):
        files[name] = data.fingerprint.files.get(name, data.fingerprint.digest)
        digest.update(json.dumps([name, files[name], target.tolist()]).encode())
    return Fingerprint(digest.hexdigest(), files)
