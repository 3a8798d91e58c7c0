"""A trained run on further test sets: its metrics there, what they lost, and how far the features have moved."""

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
"""Samples of a set whose features are looked at, evenly spread over it: enough for a distance, a bound on its cost."""


class _Evaluator:
    """Evaluates one trained task on sets, frozen stages through the activation cache."""

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
        # Every stage behind boundary 0: then the cache keeps decoded inputs, which is where features start from.
        self.whole = replace(phase, stages=tuple(range(len(task.backbone.stages))))

    def metrics(self, one: TestSet) -> dict[str, float]:
        prefix = training.build_prefix(self.config, one.data, self.task.backbone, self.say)
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

    def features(self, one: TestSet) -> dict[str, NDArray[Any]]:
        cache, backbone = self.config.cache, self.task.backbone

        def source() -> Split:
            prefix = training.build_prefix(self.config, one.data, backbone, self.say)
            prefix.enter(self.whole)
            return prefix.splits["val"]

        rows = np.unique(np.linspace(0, len(one.split) - 1, min(MOST, len(one.split))).round().astype(int)).tolist()
        digest, preprocessing = one.data.fingerprint.digest, repr(one.data.preprocessing)
        found = stage_features(
            backbone,
            source,
            rows,
            {"data": digest, "preprocessing": preprocessing, "split": "all"},
            how=Inference(cache.precision, cache.memory_format),
            device=training.device(self.config.trainer),
            batch_size=self.config.data.eval_batch_size,
            store=default_store(int(cache.max_gb * 1e9)) if cache.enabled else None,
        )
        return dict(zip(backbone.stage_names, found.by_stage, strict=True))


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
        config: The config, with what `auto` has become.
        data: The run's own data.
        sets: The sets; without any, nothing is done.
        phase: The last phase: what is frozen in it is served from the activation cache.
        metrics: The run's metrics, with those of its own test split, else of validation.
        say: Told in one line why something is not served from the cache.
    """
    if not sets:
        return ()
    evaluator = _Evaluator(trainer, task, config, phase, say)
    watched = config.trainer.monitor.partition("/")[2]
    sign = 1 if config.trainer.mode == "max" else -1
    before = metrics[f"{source_split(data)}/{watched}"]
    reached = [evaluator.metrics(one) for one in sets]
    home = next(task.parameters()).device  # where the trainer has put it back
    source = evaluator.features(source_set(data))
    found = []
    for one, values in zip(sets, reached, strict=True):
        target = evaluator.features(one)
        shifted = Shifted(
            name=one.name,
            samples=len(one.split),
            fingerprint=one.data.fingerprint.digest,
            metrics=values,
            drop=sign * (before - values[watched]),
            distances={
                name: {stage: measure(source[stage], target[stage]) for stage in source}
                for name, measure in DISTANCES.items()
            },
            corruption=one.corruption,
            severity=one.severity,
        )
        found.append(shifted)
    task.to(home)
    return tuple(found)


def log_shift(run: Run, config: ExperimentConfig, found: Sequence[Shifted], metrics: Mapping[str, float]) -> None:
    """Records fingerprints, everything as JSON, and the figure.

    Args:
        run: The run.
        config: Its config.
        found: What `evaluate_shift` returned.
        metrics: The run's own metrics.
    """
    if not found:
        return
    run.log_text(json.dumps([asdict(one) for one in found], indent=1), RECORD)
    for one in found:
        run.log_dataset(
            f"shift/{one.name}",
            one.fingerprint,
            source=one.name,
            context=f"shift {one.name}",
            profile={"samples": one.samples, "fingerprint": one.fingerprint},
        )
    if config.tracking.figures:
        watched = config.trainer.monitor.partition("/")[2]
        split = "test" if f"test/{watched}" in metrics else "val"
        figure = shift_figure(found, watched, split, metrics[f"{split}/{watched}"])
        run.log_figure(figure, "figures/shift.png")
