"""The one path: an experiment becomes a run. `run`, `sweep`, `reproduce` and the Python API all call `fit`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.lineage import build_with_lineage
from tlresearch.base.ranks import is_leader
from tlresearch.config.load import Loaded, Overrides, load_experiment, revise
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.base import Data
from tlresearch.data.build import build_data
from tlresearch.finetuning import lora
from tlresearch.finetuning.callback import Listener, RunPrunedError
from tlresearch.finetuning.presets import build_schedule
from tlresearch.finetuning.regularize import set_stochastic_depth
from tlresearch.finetuning.resume import RunFolder
from tlresearch.run import faults, results, training
from tlresearch.run.autotune import tune
from tlresearch.run.devices.processes import others
from tlresearch.run.progress import RunProgress
from tlresearch.shift.evaluate import evaluate_shift, log_shift
from tlresearch.shift.sets import build_sets
from tlresearch.tasks import distillation
from tlresearch.tasks.base import Task
from tlresearch.tasks.build import build_task, directed, needed_end
from tlresearch.tracking.run import JournalRun, Run, SilentRun, open_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
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


@dataclass(frozen=True)
class Trial:
    """What makes a run part of a study, or the repetition of an earlier run.

    Attributes:
        parent: MLflow run of the study; ``None`` for a run of its own.
        name: Name of the run.
        tags: Tags that say which trial it is.
        listener: Told of each epoch; raises `RunPrunedError` to prune the run.
        ended: Told of the result before the end of the run is recorded.
        test: Whether the test split is evaluated: never while a study still selects.
        repeats: The run that is repeated; keeps its unfinished rest apart from those of the same config.
        deferred: Whether nobody waits for MLflow: what the run records is shipped beside the training.
    """

    parent: str | None
    name: str
    tags: dict[str, str]
    listener: Listener | None = None
    ended: Callable[[RunResult], None] | None = None
    test: bool = False
    repeats: str = ""
    deferred: bool = False

    @property
    def identity(self) -> str:
        """What beside the config tells an unfinished run from others."""
        return f"{self.parent or ''}{self.repeats}"


def fit(
    experiment: str | Path | Loaded[ExperimentConfig],
    overrides: Overrides = (),
    *,
    trial: Trial | None = None,
    console: Console | None = None,
) -> RunResult:
    """Runs an experiment.

    A run that was killed goes on where it stopped when the same experiment is fitted again.

    Args:
        experiment: Name under ``experiments/``, path of a YAML file, or a loaded experiment.
        overrides: Values by full key, ``{"optimizer.lr": 1e-3}`` or ``["optimizer.lr=1e-3"]``.
        trial: What makes the run part of a study.
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
    loaded = _pinned(loaded)
    while True:
        try:
            return _fit(loaded, trial, console, began)
        except faults.SmallerBatchError as error:
            (console.print if console else log.warning)(f"  {error}")
            faults.release(error)  # and the run goes on from its checkpoint


def discard(experiment: Loaded[ExperimentConfig], trial: Trial) -> None:
    """Removes the checkpoint of a run that failed and will not be tried again."""
    with _run_folder(_pinned(experiment), trial):
        pass  # a folder that is left without an error is removed


def _pinned(loaded: Loaded[ExperimentConfig]) -> Loaded[ExperimentConfig]:
    """The experiment with runs in place of the names of runs, which may come to mean others."""
    return distillation.pin_teacher(results.pin_checkpoint(loaded))


def _run_folder(loaded: Loaded[ExperimentConfig], trial: Trial | None) -> RunFolder:
    return RunFolder(f"{loaded.recorded}\n{trial.identity if trial else ''}")


def _fit(loaded: Loaded[ExperimentConfig], trial: Trial | None, console: Console | None, began: float) -> RunResult:
    """Runs an experiment once, or goes on with the run that a killed process left."""
    config = directed(loaded.config)
    final = trial is None or trial.test
    with (  # the folder goes last: a run that is killed before MLflow has its end is found again
        _run_folder(loaded, trial) as folder,
        _open_run(loaded, trial, folder) as tracked,
        faults.named(config, folder, tracked),
        others(config.trainer.devices, {"experiment": loaded.recorded, "final": final}) as ranks,
    ):
        if is_leader():
            if not folder.checkpoint.exists():
                results.log_provenance(tracked, loaded.recorded, sys.argv)  # before anything can fail
            if isinstance(tracked, JournalRun) and (trial is None or trial.parent is None):
                results.save_run_view(tracked)
        training.prepare_process(config)
        backbone = build_with_lineage(config.backbone, partial(results.fetch, config.tracking), needed_end(config.task))
        data = build_data(config.data, preprocessing=backbone.preprocessing, seed=config.seed)
        shifts = build_sets(config.data, data, preprocessing=backbone.preprocessing, seed=config.seed) if final else ()
        schedule = build_schedule(config, backbone.stage_names)
        backbone.recomputing = config.trainer.gradient_checkpointing
        if config.regularize.stochastic_depth is not None:
            set_stochastic_depth(backbone, config.regularize.stochastic_depth)
        if schedule.adapters:
            lora.inject(backbone, **asdict(config.freeze.lora), seed=config.seed)
        task = build_task(config, backbone, data, schedule)
        remembered = _remembered(folder, tracked, data, backbone)
        goes_on = folder.checkpoint.exists()
        if not goes_on:  # else it has been recorded: nothing is unrecorded when a checkpoint is written
            results.log_inputs(tracked, data, backbone, schedule, task)
        config = training.settle(config, remembered)
        tuned = tune(config, task, data, schedule, training.device(config.trainer))
        config = training.settle(config, tuned.settings())
        folder.write(settings={**remembered, **tuned.settings()})
        if config.task.teacher is not None:
            task.teacher = distillation.build_teacher(config, data, partial(results.fetch, config.tracking))
            tracked.set_tags({distillation.TEACHER: config.task.teacher})

        progress = RunProgress(console, tracked.name, config.trainer.monitor) if console else None
        epoch_log = results.EpochLog(tracked, backbone.stage_names)
        listeners = [listener for listener in (epoch_log, progress, trial and trial.listener) if listener]
        say = progress.note if progress else log.info
        prefix = training.build_prefix(config, data, backbone, say)
        plan = training.build_plan(config, schedule, task, prefix, listeners)
        trainer = training.build_trainer(config, plan, task, folder, tracked, progress, ours=ranks.started_here)
        if not goes_on:
            results.log_computation(tracked, training.computation(trainer, tuned.settings()), tuned)
        pruned = ""
        ranks.meet()
        try:
            training.train(trainer, task, prefix, config, folder)
        except RunPrunedError as reason:
            pruned = str(reason)
            tracked.mark_pruned(pruned)
        tracked.set_tags({"tlresearch.prefix_passes": str(prefix.passes)})
        plan.restore_selected(task)
        lora.merge(backbone)
        metrics, epoch = training.selected(plan)
        if not pruned:
            if final and "test" in data.splits:
                results.count_test(tracked)
                metrics |= training.evaluate_test(trainer, task, prefix, config)
            elif config.tracking.figures and epoch < len(plan.history) - 1:
                training.look_again(trainer, task, prefix, config)
            if is_leader():
                results.log_outcome(tracked, config, task, data, plan, metrics, epoch)
            last = schedule.phases[-1]
            shifted = evaluate_shift(
                trainer, task, config, data=data, sets=shifts, phase=last, metrics=metrics, say=say
            )
            if is_leader():
                log_shift(tracked, config, shifted, metrics)
            further = training.gaps(metrics) | {name: value for one in shifted for name, value in one.flat().items()}
            tracked.log_metrics(further, step=epoch)
            metrics |= further
        result = RunResult(
            run_id=tracked.run_id,
            name=tracked.name,
            status="pruned" if pruned else "finished",
            metrics=metrics,
            history=plan.history,
            epoch=epoch,
            seconds=time.monotonic() - began,
            url=tracked.url,
            config=loaded.recorded,
            task=task,
        )
        if trial is not None and trial.ended is not None:
            trial.ended(result)
    return result


def _open_run(loaded: Loaded[ExperimentConfig], trial: Trial | None, folder: RunFolder) -> JournalRun | SilentRun:
    """Opens the run, or the one a killed process left."""
    config = loaded.config
    if not is_leader():
        return SilentRun(folder.read().get("run_id", ""), trial.name if trial else config.name)
    return open_run(
        config.tracking,
        experiment=config.tracking.experiment or config.name,
        name=trial.name if trial else config.name,
        params=loaded.flat(),
        tags=trial.tags if trial else {},
        description=config.description,
        parent=trial.parent if trial else None,
        run_id=folder.read().get("run_id"),
        deferred=trial is not None and trial.deferred,
    )


def _remembered(folder: RunFolder, tracked: Run, data: Data, backbone: StagedBackbone) -> dict[str, str | int]:
    """Keeps what the next start needs, and returns the settings of the last one, which a resumed run keeps.

    A checkpoint made from other data or weights is dropped.
    """
    inputs = {"data": data.fingerprint.digest, "weights": backbone.weights.sha256}
    before = folder.read()
    if folder.checkpoint.exists() and {key: before.get(key) for key in inputs} != inputs:
        why = "data or weights have changed since the run was interrupted" if before else f"{folder.path} is damaged"
        log.warning("%s: the run starts from the beginning", why)
        folder.forget()
    folder.write(run_id=tracked.reference, **inputs)
    settings: dict[str, str | int] = before.get("settings", {})
    return settings
