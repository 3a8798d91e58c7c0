"""A recorded run, opened again: its data and weights as they are now, its trained task, what its model predicts.

What is imported here loads no torch: config, metrics and history of a run are read without it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from tlresearch.base.errors import TrackingError
from tlresearch.config.schema import ExperimentConfig
from tlresearch.show.page import Page, Shown
from tlresearch.tracking.records import TRAINED, Inputs, Record, Runs

if TYPE_CHECKING:
    from tlresearch.backbones.base import StagedBackbone
    from tlresearch.data.base import Data, Split
    from tlresearch.serving.predict import Predicted
    from tlresearch.tasks.base import Task
    from tlresearch.tasks.predictor import Predictor


class RecordedRun(Record, Shown):
    """A recorded run. Each part is read, built or loaded when it is first asked for.

    Args:
        record: The run as the store holds it.
        anyway: Whether weights are taken that have another hash than the config asks for.
    """

    def __init__(self, record: Record, *, anyway: bool = False) -> None:
        super().__init__(record.runs, record.stored)
        self._anyway = anyway

    @property
    def page(self) -> Page:
        """Metrics of the selected epoch, split by split."""
        from tlresearch.run.summary import run_page

        return run_page(f"{self.name}: {self.state}, {self.seconds:.1f} s", self.metrics, self.run_id)

    @cached_property
    def config(self) -> ExperimentConfig:
        """The config it ran with, each ``auto`` replaced by what it had become."""
        return self.as_it_was(anyway=self._anyway).config

    @cached_property
    def start(self) -> StagedBackbone:
        """The backbone with the weights that the run started from, as they are now.

        Raises:
            UserError: If they are not there or do not fit; the text names the file.
        """
        from tlresearch.run.process import prepared

        with prepared(self.config):  # random weights are drawn from the seed, as the run drew them
            return present_weights(self.config, self.runs)

    @cached_property
    def data(self) -> Data:
        """The data as it is now.

        Raises:
            UserError: If it is not there or cannot be read; the text names the file.
        """
        return present_data(self.config, self.start)

    @property
    def inputs(self) -> Inputs:
        """What the run would be computed from now."""
        weights, fingerprint = self.start.weights, self.data.fingerprint
        return Inputs(fingerprint.digest, fingerprint.files, weights.source, weights.sha256)

    @cached_property
    def task(self) -> Task:
        """The task with the weights that the run kept.

        Raises:
            TrackingError: If it has not ended, or kept no weights.
            UserError: If data or weights are not here any more.
        """
        if self.state == "running":
            raise TrackingError(f"{self.title} has not ended yet; inspect it when it has")
        if TRAINED not in self.artifacts(TRAINED.partition("/")[0]):
            raise TrackingError(
                f"{self.title} kept no weights, as trials do not: run its config again with "
                "tracking.weights=true, or inspect one of the sweep's final runs"
            )
        with self.file(TRAINED) as file:
            return self._trained(self.config, file)

    @property
    def backbone(self) -> StagedBackbone:
        """The backbone as the run left it."""
        return self.task.backbone

    @cached_property
    def predictor(self) -> Predictor:
        """Its model, which needs neither data nor the weights that the run started from.

        Raises:
            TrackingError: If it has none, or the model is not whole or not trusted.
        """
        from tlresearch.tracking.model import load_predictor

        return cast("Predictor", load_predictor(self.store, self.model_id))

    def predict(
        self, inputs: Sequence[Any] = (), *, texts: Sequence[str] = (), out: str | None = None, batch: int = 32
    ) -> Predicted:
        """Predicts raw samples by its model.

        Args:
            inputs: Files, folders or arrays; for models of texts also tables.
            texts: Texts, for models of texts; two after one another are a pair, for models of pairs.
            out: File for the answers, ``.csv`` or ``.jsonl``, or a folder for pictures.
            batch: Samples that are read and run at once.

        Raises:
            UserError: If it has no model, or none of the samples can be read.
        """
        from tlresearch.serving.predict import predict

        return predict(self.predictor, inputs, name=self.title, texts=texts, out=out, batch=batch)

    def measure(
        self, trained: Path, split: Literal["val", "test"], config: ExperimentConfig | None = None
    ) -> dict[str, float]:
        """Puts trained weights in place and evaluates a split with the task's own metrics.

        What was frozen at the end runs ahead of the validation split, as in training, in its own precision.

        Args:
            trained: A file with the trained weights.
            split: The split.
            config: What to compute by, with everything in it that `auto` had become; its own unless given.

        Returns:
            Metrics without the name of the split.
        """
        from tlresearch.run.process import prepared

        config = config or self.config
        task = self._trained(config, trained)
        with prepared(config):
            return _evaluate(config, self.data, task, split)

    def _trained(self, config: ExperimentConfig, file: Path) -> Task:
        from safetensors.torch import load_file

        from tlresearch.backbones.weights import load_tensors
        from tlresearch.finetuning.presets import build_schedule
        from tlresearch.run.process import prepared
        from tlresearch.tasks.build import build_task

        with prepared(config):
            schedule = build_schedule(config, self.start.stage_names)
            task = build_task(config, copy.deepcopy(self.start), self.data, schedule)
        load_tensors(task, load_file(file), f"{TRAINED} of the run", required=task.changing_state())
        return task


def load(run: str | Record, *, uri: str | None = None, anyway: bool = False) -> RecordedRun:
    """Opens a recorded run.

    Args:
        run: Its id, the beginning of its id, its name, or ``experiment/name``.
        uri: The MLflow store; ``MLFLOW_TRACKING_URI``, else SQLite in our home, unless given.
        anyway: Whether weights are taken that have another hash than the config asks for.

    Raises:
        TrackingError: If there is none, or several; the text lists them.
    """
    return RecordedRun(Runs(uri).find(run), anyway=anyway)


def present_weights(config: ExperimentConfig, runs: Runs) -> StagedBackbone:
    """Builds the backbone of an experiment with its weights as they are now."""
    from tlresearch.backbones.lineage import build_with_lineage
    from tlresearch.tasks.build import needed_end

    return build_with_lineage(config.backbone, runs, needed_end(config.task))


def present_data(config: ExperimentConfig, backbone: StagedBackbone) -> Data:
    """Reads the data of an experiment as it is now, prepared as a backbone takes it."""
    from tlresearch.data.build import build_data

    return build_data(config.data, preprocessing=backbone.preprocessing, seed=config.seed)


def _evaluate(config: ExperimentConfig, data: Data, task: Task, split: Literal["val", "test"]) -> dict[str, float]:
    import lightning as L
    import torch

    from tlresearch.activations.inference import Inference, frozen
    from tlresearch.activations.splits import AheadSplit
    from tlresearch.data.loading import make_loader
    from tlresearch.finetuning.presets import build_schedule
    from tlresearch.run import training

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
