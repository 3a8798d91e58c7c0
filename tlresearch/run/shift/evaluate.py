"""Evaluates a trained run on further test sets: metrics, their drop, and the distance of the features."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import lightning as L
import numpy as np
from numpy.typing import NDArray

from tlresearch.activations.features import stage_features
from tlresearch.activations.inference import Inference
from tlresearch.activations.store import default_store
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.base import Data, Split
from tlresearch.data.loading import make_loader
from tlresearch.finetuning.schedule import Phase
from tlresearch.run import training
from tlresearch.run.shift.distances import DISTANCES
from tlresearch.run.shift.figure import shift_figure
from tlresearch.run.shift.sets import Shifted, TestSet, source_set, source_split
from tlresearch.tasks.base import Task
from tlresearch.tracking.base import Run

RECORD = "shift/shift.json"
"""Artifact: everything about the shifted sets."""
MOST = 512
"""Largest number of samples of a set, evenly spread, for its distances, whose cost grows with its square."""


class _Evaluator:
    """Evaluates a trained task on sets; frozen stages go through the activation cache."""

    def __init__(
        self,
        trainer: L.Trainer,
        task: Task,
        config: ExperimentConfig,
        phase: Phase,
        say: Callable[[str], None],
    ) -> None:
        self.trainer, self.task, self.config = trainer, task, config
        self.phase, self.say = phase, say
        # A phase that trains every stage has boundary 0, where the cache keeps decoded inputs: features start there.
        self.from_inputs = replace(phase, stages=tuple(range(len(task.backbone.stages))))

    def metrics(self, test_set: TestSet) -> dict[str, float]:
        prefix = training.build_prefix(self.config, test_set.data, self.task.backbone, self.say)
        prefix.enter(self.phase)
        loader = make_loader(
            prefix.splits["val"],
            batch_size=self.config.data.eval_batch_size,
            shuffle=False,
            seed=self.config.seed,
            workers=0 if prefix.serves("val") else self.config.data.workers,
        )
        self.trainer.test(self.task, loader, verbose=False)
        return dict(self.task.results["test"])

    def features(self, test_set: TestSet) -> dict[str, NDArray[Any]]:
        cache, backbone = self.config.cache, self.task.backbone

        def source() -> Split:
            prefix = training.build_prefix(self.config, test_set.data, backbone, self.say)
            prefix.enter(self.from_inputs)
            return prefix.splits["val"]

        samples = len(test_set.split)
        rows = np.unique(np.linspace(0, samples - 1, min(MOST, samples)).round().astype(int)).tolist()
        digest, preprocessing = test_set.data.fingerprint.digest, repr(test_set.data.preprocessing)
        features = stage_features(
            backbone,
            source,
            rows,
            {"data": digest, "preprocessing": preprocessing, "split": "all"},
            how=Inference(cache.precision, cache.memory_format),
            device=training.device(self.config.trainer),
            batch_size=self.config.data.eval_batch_size,
            store=default_store(int(cache.max_gb * 1e9)) if cache.enabled else None,
        )
        return dict(zip(backbone.stage_names, features.by_stage, strict=True))


def evaluate_shift(
    trainer: L.Trainer,
    task: Task,
    config: ExperimentConfig,
    *,
    data: Data,
    sets: Sequence[TestSet],
    phase: Phase,
    metrics: Mapping[str, float],
    say: Callable[[str], None],
) -> tuple[Shifted, ...]:
    """Evaluates a trained task on further test sets.

    Args:
        trainer: The trainer of the run.
        task: The task, with the selected weights.
        config: The config, with `auto` replaced.
        data: The run's own data.
        sets: The sets; if there are none, nothing is done.
        phase: The last phase; its frozen stages are served from the activation cache.
        metrics: The run's metrics, including those of its own test split, or of validation if there is no test.
        say: Receives a line with the reason why something is not served from the cache.
    """
    if not sets:
        return ()
    evaluator = _Evaluator(trainer, task, config, phase, say)
    watched = config.trainer.monitor.partition("/")[2]
    sign = 1 if config.trainer.mode == "max" else -1
    source_value = metrics[f"{source_split(data)}/{watched}"]
    reached = [evaluator.metrics(test_set) for test_set in sets]
    home = next(task.parameters()).device  # where the trainer has left the task; `features` moves it
    source = evaluator.features(source_set(data))
    results = []
    for test_set, values in zip(sets, reached, strict=True):
        target = evaluator.features(test_set)
        shifted = Shifted(
            name=test_set.name,
            samples=len(test_set.split),
            fingerprint=test_set.data.fingerprint.digest,
            metrics=values,
            drop=sign * (source_value - values[watched]),
            distances={
                name: {stage: measure(source[stage], target[stage]) for stage in source}
                for name, measure in DISTANCES.items()
            },
            corruption=test_set.corruption,
            severity=test_set.severity,
        )
        results.append(shifted)
    task.to(home)
    return tuple(results)


def log_shift(run: Run, config: ExperimentConfig, results: Sequence[Shifted], metrics: Mapping[str, float]) -> None:
    """Records fingerprints, all results as JSON, and the figure.

    Args:
        run: The run.
        config: Its config.
        results: The results of `evaluate_shift`.
        metrics: The run's own metrics.
    """
    if not results:
        return
    run.log_text(json.dumps([asdict(shifted) for shifted in results], indent=1), RECORD)
    for shifted in results:
        run.log_dataset(
            f"shift/{shifted.name}",
            shifted.fingerprint,
            source=shifted.name,
            context=f"shift {shifted.name}",
            profile={"samples": shifted.samples, "fingerprint": shifted.fingerprint},
        )
    if config.tracking.figures:
        watched = config.trainer.monitor.partition("/")[2]
        split = "test" if f"test/{watched}" in metrics else "val"
        figure = shift_figure(results, watched, split, metrics[f"{split}/{watched}"])
        run.log_figure(figure, "figures/shift.png")
