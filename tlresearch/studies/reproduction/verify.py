"""Checks a recorded run without training: artifacts, data, weights, and that its model still says what was logged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tlresearch.base.errors import UserError, first_line
from tlresearch.config.parts import identities
from tlresearch.config.schema import ExperimentConfig
from tlresearch.run.recorded import RecordedRun, load
from tlresearch.run.training import settle
from tlresearch.serving.stored import WEIGHTS
from tlresearch.show.elements import Cell, Column, Table, Tone
from tlresearch.show.page import Page, Shown, page_of
from tlresearch.tasks.base import measure_served
from tlresearch.tasks.build import find_task
from tlresearch.tracking.calls import FAILURE
from tlresearch.tracking.manifest import damaged, read_manifest
from tlresearch.tracking.model import load_model
from tlresearch.tracking.records import TRAINED, Inputs, Record
from tlresearch.understand.comparison.differences import input_differences, part_differences

State = Literal["ok", "failed", "not recorded"]

TOLERANCE = 1e-3
"""Largest difference of a metric, absolute and relative: the weights may run in other batches and on another device."""

_TONES: dict[State, Tone] = {"ok": "good", "failed": "bad", "not recorded": "warning"}


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: What.
        state: ``ok``, ``failed``, or ``not recorded`` where the run has nothing to check.
        detail: What was found, or the reason.
    """

    name: str
    state: State
    detail: str


@dataclass(frozen=True)
class Verification(Shown):
    """What the checks of a run came to.

    Attributes:
        run_id: The run.
        name: Its name.
        checks: The checks.
    """

    run_id: str
    name: str
    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        """0 if no check failed, else 1."""
        return int(any(check.state == "failed" for check in self.checks))

    @property
    def page(self) -> Page:
        """A row per check."""
        rows = tuple((check.name, Cell(check.state, tone=_TONES[check.state]), check.detail) for check in self.checks)
        columns = (Column("check"), Column("result"), Column("detail"))
        return page_of("", Table(columns, rows, title=f"{self.name}  run {self.run_id[:8]}"))


def verify(run: str | Record) -> Verification:
    """Checks a recorded run; nothing is trained and nothing is written.

    Args:
        run: The run, or its id, the beginning of its id, or its name.

    Raises:
        UserError: If there is no such run, or it recorded no config that can be read.
    """
    recorded = load(run, anyway=True)
    return Verification(recorded.run_id, recorded.name, tuple(_checks(recorded, recorded.config)))


def _checks(run: RecordedRun, config: ExperimentConfig) -> Iterator[Check]:
    yield _ended(run)
    yield _artifacts(run)
    part: Literal["data", "weights"] = "weights"
    there = False
    try:
        weights = run.start.weights
        yield _same(part, run, Inputs("", {}, weights.source, weights.sha256), weights.source)
        part = "data"
        now = run.inputs
        yield _same(part, run, now, f"{len(now.files)} samples, fingerprint {now.data[:12]}")
        there = True
    except UserError as error:
        yield Check(part, "failed", str(error))
    if run.origin.parts:
        yield _parts(run.origin.parts, config)
    yield _predictions(run)
    if there:
        yield _trained(run, config)
        yield _model(run, config)


def _ended(run: Record) -> Check:
    status = run.stored.info.status
    reason = run.tags.get(FAILURE, "")
    return Check("end of the run", "ok" if status == "FINISHED" else "failed", f"{status.lower()} {reason}".strip())


def _artifacts(run: Record) -> Check:
    manifest = read_manifest(run.store, run.run_id)
    if manifest is None:
        return Check("artifacts", "not recorded", "the run has no list of hashes (artifacts.json)")
    problems = damaged(run.store, run.stored, manifest)
    if problems:
        return Check("artifacts", "failed", "; ".join(problems))
    count = len(manifest.files) + sum(len(files) for files in manifest.models.values())
    return Check("artifacts", "ok", f"{count} files, each with the SHA-256 it was stored with")


def _same(kind: Literal["data", "weights"], run: Record, now: Inputs, about: str) -> Check:
    recorded = run.origin.inputs
    if recorded is None:
        return Check(kind, "not recorded", "the run recorded no fingerprint")
    changed = [change.text for change in input_differences(recorded, now) if change.kind == kind]
    return Check(kind, "failed" if changed else "ok", "; ".join(changed) or about)


def _parts(recorded: Mapping[str, Any], config: ExperimentConfig) -> Check:
    """The code of what the config names by dotted path."""
    changed = [change.text for change in part_differences(recorded, identities(config))]
    sources = ", ".join(f"{part['path']} ({part['source'][:19]})" for part in recorded.values())
    return Check("parts", "failed" if changed else "ok", "; ".join(changed) or sources)


def _predictions(run: Record) -> Check:
    """The predictions sample by sample must come to the accuracy, or mean error, that was logged."""
    items = run.items
    name = "mae" if items is not None and items.measure == "error" else "accuracy"
    metric = _logged(items.split, run).get(name) if items else None
    if items is None or metric is None:
        return Check("predictions", "not recorded", "the run kept no predictions sample by sample")
    if name == "accuracy" and any(";" in item.target for item in items.items):
        return Check("predictions", "not recorded", "their metrics are of single labels, not of samples")
    mean = float(np.mean([items.judged(item) for item in items.items]))
    text = f"{items.split}/{name} of {len(items.items)} samples {mean:.6g}, logged {metric:.6g}"
    # Errors are recorded with six digits, in a unit of any size.
    close = math.isclose(mean, metric, rel_tol=1e-5, abs_tol=1e-6)
    return Check("predictions", "ok" if close else "failed", text)


def _trained(run: RecordedRun, config: ExperimentConfig) -> Check:
    """The weights that were kept, measured again by the task itself."""
    split = _split(run)
    logged = _logged(split, run)
    if not config.tracking.weights or not logged:
        return Check("trained weights", "not recorded", "the run kept no weights, as trials do not")
    try:
        with run.file(TRAINED) as file:
            measured = run.measure(file, split)
    except Exception as error:  # a damaged file raises whatever its broken part leads to
        return Check("trained weights", "failed", f"cannot be used: {first_line(error)}")
    return _agree("trained weights", split, measured, logged, len(run.data.splits[split]))


def _model(run: RecordedRun, config: ExperimentConfig) -> Check:
    """The logged model, given raw samples as whoever serves it gives them.

    It answers in float32. Where the run computed otherwise, it is held against its weights in float32 instead of
    what was logged. Masks and boxes it answers in pixels of the raw image, but metrics are of the size of the input:
    there the task measures the model's own weights.
    """
    if not run.model_ids:
        return Check("model", "not recorded", "the run logged no model, as trials do not")
    split, data = _split(run), run.data
    try:
        logged = _logged(split, run)
        plain = settle(config, {"trainer.precision": "32-true", "cache.precision": "32-true"})
        if plain != config and config.tracking.weights:
            with run.file(TRAINED) as file:
                logged = run.measure(file, split, plain)
        served = load_model(run.store, run.model_id)
        answered = measure_served(find_task(config.task.name), served.predict, data, split, config.data.eval_batch_size)
        if answered is None:
            with run.model() as folder:
                answered = run.measure(folder / WEIGHTS, split, plain)
    except Exception as error:  # a damaged model raises whatever its broken part leads to
        return Check("model", "failed", f"cannot be used: {first_line(error)}")
    return _agree("model", split, answered, logged, len(data.splits[split]))


def _split(run: RecordedRun) -> Literal["val", "test"]:
    return "test" if "test" in run.data.splits else "val"


def _agree(name: str, split: str, found: Mapping[str, float], logged: Mapping[str, float], samples: int) -> Check:
    shared = [key for key in found if key in logged]
    wrong = [key for key in shared if not _close(found[key], logged[key])]
    texts = [f"{split}/{key} {found[key]:.4f}, logged {logged[key]:.4f}" for key in wrong or shared[:1]]
    if not wrong:
        texts.append(f"{len(shared)} metrics of {samples} samples within {TOLERANCE:g}")
    return Check(name, "failed" if wrong or not shared else "ok", "; ".join(texts))


def _logged(split: str, run: Record) -> dict[str, float]:
    """Metrics of the weights that were kept, without the name of the split."""
    prefix = f"{split}/"
    return {key.removeprefix(prefix): value for key, value in run.selected.items() if key.startswith(prefix)}


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (math.isnan(a) and math.isnan(b))
