"""Checks a recorded run without training: artifacts, data, weights, and that its model still says what was logged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.lineage import TRAINED
from tlresearch.base.errors import UserError, first_line
from tlresearch.config.load import Loaded, MissingFilesError
from tlresearch.config.parts import identities
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.base import Data
from tlresearch.run.training import settle
from tlresearch.serving.stored import WEIGHTS
from tlresearch.show.elements import Cell, Column, Table, Tone
from tlresearch.show.page import Page, Shown, page_of
from tlresearch.show.terminal import show
from tlresearch.studies.reproduction.present import (
    as_it_was,
    inputs_of,
    measure,
    present_data,
    present_weights,
    recorded_config,
)
from tlresearch.tasks.base import measure_served
from tlresearch.tasks.build import find_task
from tlresearch.tracking.calls import FAILURE
from tlresearch.tracking.items import read_items
from tlresearch.tracking.manifest import damaged, local, model_address, read_manifest
from tlresearch.tracking.model import load_model, model_ids
from tlresearch.tracking.records import find_run
from tlresearch.tracking.run import PRUNED_MARK
from tlresearch.tracking.store import Store, connect
from tlresearch.understand.comparison.differences import Inputs, input_differences, part_differences, read_record

if TYPE_CHECKING:
    from mlflow.entities import Run

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


def verify_run(run: str, *, console: Console | None = None) -> Verification:
    """Checks a recorded run; nothing is trained and nothing is written.

    Args:
        run: Run id, unique beginning of one, or run name.
        console: Where the table of checks is shown.

    Raises:
        UserError: If there is no such run, or it recorded no config that can be read.
    """
    store = connect()
    found = find_run(store, run)
    run_id, name = found.info.run_id, (found.info.run_name or "").removeprefix(PRUNED_MARK)
    try:
        loaded = recorded_config(store, run_id, name)
    except MissingFilesError as error:
        loaded = error.loaded  # the check of data or weights says so
    verification = Verification(run_id, name, tuple(_checks(store, found, loaded)))
    if console is not None:
        show(console, verification.page)
    return verification


def _checks(store: Store, run: Run, loaded: Loaded[ExperimentConfig]) -> Iterator[Check]:
    record = read_record(store, run)
    recorded = record.inputs
    yield _ended(run)
    yield _artifacts(store, run)
    backbone: StagedBackbone | None = None
    data: Data | None = None
    try:
        config = as_it_was(loaded, run, record, anyway=True).config
    except MissingFilesError as error:
        config = error.loaded.config  # the check of data or weights says so
    try:
        backbone = present_weights(config)
        data = present_data(config, backbone)
    except UserError as error:
        yield Check("data" if backbone else "weights", "failed", str(error))
    if backbone:
        weights = backbone.weights
        now = inputs_of(data, backbone) if data else Inputs("", {}, weights.source, weights.sha256)
        yield _same("weights", recorded, now, weights.source)
    if backbone and data:
        yield _same("data", recorded, now, f"{len(now.files)} samples, fingerprint {now.data[:12]}")
    if record.parts:
        yield _parts(record.parts, config)
    yield _predictions(store, run)
    if backbone and data:
        yield _trained(store, run, config, data, backbone)
        yield _model(store, run, config, data, backbone)


def _ended(run: Run) -> Check:
    status = run.info.status
    reason = run.data.tags.get(FAILURE, "")
    return Check("end of the run", "ok" if status == "FINISHED" else "failed", f"{status.lower()} {reason}".strip())


def _artifacts(store: Store, run: Run) -> Check:
    manifest = read_manifest(store, run.info.run_id)
    if manifest is None:
        return Check("artifacts", "not recorded", "the run has no list of hashes (artifacts.json)")
    problems = damaged(store, run, manifest)
    if problems:
        return Check("artifacts", "failed", "; ".join(problems))
    count = len(manifest.files) + sum(len(files) for files in manifest.models.values())
    return Check("artifacts", "ok", f"{count} files, each with the SHA-256 it was stored with")


def _same(kind: Literal["data", "weights"], recorded: Inputs | None, now: Inputs, about: str) -> Check:
    if recorded is None:
        return Check(kind, "not recorded", "the run recorded no fingerprint")
    changed = [change.text for change in input_differences(recorded, now) if change.kind == kind]
    return Check(kind, "failed" if changed else "ok", "; ".join(changed) or about)


def _parts(recorded: Mapping[str, Any], config: ExperimentConfig) -> Check:
    """The code of what the config names by dotted path."""
    changed = [change.text for change in part_differences(recorded, identities(config))]
    sources = ", ".join(f"{part['path']} ({part['source'][:19]})" for part in recorded.values())
    return Check("parts", "failed" if changed else "ok", "; ".join(changed) or sources)


def _predictions(store: Store, run: Run) -> Check:
    """The predictions sample by sample must come to the accuracy, or mean error, that was logged."""
    items = read_items(store, run.info.run_id)
    name = "mae" if items is not None and items.measure == "error" else "accuracy"
    metric = _logged(items.split if items else "", run).get(name)
    if items is None or metric is None:
        return Check("predictions", "not recorded", "the run kept no predictions sample by sample")
    if name == "accuracy" and any(";" in item.target for item in items.items):
        return Check("predictions", "not recorded", "their metrics are of single labels, not of samples")
    mean = float(np.mean([items.judged(item) for item in items.items]))
    text = f"{items.split}/{name} of {len(items.items)} samples {mean:.6g}, logged {metric:.6g}"
    # Errors are recorded with six digits, in a unit of any size.
    close = math.isclose(mean, metric, rel_tol=1e-5, abs_tol=1e-6)
    return Check("predictions", "ok" if close else "failed", text)


def _trained(store: Store, run: Run, config: ExperimentConfig, data: Data, backbone: StagedBackbone) -> Check:
    """The weights that were kept, measured again by the task itself."""
    split: Literal["val", "test"] = "test" if "test" in data.splits else "val"
    logged = _logged(split, run)
    address = f"{run.info.artifact_uri}/{TRAINED}"
    if not config.tracking.weights or not logged:
        return Check("trained weights", "not recorded", "the run kept no weights, as trials do not")
    try:
        with local(store, address) as file:
            found = measure(config, data, backbone, file, split)
    except Exception as error:  # a damaged file raises whatever its broken part leads to
        return Check("trained weights", "failed", f"cannot be used: {first_line(error)}")
    return _agree("trained weights", split, found, logged, len(data.splits[split]))


def _model(store: Store, run: Run, config: ExperimentConfig, data: Data, backbone: StagedBackbone) -> Check:
    """The logged model, given raw samples as whoever serves it gives them.

    It answers in float32. Where the run computed otherwise, it is held against its weights in float32 instead of
    what was logged. Masks and boxes it answers in pixels of the raw image, but metrics are of the size of the input:
    there the task measures the model's own weights.
    """
    models = model_ids(run)
    if not models:
        return Check("model", "not recorded", "the run logged no model, as trials do not")
    split: Literal["val", "test"] = "test" if "test" in data.splits else "val"
    try:
        logged = _logged(split, run)
        plain = _in_float32(config)
        if plain != config and config.tracking.weights:
            with local(store, f"{run.info.artifact_uri}/{TRAINED}") as file:
                logged = measure(plain, data, backbone, file, split)
        served = load_model(store, models[-1])
        found = measure_served(find_task(config.task.name), served.predict, data, split, config.data.eval_batch_size)
        if found is None:
            with local(store, model_address(store, models[-1])) as folder:
                found = measure(plain, data, backbone, folder / "artifacts" / "model" / WEIGHTS, split)
    except Exception as error:  # a damaged model raises whatever its broken part leads to
        return Check("model", "failed", f"cannot be used: {first_line(error)}")
    return _agree("model", split, found, logged, len(data.splits[split]))


def _in_float32(config: ExperimentConfig) -> ExperimentConfig:
    return settle(config, {"trainer.precision": "32-true", "cache.precision": "32-true"})


def _agree(name: str, split: str, found: Mapping[str, float], logged: Mapping[str, float], samples: int) -> Check:
    shared = [key for key in found if key in logged]
    wrong = [key for key in shared if not _close(found[key], logged[key])]
    texts = [f"{split}/{key} {found[key]:.4f}, logged {logged[key]:.4f}" for key in wrong or shared[:1]]
    if not wrong:
        texts.append(f"{len(shared)} metrics of {samples} samples within {TOLERANCE:g}")
    return Check(name, "failed" if wrong or not shared else "ok", "; ".join(texts))


def _logged(split: str, run: Run) -> dict[str, float]:
    """Metrics of the weights that were kept, without the name of the split."""
    prefix = f"selected/{split}/"
    return {key.removeprefix(prefix): value for key, value in run.data.metrics.items() if key.startswith(prefix)}


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (math.isnan(a) and math.isnan(b))
