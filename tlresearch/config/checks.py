"""What no single field can say: combinations that are impossible, and files that are missing. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from tlresearch.base.errors import MissingFileError, nearest
from tlresearch.base.paths import find_data, find_weights
from tlresearch.config.catalogue import FILE_SOURCES, LOSSES, SOURCES, TASKS
from tlresearch.config.device_checks import device_problems
from tlresearch.config.distill_checks import distill_problems
from tlresearch.config.parts import is_own
from tlresearch.config.published_checks import reference_problems
from tlresearch.config.sampling_checks import sampling_problems
from tlresearch.config.schema import (
    BackboneConfig,
    DataConfig,
    ExperimentConfig,
    FreezeConfig,
    LoraConfig,
    PhaseConfig,
    TaskConfig,
    type_of,
)
from tlresearch.config.shift import missing_shift, shift_problems
from tlresearch.config.sweep_schema import SweepConfig

NUMBERED = ("image_csv", "npz", "audio_manifest", "text_table", "hf_dataset")
"""Sources that read `data.targets`."""

CONDITION = re.compile(r"^\s*(?P<key>[\w.]+)\s*(?P<sign>==|!=|>=|<=|>|<)\s*(?P<value>\S+)\s*$")
"""A dimension's condition, such as ``freeze.unfreeze_depth > 0``."""


def problems(config: ExperimentConfig | SweepConfig) -> list[str]:
    """Returns one line per problem, each beginning with the key it is about."""
    if isinstance(config, SweepConfig):
        return list(_sweep(config))
    return [
        *_data(config.data),
        *shift_problems(config.data, _data),
        *_backbone(config.backbone),
        *freeze_problems(config.freeze),
        *_loss(config.task),
        *_together(config),
        *device_problems(config),
        *distill_problems(config),
        *sampling_problems(config),
        *reference_problems(config),
    ]


def missing(config: ExperimentConfig | SweepConfig) -> list[str]:
    """Returns one line per file that is named but not there; such a config is right, and can run elsewhere."""
    return list(_missing(config)) if isinstance(config, ExperimentConfig) else []


def _missing(config: ExperimentConfig) -> Iterator[str]:
    weights = config.backbone.weights or ""
    is_file = "/" in weights or re.search(r"\.(pth|pt|th|bin|ckpt|safetensors)$", weights)
    wanted = [
        (find_data, config.data.root if config.data.name in FILE_SOURCES and not config.data.url else None),
        (find_weights, weights if is_file and "://" not in weights else None),
    ]
    for find, name in wanted:
        if name is not None:
            try:
                find(name)
            except MissingFileError as error:
                yield str(error)
    yield from missing_shift(config.data, find_data, FILE_SOURCES)


def _data(data: DataConfig) -> Iterator[str]:
    if data.name in FILE_SOURCES and data.root is None:
        yield f"data.root: is needed by `data.name: {data.name}`"
    if data.name == "torchvision" and data.dataset is None:
        yield "data.dataset: is needed by `data.name: torchvision`, such as CIFAR10"
    if data.name == "hf_dataset" and data.dataset is None:
        yield "data.dataset: is needed by `data.name: hf_dataset`: a name on the hub, or a saved folder"
    if data.name not in ("torchvision", "hf_dataset") and data.dataset is not None:
        yield f"data.dataset: is only read by torchvision and hf_dataset, but data.name is {data.name}"
    if data.files and data.name not in ("text_table", "text_lines", "conll"):
        yield f"data.files: is only read by text_table, text_lines and conll, but data.name is {data.name}"
    if data.targets and data.name in SOURCES and data.name not in NUMBERED:
        yield f"data.targets: is only read by {', '.join(NUMBERED)} and your own, but data.name is {data.name}"
    if data.text_columns and (len(data.text_columns) != 2 or len(set(data.text_columns)) < 2):
        yield f"data.text_columns: names the two columns of a pair of texts, but got {data.text_columns}"
    if data.text_columns and data.name in SOURCES and data.name not in ("text_table", "hf_dataset"):
        yield f"data.text_columns: is only read by text_table and hf_dataset, but data.name is {data.name}"
    if len(set(data.targets)) < len(data.targets):
        yield f"data.targets: each column once, but got {data.targets}"
    if data.labels_per_class is not None and data.train_fraction < 1:
        yield "data.labels_per_class: give it or data.train_fraction, not both"
    if len(set(data.classes)) < len(data.classes):
        yield f"data.classes: each class once, but got {data.classes}"
    if data.transforms and data.augment != "none":
        yield "data.augment: give it or data.transforms, not both"
    if len(data.classes) == 1:
        yield f"data.classes: at least two classes are needed, but got {data.classes}"
    if data.url is not None:
        yield from _url(data)
    if data.resize is not None and data.image_size is not None and data.resize < data.image_size:
        yield f"data.resize: must be at least data.image_size ({data.image_size}), but got {data.resize}"
    if data.val_fraction + data.test_fraction >= 1:
        yield (
            "data.test_fraction: with data.val_fraction it must leave samples to train on, but they add up to "
            f"{data.val_fraction + data.test_fraction:g}"
        )


def _url(data: DataConfig) -> Iterator[str]:
    if not data.url or not data.url.startswith(("http://", "https://")):
        yield f"data.url: must begin with http:// or https://, but got '{data.url}'"
    if data.sha256 is None or not re.fullmatch(r"[0-9a-fA-F]{64}", data.sha256):
        yield f"data.sha256: is needed for data.url, 64 hexadecimal digits, but got {data.sha256!r}"
    if data.root is None or data.root.startswith(("/", "~")) or ".." in data.root.split("/"):
        yield f"data.root: data from a URL go into the data directory; give a name there, but got {data.root!r}"


def _backbone(backbone: BackboneConfig) -> Iterator[str]:
    weights = backbone.weights
    if weights is not None and "://" in weights and backbone.weights_sha256 is None:
        yield "backbone.weights_sha256: is needed for a URL, so that what is downloaded can be checked"
    if backbone.weights_sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", backbone.weights_sha256):
        yield f"backbone.weights_sha256: must be 64 hexadecimal digits, but got '{backbone.weights_sha256}'"
    if "." in backbone.name and "/" not in backbone.name and weights not in ("default", None):
        yield "backbone.weights: a backbone of your own loads its weights itself; pass the file in backbone.options"
    if backbone.side is not None and not is_own(backbone):
        yield f"backbone.side: is only read by an nn.Module by dotted path; {backbone.name} takes data.image_size"
    if backbone.checkpoint is not None and weights not in ("default", None):
        yield "backbone.checkpoint: replaces backbone.weights; give one of them"


def freeze_problems(freeze: FreezeConfig) -> Iterator[str]:
    """Yields what is wrong with a freeze section."""
    yield from _depth("freeze.unfreeze_depth", freeze.unfreeze_depth)
    needs = {"depth": "unfreeze_depth", "surgical": "stages", "phases": "phases"}
    for schedule, key in needs.items():
        value = getattr(freeze, key)
        given = value is not None and value != []
        if freeze.schedule == schedule and not given:
            yield f"freeze.{key}: is needed by `freeze.schedule: {schedule}`"
        if freeze.schedule != schedule and given:
            yield f"freeze.{key}: is only read by `freeze.schedule: {schedule}`, but the schedule is {freeze.schedule}"
    if freeze.probe_epochs is not None:
        if freeze.schedule != "lp_ft":
            yield f"freeze.probe_epochs: is only read by `freeze.schedule: lp_ft`, but it is {freeze.schedule}"
        elif freeze.probe_epochs >= freeze.epochs:
            probe = freeze.probe_epochs
            yield f"freeze.probe_epochs: must be less than freeze.epochs ({freeze.epochs}), but got {probe}"
    if freeze.schedule == "lp_ft" and freeze.epochs < 2:
        yield f"freeze.epochs: `lp_ft` has two phases and needs at least 2 epochs, but got {freeze.epochs}"
    adapters = freeze.schedule == "lora" or any("@lora" in phase.parameters for phase in freeze.phases)
    if freeze.lora != LoraConfig() and not adapters:
        yield (
            "freeze.lora: is only read by `freeze.schedule: lora` and by phases with `parameters: ['@lora']`, "
            f"but the schedule is {freeze.schedule}"
        )
    for index, phase in enumerate(freeze.phases):
        yield from phase_problems(f"freeze.phases[{index}]", phase)


def phase_problems(key: str, phase: PhaseConfig) -> Iterator[str]:
    """Yields what is wrong with a phase."""
    yield from _depth(f"{key}.unfreeze_depth", phase.unfreeze_depth)
    ways = [phase.unfreeze_depth is not None, bool(phase.stages), bool(phase.parameters)]
    if sum(ways) != 1:
        yield f"{key}: give exactly one of unfreeze_depth, stages and parameters, but got {sum(ways)}"
    if (phase.epochs is None) == (phase.fraction is None):
        yield f"{key}.epochs: give it or fraction, exactly one of the two"
    if phase.at_end == "restore_best" and phase.until is None:
        yield f"{key}.at_end: restore_best needs `until`, whose metric says what is best"
    if not phase.head and phase.unfreeze_depth == 0:
        yield f"{key}.head: nothing is trained with unfreeze_depth 0 and without the head"
    for stage, rate in phase.stage_lrs.items():
        if not rate > 0:
            yield f"{key}.stage_lrs[{stage}]: must be above 0, but got {rate}"


def _depth(key: str, depth: int | str | None) -> Iterator[str]:
    if isinstance(depth, str) and depth != "all":
        yield f"{key}: must be a number of stages or 'all', but got '{depth}'"


def _loss(task: TaskConfig) -> Iterator[str]:
    if task.loss is None:
        return
    part = LOSSES.part(task.loss.name)
    if part is not None and task.name in TASKS and task.name not in part.of:
        fitting = [name for name, other in LOSSES.parts.items() if task.name in other.of]
        has = f"it has {', '.join(fitting)}" if fitting else "give the dotted path of one, or leave it out"
        yield f"task.loss: {task.loss.name} is for {' and '.join(part.of)}, but task.name is {task.name}; {has}"
    if task.label_smoothing and not LOSSES.is_default(task.loss.name):
        yield f"task.label_smoothing: is read by the task's own loss only, but task.loss is {task.loss.name}"


def _together(config: ExperimentConfig) -> Iterator[str]:
    if config.freeze.schedule == "scratch" and (config.backbone.weights or config.backbone.checkpoint):
        yield "backbone.weights: `freeze.schedule: scratch` trains from random weights; set backbone.weights=null"
    if config.data.text_columns and config.backbone.pairs is None:
        yield "backbone.pairs: say how the pairs of data.text_columns are read: joint, concat or cosine"
    if config.regularize.ema and any(phase.at_end == "restore_best" for phase in config.freeze.phases):
        yield "regularize.ema: an average cannot go on from weights that a phase restores; use at_end: keep"
    if config.freeze.schedule == "lora" and config.regularize.l2_sp:
        yield "regularize.l2_sp: the pretrained weights do not move with `freeze.schedule: lora`; set it to 0"
    if config.scheduler.warmup_epochs >= config.freeze.epochs:
        yield (
            f"scheduler.warmup_epochs: must be less than freeze.epochs ({config.freeze.epochs}), "
            f"but got {config.scheduler.warmup_epochs:g}"
        )
    if config.continues is not None and config.seeds:
        yield "continues: a group of seeds cannot go on from one run; give each seed a run of its own"
    if config.trainer.on_oom == "halve" and config.trainer.devices > 1:
        yield "trainer.on_oom: halve is for one device, whose batch is all of the step's"
    for key, metric in watched(config):
        if not re.fullmatch(r"(train|val)/\w+", metric):
            cure = (
                "the test split is never looked at while training" if metric.startswith("test/") else "such as val/loss"
            )
            yield f"{key}: must be train/<name> or val/<name> ({cure}), but got '{metric}'"


def watched(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    """Yields the metrics that a run watches, by the key that names each."""
    if config.trainer.monitor:
        yield "trainer.monitor", config.trainer.monitor
    if config.trainer.early_stopping is not None:
        yield "trainer.early_stopping.metric", config.trainer.early_stopping.metric
    for index, phase in enumerate(config.freeze.phases):
        if phase.until is not None:
            yield f"freeze.phases[{index}].until.metric", phase.until.metric


def _sweep(sweep: SweepConfig) -> Iterator[str]:
    if not sweep.experiment and not sweep.function:
        yield "experiment: is needed: the experiment that is varied, such as hymenoptera/linear_probe"
    if not sweep.space:
        yield "space: is empty; name at least one key of the experiment with its range or choices"
    if sweep.function:
        yield from _function(sweep)
    elif sweep.objective.metric and not sweep.objective.metric.startswith("val/"):
        yield f"objective.metric: selection uses validation only: val/<name>, but got '{sweep.objective.metric}'"
    for key, dimension in sweep.space.items():
        path = f"space[{key}]"
        try:
            type_of(key)
        except KeyError as error:
            if not sweep.function:
                yield f"{path}: {error.args[0]}"
                continue
        if dimension.choices and (dimension.low is not None or dimension.high is not None):
            yield f"{path}: give choices, or low and high, not both"
        elif not dimension.choices:
            yield from _bounds(path, dimension.low, dimension.high, dimension.step, dimension.log)
        if dimension.when is not None:
            yield from _condition(f"{path}.when", dimension.when, sweep)
    for index, point in enumerate(sweep.enqueue):
        for key in point:
            if key not in sweep.space:
                yield f"enqueue[{index}].{key}: is not in the space{nearest(str(key), list(sweep.space))}"


def _function(sweep: SweepConfig) -> Iterator[str]:
    """What of a sweep is only for experiments, and what its own function has to say itself."""
    for key, given in (
        ("experiment", sweep.experiment),
        ("overrides", sweep.overrides),
        ("baselines", sweep.baselines),
        ("confirm.top", sweep.confirm.top),
    ):
        if given:
            yield f"{key}: is for an experiment, but the sweep is over the function {sweep.function}"
    for key, value in (("metric", sweep.objective.metric), ("direction", sweep.objective.direction)):
        if not value:
            yield f"objective.{key}: is needed, since {sweep.function} is a function of your own"
    for key, dimension in sweep.space.items():
        if "all" in (dimension.high, *dimension.choices):
            yield f"space[{key}]: a function has no backbone to count stages of; give the number, as in depths(3)"


def _bounds(path: str, low: float | None, high: Any, step: float | None, log: bool) -> Iterator[str]:
    if low is None or high is None:
        yield f"{path}: needs low and high, or choices"
        return
    if isinstance(high, str) and high != "all":
        yield f"{path}.high: must be a number or 'all', but got '{high}'"
    elif not isinstance(high, str) and not low <= high:
        yield f"{path}.high: must be at least low ({low:g}), but got {high:g}"
    if log and low <= 0:
        yield f"{path}.low: must be above 0 on a logarithmic scale, but got {low:g}"
    if log and step is not None:
        yield f"{path}.step: a logarithmic scale has no step"


def _condition(path: str, text: str, sweep: SweepConfig) -> Iterator[str]:
    match = CONDITION.match(text)
    if match is None:
        yield f"{path}: must compare a key with a value, such as 'freeze.unfreeze_depth > 0', but got '{text}'"
    elif match["key"] not in sweep.space:
        yield f"{path}: '{match['key']}' is not in the space{nearest(match['key'], list(sweep.space))}"
    elif match["sign"] not in ("==", "!="):
        values = [*sweep.space[match["key"]].choices, yaml.safe_load(match["value"])]
        odd = [value for value in values if value != "all" and (isinstance(value, bool) or not _is_number(value))]
        if odd:
            yield f"{path}: '{match['sign']}' compares numbers, but '{odd[0]}' is none; use == or !="


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
