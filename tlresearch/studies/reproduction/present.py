"""Data and weights of a recorded run as they are now, to be held against what it was computed from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning as L
import torch
from safetensors.torch import load_file

from tlresearch.activations.inference import Inference, frozen
from tlresearch.activations.splits import AheadSplit
from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.lineage import TRAINED, build_with_lineage
from tlresearch.backbones.weights import load_tensors
from tlresearch.base.errors import TrackingError
from tlresearch.config.load import Loaded, load_text, revise
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.base import Data, Split
from tlresearch.data.build import build_data
from tlresearch.data.loading import make_loader
from tlresearch.finetuning.presets import build_schedule
from tlresearch.run import results, training
from tlresearch.run.process import prepared
from tlresearch.tasks.base import Task
from tlresearch.tasks.build import build_task, needed_end
from tlresearch.tracking import records
from tlresearch.tracking.manifest import read_text
from tlresearch.tracking.store import Store
from tlresearch.understand.comparison.differences import Inputs, Record

if TYPE_CHECKING:
    from mlflow.entities import Run

RESOLVED = "resolved."  # begins the tags that say what `auto` became, followed by the option's full key


def recorded_config(store: Store, run_id: str, name: str) -> Loaded[ExperimentConfig]:
    """Loads the config that a run recorded; what the new one records goes to the store it was found in.

    Raises:
        TrackingError: If the run recorded none: it is the parent of others, or failed at its start.
        ConfigError: If the config is not valid any more; the text names the keys.
    """
    text = read_text(store, run_id, records.CONFIG)
    if text is None:
        raise TrackingError(
            f"run {run_id[:8]} ({name}) has no {records.CONFIG}: of a sweep or a group of seeds name one of its runs "
            "(tlresearch ui shows them); a run that failed at its start cannot be repeated"
        )
    return load_text(text, {"tracking.uri": None}, source=f"run {run_id[:8]} ({name})")


def as_it_was(
    loaded: Loaded[ExperimentConfig], run: Run, record: Record, *, anyway: bool = False
) -> Loaded[ExperimentConfig]:
    """Fixes what the config left to the machine: number format and threads as the run had them.

    Args:
        loaded: The recorded config.
        run: The run.
        record: What it came from.
        anyway: Weights with another hash than the config asks for are taken too.
    """
    tags = run.data.tags.items()
    fixed: dict[str, Any] = {key.removeprefix(RESOLVED): value for key, value in tags if key.startswith(RESOLVED)}
    if loaded.config.trainer.threads is None and record.computation:
        fixed["trainer.threads"] = record.computation["threads"]
    # Marks of ours say what that run was part of, which its repetition is not.
    fixed["tracking.tags"] = {k: v for k, v in loaded.config.tracking.tags.items() if not k.startswith("tlresearch.")}
    if anyway and "://" not in (loaded.config.backbone.weights or ""):
        fixed["backbone.weights_sha256"] = None
    return revise(loaded, fixed)


def present_weights(config: ExperimentConfig) -> StagedBackbone:
    """Builds the backbone with its weights as they are now.

    Raises:
        UserError: If they are not there or do not fit; the text names the file.
    """
    return build_with_lineage(config.backbone, partial(results.fetch, config.tracking), needed_end(config.task))


def present_data(config: ExperimentConfig, backbone: StagedBackbone) -> Data:
    """Reads the data as it is now.

    Raises:
        UserError: If it is not there or cannot be read; the text names the file.
    """
    return build_data(config.data, preprocessing=backbone.preprocessing, seed=config.seed)


def inputs_of(data: Data, backbone: StagedBackbone) -> Inputs:
    """What a run on this data, from these weights, would record."""
    weights, fingerprint = backbone.weights, data.fingerprint
    return Inputs(fingerprint.digest, fingerprint.files, weights.source, weights.sha256)


def load_trained(task: Task, file: Path) -> None:
    """Puts into a task the weights that its run kept.

    Args:
        task: The task, built from the run's config.
        file: The artifact with the weights.

    Raises:
        WeightsError: If they are not those that the run could change.
    """
    load_tensors(task, load_file(file), f"{TRAINED} of the run", required=task.changing_state())


def measure(
    config: ExperimentConfig, data: Data, backbone: StagedBackbone, trained: Path, split: Literal["val", "test"]
) -> dict[str, float]:
    """Puts the weights a run kept in place and evaluates a split with the task's own metrics.

    What was frozen at the end runs ahead of the validation split, as in training, in its own precision.

    Args:
        config: The config, with everything in it that `auto` had become.
        data: The data.
        backbone: The backbone with the weights the run started from; it takes those it ended with.
        trained: The artifact with the trained weights.
        split: The split.

    Returns:
        Metrics without the name of the split.
    """
    with prepared(config):
        task = build_task(config, backbone, data, build_schedule(config, backbone.stage_names))
        load_trained(task, trained)
        return _evaluate(config, data, task, split)


def _evaluate(config: ExperimentConfig, data: Data, task: Task, split: Literal["val", "test"]) -> dict[str, float]:
    last = build_schedule(config, task.backbone.stage_names).phases[-1]
    part: Split = data.splits[split]
    boundary = last.boundary
    if split == "val" and boundary and last.frozen_norm == "eval" and not training.no_cache(config):
        how = Inference(config.cache.precision, config.cache.memory_format)
        part = AheadSplit(part, frozen(task.backbone, how, torch.device("cpu"), stop=boundary), boundary)
    task.arrange(config.trainer.memory_format)
    trainer = L.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=cast(Any, config.trainer.precision),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = make_loader(
        part,
        batch_size=config.data.eval_batch_size,
        shuffle=False,
        seed=config.seed,
        workers=config.data.workers,
    )
    evaluate = trainer.test if split == "test" else trainer.validate
    evaluate(task, loader, verbose=False)
    return task.results[split]
