"""Data and backbones that the runs of a process share, because no run changes them: built once, used by all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tlresearch.backbones.base import StagedBackbone
from tlresearch.config.parts import any_own
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.base import Data
from tlresearch.data.build import build_data
from tlresearch.finetuning.presets import build_schedule
from tlresearch.tasks.base import Task
from tlresearch.tasks.watched import metric_names


@dataclass
class Shared:
    """The last data and the last frozen backbone that were built. The code that starts several runs holds it.

    The trials of a worker share one. With a head on stored activations, a trial's set-up would otherwise be spent
    mostly on copying a network that never runs.
    """

    _data: dict[str, Data] = field(default_factory=dict)
    _backbones: dict[str, StagedBackbone] = field(default_factory=dict)
    _metrics: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def data(self, config: ExperimentConfig, backbone: StagedBackbone) -> Data:
        """Returns the data of a config, read and checked once."""
        key = f"{config.data} {backbone.preprocessing} {config.seed}"
        if key not in self._data:
            built = build_data(config.data, preprocessing=backbone.preprocessing, seed=config.seed)
            self._data = {key: built}
        return self._data[key]

    def backbone(self, config: ExperimentConfig, build: Callable[[], StagedBackbone]) -> StagedBackbone:
        """Returns the backbone of a config: the shared one, if neither earlier runs nor this one change it."""
        key = f"{config.backbone} {config.task.name}"
        shared = self._backbones.get(key)
        if shared is not None and leaves_as_it_is(config, shared):
            return shared.train()  # like a fresh backbone; a run sets the mode of each stage itself
        built = build()
        if leaves_as_it_is(config, built):
            self._backbones = {key: built}
        return built

    def metric_names(self, config: ExperimentConfig, task: Task, data: Data) -> tuple[str, ...]:
        """Names of the metrics that a task gives in each epoch; see `watched.metric_names`."""
        key = f"{config.task} {data.fingerprint.digest}"
        if key not in self._metrics:
            self._metrics = {key: metric_names(task, data)}
        return self._metrics[key]

    def forget(self) -> None:
        """Drops everything: a failed run may have left data or backbone in any state."""
        self._data.clear()
        self._backbones.clear()


def leaves_as_it_is(config: ExperimentConfig, backbone: StagedBackbone) -> bool:
    """Whether a run changes nothing in a backbone except memory format and device, which every run sets again."""
    schedule, trainer, regularize = build_schedule(config, backbone.stage_names), config.trainer, config.regularize
    frozen = all(
        phase.boundary == len(backbone.stage_names) and phase.frozen_norm == "eval" for phase in schedule.phases
    )
    # A user's own part may change anything, and random weights depend on the run's seed.
    ours = "/" in config.backbone.name and not any_own(config) and not backbone.weights.random_stages
    plain = not (schedule.adapters or trainer.gradient_checkpointing or regularize.l2_sp)
    return frozen and ours and plain and trainer.devices == 1 and regularize.stochastic_depth is None
