"""A trained task as files that predict from raw samples, without the data or the run it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.text import FOLDER
from tlresearch.base.errors import UserError
from tlresearch.config.schema import BackboneConfig, ExperimentConfig, TaskConfig
from tlresearch.data.base import Data
from tlresearch.modality.image import Preprocessing
from tlresearch.tasks.base import Task
from tlresearch.tasks.build import find_task
from tlresearch.tasks.predictor import Predictor
from tlresearch.tracking.loaders import EARLIER, recorded_loader

WEIGHTS = "weights.safetensors"
DESCRIPTION = "predictor.json"
FILES = "backbone"
"""Folder of what a backbone is built from beside its weights, such as vocabulary and settings."""


def save_predictor(folder: Path, config: ExperimentConfig, task: Task, data: Data) -> None:
    """Writes a task's network and what it needs to predict into a folder: safetensors, JSON, the backbone's files."""
    backbone, preprocessing = config.backbone, data.preprocessing or task.backbone.preprocessing
    recipe: Mapping[str, object] = {"name": backbone.name, "options": dict(backbone.options)}
    if task.backbone.save_files is not None:
        (folder / FILES).mkdir()
        recipe = task.backbone.save_files(folder / FILES)
    channels = preprocessing.channels if isinstance(preprocessing, Preprocessing) else backbone.in_channels
    description = {
        "task": {"name": config.task.name, "dropout": config.task.dropout, "options": dict(config.task.options)},
        "backbone": {**recipe, "granularity": backbone.granularity, "in_channels": channels, "pairs": backbone.pairs},
        "classes": list(data.classes),
        "kind": data.kind,
        "preprocessing": preprocessing.description(),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in task.state_dict().items()}
    save_file({name: t for name, t in tensors.items() if name.startswith(("backbone.", "head."))}, folder / WEIGHTS)


def load_predictor(folder: Path) -> Predictor:
    """Reads what `save_predictor` wrote; nothing is unpickled and nothing downloaded.

    Raises:
        UserError: If its task has no predictor.
    """
    description = json.loads((folder / DESCRIPTION).read_text())
    if "task" not in description or "kind" not in description:
        description = _as_today(folder, description)
    config = TaskConfig(**description["task"])
    task, classes = find_task(config.name), description["classes"]
    if task.predictor is None:
        raise UserError(f"task {config.name} has no predictor")
    network = nn.Module()
    network.backbone = backbone = build_backbone(_recipe(folder, description["backbone"]), task.end)
    preprocessing = backbone.preprocessing.restored(description["preprocessing"])
    network.head = head = task.build_head(config, backbone, classes, preprocessing)
    network.load_state_dict(load_file(folder / WEIGHTS))
    return task.predictor(backbone, head, preprocessing, classes, description["kind"])


def _recipe(folder: Path, recipe: Mapping[str, Any]) -> BackboneConfig:
    """The backbone's section, with the folder of its files in place."""

    def placed(value: Any) -> Any:
        return value.replace(FOLDER, str(folder / FILES)) if isinstance(value, str) else value

    options = {key: placed(value) for key, value in recipe["options"].items()}
    return BackboneConfig(**{**recipe, "name": placed(recipe["name"]), "options": options, "weights": None})


def _as_today(folder: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """A description as it was written when each task and modality had a loader of its own; see `EARLIER`."""
    task = description.get("task", {"name": EARLIER[recorded_loader(folder)]})
    backbone = {"options": description.get("options", {}), **description["backbone"]}
    if backbone["name"] == "hf/":  # a speech model, whose settings are in its folder
        backbone["name"] = f"hf/{FOLDER}"
    return {
        "task": task,
        "backbone": backbone,
        "classes": description["classes"],
        "kind": description.get("kind", find_task(task["name"]).learns[0]),
        "preprocessing": description.get("preprocessing", {"max_length": description.get("max_length")}),
    }
