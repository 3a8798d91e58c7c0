"""More epochs for a finished run: another run takes up the state that it ended with, and trains on.

A run keeps that state, weights and moments after its last epoch, as an artifact. A longer schedule is another run, with
the epochs of the first in front of its own; nothing is written into a run that has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from tlresearch.base.errors import ConfigError, TrackingError, UserError
from tlresearch.base.files import write
from tlresearch.config.load import Loaded, revise
from tlresearch.config.schema import ExperimentConfig
from tlresearch.finetuning.presets import build_schedule
from tlresearch.finetuning.resume import RunFolder, read_checkpoint, read_folder
from tlresearch.run.results import CHECKPOINT
from tlresearch.run.training import Built
from tlresearch.tracking import values
from tlresearch.tracking.base import Run
from tlresearch.tracking.records import CONFIG, RESOLVED, Record, Runs
from tlresearch.tracking.store import StoreAwayError

log = logging.getLogger(__name__)

CONTINUES = "tlresearch.continues"
"""Tag of a run: the finished run that it goes on from."""
_MAY_DIFFER = (
    *("continues", "freeze.epochs", "freeze.probe_epochs", "freeze.phases", "trainer.early_stopping"),
    *("trainer.checkpoint", "data.workers", "cache.max_gb"),
)
"""Beginnings of the keys that may differ from the run that is gone on from: its length, and what changes no result."""


def pin_continued(loaded: Loaded[ExperimentConfig], runs: Runs) -> Loaded[ExperimentConfig]:
    """The experiment with the id of the run that it goes on from, however that was named.

    Raises:
        UserError: If there is no such run, it has not finished, or differs in more than its length.
    """
    name = loaded.config.continues
    if name is None:
        return loaded
    run = runs.find(name)
    status, short = run.stored.info.status, run.short
    if status != "FINISHED":
        raise UserError(f"continue: run {short} has not finished ({status.lower()}); its own command goes on with it")
    try:
        recorded = run.loaded
    except TrackingError:
        raise UserError(f"continue: run {short} has no {CONFIG}: it is none of ours") from None
    differing = _differing(recorded.flat(), loaded.flat())
    if differing:
        raise ConfigError(
            [
                f"continue: {key} is {new} but was {old} in run {short}; only the length of the schedule may differ "
                f"(backbone.checkpoint={short} starts another run from its weights)"
                for key, (old, new) in differing.items()
            ],
            loaded.source,
        )
    return revise(loaded, {"continues": run.run_id})


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Values of both under every key that differs, without those that may differ."""
    keys = [key for key in dict.fromkeys([*old, *new]) if not key.startswith(_MAY_DIFFER)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def take_up(run: Record, built: Built, folder: RunFolder, tracked: Run) -> None:
    """Puts the state of the finished run where this one looks for a checkpoint, and records its epochs.

    Args:
        run: The finished run.
        built: What it is made of.
        folder: Where this run looks for a checkpoint.
        tracked: This run.

    Raises:
        UserError: If the finished run kept no state, came from other data or weights, or is as long already.
    """
    short, tags = run.short, run.tags
    data = f"{built.data.name} {built.data.fingerprint.digest[:16]}"
    for what, before, now in (
        ("data", tags.get("tlresearch.data"), data),
        ("weights", tags.get("tlresearch.weights_sha256"), built.backbone.weights.sha256),
    ):
        if before != now:
            raise UserError(
                f"continue: the {what} are no longer those of run {short}; leave continue out to begin anew"
            )
    try:
        with run.file(CHECKPOINT) as file:
            content = file.read_bytes()
    except Exception:
        raise UserError(
            f"continue: run {short} kept no state to go on from (tracking.checkpoint; trials keep none); "
            "leave continue out to begin anew"
        ) from None
    write(folder.checkpoint, content)
    state = read_checkpoint(folder.checkpoint)
    if state is None:
        raise UserError(f"continue: the state that run {short} kept is damaged; leave continue out to begin anew")
    history = state["callbacks"]["FreezeScheduleCallback"]["history"]
    if built.schedule.max_epochs <= len(history):
        folder.forget()
        raise UserError(f"freeze.epochs: run {short} has {len(history)} epochs; to go on from it give more")
    folder.write(settings={key.removeprefix(RESOLVED): tags[key] for key in tags if key.startswith(RESOLVED)})
    tracked.set_tags({CONTINUES: run.run_id})
    for epoch, metrics in enumerate(history):
        tracked.log_metrics(metrics, step=epoch)
    _say(run, built, history)


def _say(run: Record, built: Built, history: Sequence[Mapping[str, float]]) -> None:
    """Says whether the result is that of a run which had all epochs from the start."""
    before = build_schedule(run.loaded.config, built.backbone.stage_names)
    length = built.schedule.max_epochs
    parts = before.parts_with(built.schedule, history)
    if parts is None:
        what = f"as a run of {length} epochs from the start"
    else:
        what = (
            f"but a run of {length} epochs from the start would have trained otherwise from epoch {parts + 1} on "
            "(the constant, step and exponential scheduler do not depend on the length; phases may)"
        )
    log.warning("goes on from run %s behind its %d epochs, %s", run.short, len(history), what)


def say_anew(loaded: Loaded[ExperimentConfig], folder: RunFolder, runs: Runs) -> None:
    """Says so if there is an earlier run that this one could be mistaken to go on with.

    That is a finished one that was the same but shorter, or one of this name that was killed and had another config.
    """
    config = loaded.config
    for left in folder.others(config.name):
        log.warning(
            "run %s of this name was interrupted, and stays unfinished: its config was another. "
            "Its own command goes on with it, or remove %s",
            *(str(read_folder(left).get("run_id"))[:8], left),
        )
    now = {key: values.text(value) for key, value in loaded.flat().items()}
    try:
        earlier = runs.finished(config.name, _LOOKED_AT)
    except StoreAwayError:  # a line that helps is not worth a run that trains without its store
        return
    for run in earlier:
        before = run.params
        shorter = before.get("freeze.epochs", "").isdigit() and int(before["freeze.epochs"]) < config.freeze.epochs
        if shorter and not _differing(before, {key: now[key] for key in now if key in before}):
            log.warning(
                "run %s is the same with %s epochs: this one begins anew; continue=%s goes on from it",
                *(run.short, before["freeze.epochs"], run.short),
            )
            return


_LOOKED_AT = 20
"""Finished runs of the same name that are looked at, the newest first."""
