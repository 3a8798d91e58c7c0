"""The one path: an experiment becomes a run. `run`, `sweep`, `reproduce` and the Python API all call `fit`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from tlresearch.backbones.describe import check_size
from tlresearch.backbones.lineage import build_with_lineage
from tlresearch.base import handed
from tlresearch.base.ranks import is_leader
from tlresearch.config.load import Loaded, Overrides, load_experiment, revise
from tlresearch.config.parts import check_own, identities
from tlresearch.config.schema import ExperimentConfig
from tlresearch.finetuning import lora
from tlresearch.finetuning.callback import Listener, RunPrunedError
from tlresearch.finetuning.presets import build_schedule
from tlresearch.finetuning.regularize import set_stochastic_depth
from tlresearch.finetuning.resume import RunFolder
from tlresearch.run import continuing, faults, process, results, training
from tlresearch.run.autotune import Tuned, tune
from tlresearch.run.devices.processes import start_ranks
from tlresearch.run.member import current
from tlresearch.run.progress import RunProgress
from tlresearch.run.shared import Shared
from tlresearch.run.shift.evaluate import evaluate_shift, log_shift
from tlresearch.run.shift.sets import build_sets
from tlresearch.run.summary import run_page
from tlresearch.run.training import Built, Training
from tlresearch.show.page import Page, Shown
from tlresearch.tasks import distillation
from tlresearch.tasks.base import Task
from tlresearch.tasks.build import build_task, needed_end
from tlresearch.tasks.watched import check_watched, directed
from tlresearch.tracking.base import Run, SilentRun
from tlresearch.tracking.records import Runs
from tlresearch.tracking.run import JournalRun, open_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult(Shown):
    """What a run came to.

    Attributes:
        run_id: Its MLflow run.
        name: Its name.
        status: ``finished`` or ``pruned``.
        metrics: Metrics of the selected epoch with the gap between training and validation (``gap/...``), and
            ``test/...`` and ``shift/...`` where the test split and further test sets were evaluated.
        history: Metrics of every epoch.
        epoch: The selected epoch, 0 first.
        seconds: Wall time of this process's part of the run.
        url: Address of the run in the MLflow UI.
        config: The config as recorded: enough to start the run again.
        task: The trained task, with the selected weights.
    """

    run_id: str
    name: str
    status: str
    metrics: dict[str, float]
    history: list[dict[str, float]]
    epoch: int
    seconds: float
    url: str
    config: str
    task: Task

    @property
    def page(self) -> Page:
        """Metrics of the selected epoch, split by split."""
        ended = f"{self.status}, epoch {self.epoch + 1} of {len(self.history)}, {self.seconds:.1f} s"
        return run_page(f"{self.name}: {ended}", self.metrics, self.run_id)


@dataclass(frozen=True)
class Role:
    """What a run is for: a trial or final run of a study, a seed of a group, the repetition of an earlier run.

    Attributes:
        name: Name of the run.
        parent: MLflow run of the study or group; ``None`` for a run of its own.
        tags: Tags that say which member of the study or group it is.
        listener: Told of each epoch; raises `RunPrunedError` to prune the run.
        ended: Told of the result before the end of the run is recorded.
        test: Whether the test split and further test sets are evaluated: never while a study still selects.
        repeats: The run that is repeated; keeps its unfinished rest apart from those of the same config.
        deferred: Whether nobody waits for MLflow: what the run records is shipped beside the training.
        shared: What it has in common with other runs of this process; ``None`` shares nothing.
        watched: Metrics of each epoch that the listener needs, by the key that names them.
    """

    name: str
    parent: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    listener: Listener | None = None
    ended: Callable[[RunResult], None] | None = None
    test: bool = False
    repeats: str = ""
    deferred: bool = False
    shared: Shared | None = None
    watched: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """What beside the config tells an unfinished run from others."""
        return f"{self.parent or ''}{self.repeats}"


def fit(
    experiment: str | Path | Loaded[ExperimentConfig],
    overrides: Overrides = (),
    *,
    role: Role | None = None,
    console: Console | None = None,
) -> RunResult:
    """Runs an experiment.

    A run that was killed goes on where it stopped when the same experiment is fitted again.

    Args:
        experiment: Name under ``experiments/``, path of a YAML file, or a loaded experiment.
        overrides: Values by full key, ``{"optimizer.lr": 1e-3}`` or ``["optimizer.lr=1e-3"]``.
        role: What the run is for; ``None`` is a run of its own, which ends with the test, or part of the trial that
            `tlresearch.sweep` is calling a function for.
        console: Where progress is shown; ``None`` shows none.

    Returns:
        Metrics, history and the trained task.

    Raises:
        UserError: If config, data, weights or store are wrong; one text says all.
    """
    began = time.monotonic()
    if not isinstance(experiment, Loaded):
        loaded = load_experiment(experiment, overrides)
    else:
        loaded = revise(experiment, overrides) if overrides else experiment
    check_own(loaded.config, loaded.source)
    runs = Runs(loaded.config.tracking.uri)
    loaded = _pinned(loaded, runs)
    role = role or _own_role(loaded.config.name)
    while True:
        try:
            return _fit(loaded, role, runs, console, began)
        except faults.SmallerBatchError as error:
            (console.print if console else log.warning)(f"  {error}")
            faults.release(error)  # and the run goes on from its checkpoint


def _own_role(name: str) -> Role:
    """A run of its own; in a function that a study calls, one nested in the trial, which still selects."""
    trial = current()
    if trial is None:
        return Role(name, test=True)
    return Role(
        name, trial.run.reference, listener=lambda report: trial.heard(report.metrics, report.epoch), deferred=True
    )


def discard(experiment: Loaded[ExperimentConfig], role: Role) -> None:
    """Removes the checkpoint of a run that failed and will not be tried again."""
    with _run_folder(_pinned(experiment, Runs(experiment.config.tracking.uri)), role):
        pass  # a folder that is left without an error is removed


def _fit(loaded: Loaded[ExperimentConfig], role: Role, runs: Runs, console: Console | None, began: float) -> RunResult:
    """Runs an experiment once, or goes on with the run that a killed process left."""
    config = directed(loaded.config)
    with (  # the folder goes last: a run that is killed before MLflow has its end is found again
        _run_folder(loaded, role) as folder,
        _open_run(loaded, role, folder) as tracked,
        process.prepared(config),
        faults.named(config, folder, tracked) as watch,
        start_ranks(config.trainer.devices, {"experiment": loaded.recorded, "test": role.test}) as ranks,
    ):
        _record_beginning(tracked, loaded, role, folder, runs, config.trainer.monitor)
        built = _build(config, role, runs)
        resumed = _resume(config, folder, tracked, built, runs)
        config, tuned = _tune(config, built, folder)
        _add_teacher(config, built, runs, tracked)

        progress = RunProgress(console, tracked.name, config.trainer.monitor) if console else None
        listeners = (results.EpochLog(tracked, built.backbone.stage_names), progress, role.listener)
        how = training.prepare(
            config,
            built,
            folder,
            listeners=[listener for listener in listeners if listener],
            watch=watch,
            callbacks=[progress] if progress else [],
            before_checkpoint=tracked.flush,
            say=progress.note if progress else log.info,
            ours=ranks.started_here,
        )
        for logger in how.trainer.loggers:
            logger.log_hyperparams(loaded.flat())
        if not resumed:
            results.log_computation(tracked, training.computation(how.trainer, tuned.settings()), tuned)
        ranks.meet()

        pruned = _train(how, built, folder, tracked)
        metrics, epoch = training.selected(how.plan)
        if not pruned:
            metrics |= _evaluate(how, built, role, tracked)
            if is_leader():
                results.log_outcome(tracked, how, built, metrics, epoch, folder.checkpoint)
            # Only now: an evaluation on a further set replaces the predictions that figures are drawn from.
            metrics |= _evaluate_further(how, built, tracked, metrics, epoch)
        result = RunResult(
            run_id=tracked.run_id,
            name=tracked.name,
            status="pruned" if pruned else "finished",
            metrics=metrics,
            history=how.plan.history,
            epoch=epoch,
            seconds=time.monotonic() - began,
            url=tracked.url,
            config=loaded.recorded,
            task=built.task,
        )
        if role.ended is not None:
            role.ended(result)
    return result


def _pinned(loaded: Loaded[ExperimentConfig], runs: Runs) -> Loaded[ExperimentConfig]:
    """The experiment with runs in place of the names of runs, which may come to mean others."""
    return continuing.pin_continued(distillation.pin_teacher(results.pin_checkpoint(loaded, runs), runs), runs)


def _run_folder(loaded: Loaded[ExperimentConfig], role: Role) -> RunFolder:
    own = identities(loaded.config)  # of parts by dotted path: with other code it is another run
    objects = dict(handed.described())
    return RunFolder(f"{loaded.recorded}\n{role.identity}{own or ''}{objects or ''}")


def _open_run(loaded: Loaded[ExperimentConfig], role: Role, folder: RunFolder) -> JournalRun | SilentRun:
    """Opens the run, or the one a killed process left."""
    config = loaded.config
    if not is_leader():
        return SilentRun(folder.read().get("run_id", ""), role.name)
    return open_run(
        config.tracking,
        experiment=config.tracking.experiment or config.name,
        name=role.name,
        params=loaded.flat(),
        tags=role.tags,
        description=config.description,
        parent=role.parent,
        run_id=folder.read().get("run_id"),
        deferred=role.deferred,
    )


def _record_beginning(
    tracked: JournalRun | SilentRun,
    loaded: Loaded[ExperimentConfig],
    role: Role,
    folder: RunFolder,
    runs: Runs,
    monitor: str,
) -> None:
    """Records config, code and machine, before anything can fail."""
    if not isinstance(tracked, JournalRun):
        return
    if not folder.checkpoint.exists():
        results.log_provenance(tracked, loaded, sys.argv)
        if objects := handed.described():
            tracked.log_dict(objects, "handed_over.json")
            tracked.set_tags({"tlresearch.handed_over": ", ".join(objects)})
    if role.parent is None:
        results.save_run_view(tracked, monitor)
    own = role.parent is None and not role.repeats
    if own and loaded.config.continues is None and not folder.checkpoint.exists():
        continuing.say_anew(loaded, folder, runs)


def _build(config: ExperimentConfig, role: Role, runs: Runs) -> Built:
    """Builds backbone, data, freeze schedule and task."""
    shared = role.shared or Shared()
    backbone = shared.backbone(config, lambda: build_with_lineage(config.backbone, runs, needed_end(config.task)))
    data = shared.data(config, backbone)
    check_size(backbone, data.preprocessing)
    sets = build_sets(config.data, data, preprocessing=backbone.preprocessing, seed=config.seed) if role.test else ()
    schedule = build_schedule(config, backbone.stage_names)
    backbone.recomputing = config.trainer.gradient_checkpointing
    if config.regularize.stochastic_depth is not None:
        set_stochastic_depth(backbone, config.regularize.stochastic_depth)
    if schedule.adapters:
        lora.inject(backbone, **asdict(config.freeze.lora), seed=config.seed)
    task = build_task(config, backbone, data, schedule)
    check_watched(config, shared.metric_names(config, task, data), role.watched)
    return Built(backbone, data, schedule, task, sets)


def _resume(config: ExperimentConfig, folder: RunFolder, tracked: Run, built: Built, runs: Runs) -> bool:
    """Keeps what the next start of this run needs, and says whether this one goes on from a checkpoint of its own.

    A checkpoint made from other data or weights is dropped. A run that goes on from another one gets that one's.
    """
    inputs = {"data": built.data.fingerprint.digest, "weights": built.backbone.weights.sha256}
    before = folder.read()
    if folder.checkpoint.exists() and {key: before.get(key) for key in inputs} != inputs:
        why = "data or weights have changed since the run was interrupted" if before else f"{folder.path} is damaged"
        log.warning("%s: the run starts from the beginning", why)
        folder.forget()
    folder.write(run_id=tracked.reference, name=tracked.name, **inputs)
    resumed = folder.checkpoint.exists()
    if not resumed:  # A checkpoint is written only after the inputs were logged.
        results.log_inputs(tracked, config, built)
        if config.continues is not None and is_leader():
            continuing.take_up(runs.get(config.continues), built, folder, tracked)
    return resumed


def _tune(config: ExperimentConfig, built: Built, folder: RunFolder) -> tuple[ExperimentConfig, Tuned]:
    """Replaces each ``auto`` in the config; a resumed run keeps what it began with."""
    settings = folder.read().get("settings", {})
    config = training.settle(config, settings)
    tuned = tune(config, built.task, built.data, built.schedule, training.device(config.trainer))
    folder.write(settings={**settings, **tuned.settings()})
    return training.settle(config, tuned.settings()), tuned


def _add_teacher(config: ExperimentConfig, built: Built, runs: Runs, tracked: Run) -> None:
    """Gives the task the finished run it learns from, if the config names one."""
    if config.task.teacher is not None:
        built.task.teacher = distillation.build_teacher(config, built.data, runs)
        tracked.set_tags({distillation.TEACHER: config.task.teacher})


def _train(how: Training, built: Built, folder: RunFolder, tracked: Run) -> bool:
    """Trains, puts the selected weights in place, and says whether the run was pruned."""
    pruned = False
    try:
        training.train(how, built.task, folder)
    except RunPrunedError as reason:
        pruned = True
        tracked.mark_pruned(str(reason))
    tracked.set_tags({"tlresearch.prefix_passes": str(how.prefix.passes)})
    how.plan.restore_selected(built.task)
    lora.merge(built.backbone)
    return pruned


def _evaluate(how: Training, built: Built, role: Role, tracked: Run) -> dict[str, float]:
    """Evaluates the test split, or validation again where figures are to show the selected weights."""
    selected_last = training.selected(how.plan)[1] == len(how.plan.history) - 1
    with how.watch.computing("evaluation"):
        if role.test and "test" in built.data.splits:
            results.count_test(tracked)
            return training.evaluate_test(how, built.task)
        if how.config.tracking.figures and not selected_last:
            training.evaluate_validation(how, built.task)
    return {}


def _evaluate_further(
    how: Training, built: Built, tracked: Run, metrics: dict[str, float], epoch: int
) -> dict[str, float]:
    """Evaluates the further test sets, and records what they and the gaps come to."""
    with how.watch.computing("evaluation"):
        shifted = evaluate_shift(
            how.trainer,
            built.task,
            how.config,
            data=built.data,
            sets=built.sets,
            phase=built.schedule.phases[-1],
            metrics=metrics,
            say=how.say,
        )
    if is_leader():
        log_shift(tracked, how.config, shifted, metrics)
    further = training.gaps(metrics)
    for reached in shifted:
        further |= reached.flat()
    tracked.log_metrics(further, step=epoch)
    return further
