"""Which pretrained backbone suits a data set: every candidate scored at every boundary, without training."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from tlresearch.activations.store import default_store
from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.build import build_backbone
from tlresearch.base.errors import UserError, one_line
from tlresearch.base.paths import data_folder, is_yaml
from tlresearch.config.load import Loaded, load_experiment, load_text
from tlresearch.config.schema import ExperimentConfig
from tlresearch.run.process import prepared
from tlresearch.run.recorded import present_data
from tlresearch.run.training import device
from tlresearch.tracking.family import open_family
from tlresearch.tracking.run import JournalRun, open_run
from tlresearch.understand.ranking import scores
from tlresearch.understand.ranking.features import FeaturePass, Features
from tlresearch.understand.ranking.result import Ranked, Ranking, boundary_figure
from tlresearch.understand.ranking.source_head import source_probabilities

log = logging.getLogger(__name__)

SMALL = (
    "torchvision/squeezenet1_1",
    "torchvision/shufflenet_v2_x1_0",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_large",
    "torchvision/mnasnet1_0",
    "torchvision/regnet_y_400mf",
    "torchvision/efficientnet_b0",
    "torchvision/resnet18",
)
"""What ``all-small`` stands for: ImageNet models of torchvision with fewer than 12 million parameters."""

PLAIN = {"data.augment": "none", "data.mixup": 0, "data.cutmix": 0, "backbone.checkpoint": None, "backbone.options": {}}
"""What an experiment's own values give way to: a score is of samples as they are."""


def rank(
    what: str,
    candidates: Sequence[str] = SMALL,
    overrides: Sequence[str] = (),
    *,
    weights: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
    by: str = "logme",
    say: Callable[[str], None] = log.info,
) -> Ranking:
    """Scores pretrained backbones on a data set and records the result in MLflow.

    LogME, H-score, LEEP and NCE are computed on the training split; kNN and the probe learn from it and are measured on
    the validation split. The test split is not looked at.

    Args:
        what: An experiment, or a folder of images or an ``.npz`` file under the data directory.
        candidates: Names of backbones.
        overrides: ``key=value`` for the experiment.
        weights: Weights of single candidates by name, where they are not the default ones; ``"null"`` for random ones.
        options: `backbone.options` of single candidates by name, as YAML; those of the experiment are of its own.
        by: Method the result is ordered by.
        say: Told in one line what is being done.

    Raises:
        UserError: If the data cannot be used. Backbones that cannot be had are in the result with the reason.
    """
    files, settings = weights or {}, options or {}
    for option, named in (("--weights", files), ("--options", settings)):
        for stranger in [name for name in named if name not in candidates]:
            raise UserError(f"{option}: '{stranger}' is none of the backbones that are ranked: {', '.join(candidates)}")
    plain = {**PLAIN, "backbone.name": "small_cnn", "backbone.weights": None, "backbone.weights_sha256": None}
    config = _load(what, [*overrides, *_texts(plain)])
    with open_family(
        config.config,
        config.config.tracking,
        f"rank {what}",
        params=_shown({**config.flat(), "ranking.backbones": list(candidates), "ranking.by": by}),
        tags={"tlresearch.ranking": "all"},
    ) as parent:
        ranked: list[Ranked] = []
        passes, samples = 0, (0, 0)
        for name in dict.fromkeys(candidates):
            say(name)
            try:
                chosen = files.get(name, "default"), settings.get(name, "{}")
                loaded, backbone = _candidate(what, overrides, name, *chosen)
            except UserError as error:
                ranked.append(Ranked(name, problem=one_line(error)))
                continue
            runner = _runner(loaded.config, backbone)
            with _open_member(loaded, name, parent) as child:
                ranked.append(replace(_rank_one(loaded.config, backbone, runner), run_id=child.run_id))
                _record(child, ranked[-1])
            passes += runner.passes
            samples = (len(runner.data.splits["train"]), len(runner.data.splits["val"]))
        ordered = sorted(ranked, key=lambda one: (bool(one.problem), -one.scores.get(by, -math.inf)))
        ranking = Ranking(what, by, samples, tuple(ordered), passes, parent.run_id, parent.url)
        _record_all(parent, ranking)
    return ranking


def score(train: Features, val: Features) -> tuple[dict[str, float], ...]:
    """Scores each boundary by everything that needs no source head; H-score compares classes, not numbers."""
    rows: list[dict[str, float]] = []
    numbers = train.targets.ndim == 2
    for boundary, features in train.pooled.items():
        other = val.pooled[boundary]
        rows.append(
            {
                # Otherwise the evidence of numbers would depend on their unit.
                "logme": scores.log_me(features, scores.standardised(train.targets) if numbers else train.targets),
                **({} if numbers else {"h_score": scores.h_score(features, train.targets)}),
                "knn": scores.knn(features, train.targets, other, val.targets),
                "probe": scores.probe(features, train.targets, other, val.targets),
            }
        )
    return tuple(rows)


def proposed_depth(boundaries: Sequence[Mapping[str, float]], samples: int, pretrained: int | None = None) -> int:
    """Proposes an unfreeze depth: train the stages behind the place where the pretrained features are best.

    That place is the deepest boundary whose probe is within one standard error of the best one on validation; it is
    never behind a stage with random weights.

    Args:
        boundaries: Scores at each boundary, behind the first stage first.
        samples: Validation samples.
        pretrained: Number of stages in front of the first one with random weights; ``None`` if there is none.

    Returns:
        Number of stages to train, counted from the head: 0 to all.
    """
    accuracies = [row["probe"] for row in boundaries[:pretrained]]
    if not accuracies:
        return len(boundaries)
    best = max(accuracies)
    # R2 of numbers can lie below 0; between 0 and 1 the error of a share is near enough to that of R2.
    error = math.sqrt(max(0.0, best * (1 - best)) / samples)
    deepest = max(number for number, accuracy in enumerate(accuracies) if accuracy >= best - error)
    return len(boundaries) - 1 - deepest


def _rank_one(config: ExperimentConfig, backbone: StagedBackbone, runner: FeaturePass) -> Ranked:
    began = time.perf_counter()
    train, val = runner.run(backbone, "train"), runner.run(backbone, "val")
    rows = score(train, val)
    probabilities = source_probabilities(config.backbone, backbone, train.pooled[len(rows)])
    if probabilities is not None and train.targets.ndim == 1:
        rows[-1]["leep"] = scores.leep(probabilities, train.targets)
        rows[-1]["nce"] = scores.nce(probabilities.argmax(axis=1), train.targets)
    tensors = backbone.original_state_dict().values()
    random = backbone.weights.random_stages
    pretrained = next((n for n, name in enumerate(backbone.stage_names) if name in random), None)
    return Ranked(
        name=config.backbone.name,
        weights=backbone.weights.source,
        stages=backbone.stage_names,
        boundaries=rows,
        depth=proposed_depth(rows, len(val.targets), pretrained),
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        megabytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
        samples_per_second=(len(train.targets) + len(val.targets)) / (train.seconds + val.seconds),
        seconds=time.perf_counter() - began,
    )


def _candidate(
    what: str, overrides: Sequence[str], name: str, weights: str, options: str
) -> tuple[Loaded[ExperimentConfig], StagedBackbone]:
    chosen = {"backbone.name": name, "backbone.weights": weights, "backbone.weights_sha256": None}
    loaded = _load(what, [*overrides, *_texts({**PLAIN, **chosen}), f"backbone.options={options}"])
    with prepared(loaded.config):  # random weights are drawn from the seed, as a run draws them
        return loaded, build_backbone(loaded.config.backbone)


def _load(what: str, overrides: Sequence[str]) -> Loaded[ExperimentConfig]:
    """Loads the experiment, or makes one of a data set that is named by its place."""
    if is_yaml(what, "experiments"):
        return load_experiment(what, overrides)
    if not any(place.exists() for place in (Path(what), data_folder() / what)):
        raise UserError(
            f"rank: '{what}' is neither an experiment nor a folder or file in "
            f"{data_folder()} (TLRESEARCH_DATA) or in {Path.cwd()}"
        )
    source = "npz" if what.endswith(".npz") else "image_folder"
    return load_text(yaml.safe_dump({"name": Path(what).stem, "data": {"name": source, "root": what}}), overrides, what)


def _texts(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={'null' if value is None else value}" for key, value in values.items()]


def _runner(config: ExperimentConfig, backbone: StagedBackbone) -> FeaturePass:
    """What runs a backbone over the data.

    Raises:
        UserError: If the data are neither of one class per sample nor of numbers.
    """
    data = present_data(config, backbone)
    if data.kind not in ("binary", "multiclass", "numbers"):
        raise UserError(f"rank: needs one class per sample, or numbers, but the targets of {data.name} are {data.kind}")
    store, size = default_store(int(config.cache.max_gb * 1e9)), config.data.eval_batch_size
    return FeaturePass(data, store, batch_size=size, device=device(config.trainer))


def _open_member(loaded: Loaded[ExperimentConfig], name: str, parent: JournalRun) -> JournalRun:
    return open_run(
        replace(loaded.config.tracking, system_metrics=False),
        experiment=loaded.config.name,
        name=name,
        params=_shown(loaded.flat()),
        tags={"tlresearch.ranking": "backbone"},
        parent=parent.run_id,
    )


def _shown(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params that a ranking depends on."""
    return {key: value for key, value in params.items() if key.split(".")[0] in ("data", "backbone", "ranking")}


def _record(run: JournalRun, ranked: Ranked) -> None:
    for boundary, row in enumerate(ranked.boundaries, 1):
        run.log_metrics({f"ranking/{method}": value for method, value in row.items()}, step=boundary)
    about = {
        "unfreeze_depth": float(ranked.depth),
        "parameters": float(ranked.parameters),
        "megabytes": ranked.megabytes,
        "samples_per_second": ranked.samples_per_second,
        "seconds": ranked.seconds,
    }
    run.log_metrics({f"ranking/{key}": value for key, value in about.items()}, step=len(ranked.boundaries))
    run.set_tags({"tlresearch.weights": ranked.weights, "tlresearch.stages": ", ".join(ranked.stages)})
    run.log_figure(boundary_figure([ranked]), "figures/boundaries.png")


def _record_all(run: JournalRun, ranking: Ranking) -> None:
    run.log_dict(asdict(ranking), "ranking.json")
    there = [one for one in ranking.backbones if not one.problem]
    if there:
        run.log_figure(boundary_figure(there), "figures/boundaries.png")
        run.set_tags({"tlresearch.ranking_best": there[0].name})
