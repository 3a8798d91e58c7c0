"""From a folder to an experiment and a sweep: YAML with comments, as somebody would write it who knows the options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from tlresearch.base.paths import data_folder, find_data, home
from tlresearch.config.json_schema import first_line, write_schemas
from tlresearch.drafting.backbone import MINILM, Choice, choose, describe_choice
from tlresearch.drafting.survey import Survey, look

EXPERIMENT, SWEEP = "linear_probe", "lr_x_unfreeze_depth"
_HELD_OUT = 0.2  # share of the samples
_ENOUGH = 10  # samples of the smallest class from which a test split says something
_SWEPT = 2000  # training samples that are enough to compare trials
_UNEVEN = 4  # times the smallest class that the largest may have

Values = dict[str, dict[str, Any]]
Comments = Mapping[str, str]


@dataclass(frozen=True)
class Draft:
    """An experiment and a sweep for one folder.

    Attributes:
        experiment: File of the experiment.
        sweep: File of the sweep over it.
        said: What was seen and chosen, by name.
        is_new: Whether they were written now; else an earlier draft is used as it is.
    """

    experiment: Path
    sweep: Path
    said: Sequence[tuple[str, str]]
    is_new: bool


@dataclass(frozen=True)
class Recipe:
    """How a task is usually trained on a frozen backbone.

    Attributes:
        epochs: Length of the linear probe.
        lr: Rate of the head.
        batch_size: Samples of a batch.
        deepest: Stages that a trial trains at most.
        trials: Trials of the sweep.
        swept_epochs: Length of a trial.
        sections: Further values by section.
    """

    epochs: int
    lr: float
    batch_size: int
    deepest: int | str
    trials: int
    swept_epochs: int
    sections: Mapping[str, Mapping[str, Any]]


_CLASSIFICATION = Recipe(20, 3e-3, 32, 4, 16, 8, {"task": {"name": "classification"}})
RECIPES: Mapping[tuple[str, str], Recipe] = {
    ("image", "classification"): _CLASSIFICATION,
    ("text", "classification"): Recipe(15, 1e-2, 32, 4, 16, 4, _CLASSIFICATION.sections),
    ("sound", "classification"): Recipe(30, 1e-2, 32, 4, 16, 15, _CLASSIFICATION.sections),
    **{(kind, "regression"): Recipe(20, 3e-3, 32, 4, 16, 8, {"task": {"name": "regression"}})
       for kind in ("image", "text", "sound")},
    ("text", "tokens"): Recipe(15, 1e-2, 32, 4, 12, 4, {"task": {"name": "tokens"}}),
    ("image", "segmentation"): Recipe(
        20, 3e-3, 4, "all", 12, 6,
        {"data": {"image_size": 256, "eval_batch_size": 8},
         "task": {"name": "segmentation", "loss": "combined", "options": {"decoder": "unet"}}},
    ),
    ("image", "detection"): Recipe(
        6, 1e-3, 4, 4, 6, 4,
        {"data": {"image_size": 256, "eval_batch_size": 16},
         "task": {"name": "detection", "options": {"detector": "faster_rcnn", "width": 64}},
         "trainer": {"gradient_clip": 10.0}},
    ),
    ("image", "instances"): Recipe(
        10, 1e-3, 4, 4, 6, 4,
        {"data": {"image_size": 320, "eval_batch_size": 8},
         "task": {"name": "instances", "options": {"detector": "mask_rcnn", "width": 64}},
         "trainer": {"gradient_clip": 10.0}},
    ),
}  # fmt: skip
"""Recipes by kind of sample and task; the values are those of the published experiments of each."""


def draft(place: Path, *, below: Path | None = None) -> Draft:
    """Writes an experiment and a sweep for a folder, or finds those that were written for it before.

    A draft is found again by its folder's name and root, so that the same command continues the same sweep, and so that
    what was changed in it counts.

    Args:
        place: The folder, or a single table or file of arrays.
        below: Folder that gets ``experiments/`` and ``sweeps/``; ``None`` is ``TLRESEARCH_HOME``, where the results
            are, unless the current folder holds a draft for `place`.

    Raises:
        UserError: If nothing there can be learnt from, or no backbone can be had.
    """
    topic = re.sub(r"[^\w.-]", "_", place.resolve().stem if place.is_file() else place.resolve().name) or "data"
    for folder in (Path(), home()) if below is None else (below,):
        earlier = _files(folder, topic)
        if earlier[0].is_file() and _is_of(earlier[0], place):
            return Draft(
                *earlier,
                (("drafted before", f"{_shown(earlier[0])}; delete it to have the folder looked at anew"),),
                False,
            )
    topic, files = _free(home() if below is None else below, topic)
    survey = look(place)
    choice = choose(survey.layout.kind, survey.layout.task, survey.to_learn_from)
    texts = (_experiment(survey, choice, topic, place, portable=below is not None), _sweep(survey, topic))
    for file, text in zip(files, texts, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(first_line(1) + text, encoding="utf-8")
    write_schemas(files[0].parents[2])
    said = (("data", survey.described()), *describe_choice(choice), ("written", " and ".join(map(_shown, files))))
    return Draft(*files, said, True)


def _shown(file: Path) -> str:
    """A file as its user names it: from the current folder, where it lies below."""
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _files(folder: Path, topic: str) -> tuple[Path, Path]:
    return folder / "experiments" / topic / f"{EXPERIMENT}.yaml", folder / "sweeps" / topic / f"{SWEEP}.yaml"


def _free(folder: Path, topic: str) -> tuple[str, tuple[Path, Path]]:
    """The topic, with a number behind it where another folder of the same name has it."""
    name, number = topic, 1
    while any(file.exists() for file in _files(folder, name)):
        number += 1
        name = f"{topic}_{number}"
    return name, _files(folder, name)


def _is_of(experiment: Path, place: Path) -> bool:
    """Whether a draft was made for this place."""
    try:
        head = experiment.read_text(encoding="utf-8").splitlines()[:4]
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.endswith(f" {place.resolve()}") for line in head)


def _experiment(survey: Survey, choice: Choice, topic: str, place: Path, *, portable: bool) -> str:
    recipe = RECIPES[survey.layout.kind, survey.layout.task]
    data, comments = _data(survey, recipe, portable=portable)
    backbone: dict[str, Any] = {"name": choice.name, "weights": choice.weights}
    if choice.name.startswith(MINILM):
        backbone["options"] = {"pooling": "mean"} if survey.layout.task == "classification" else {}
    comments |= {
        "backbone.name": choice.why,
        "backbone.weights": choice.whence,
        "freeze.schedule": "the head alone; full, gradual, lp_ft and others train more: tlresearch inspect",
        "optimizer.lr": "rate of the head",
        "task.class_weights": "the largest class has many times the samples of the smallest",
    }
    values: Values = {
        "data": data,
        "backbone": {key: value for key, value in backbone.items() if value != {}},
        "task": {**recipe.sections["task"], **({"class_weights": "balanced"} if _is_uneven(survey) else {})},
        "freeze": {"schedule": "linear_probe", "epochs": recipe.epochs},
        "optimizer": {"name": "adamw", "lr": recipe.lr},
        "scheduler": {"name": "cosine"},
        "trainer": dict(recipe.sections.get("trainer", {})),
    }
    head = (
        f"# Linear probe, drafted for {place.resolve()}\n"
        f"# Seen:  {survey.described()}.\n"
        f"# Run:   tlresearch run {topic}/{EXPERIMENT}       values by full key: optimizer.lr=1e-3 seed=1\n"
        "# What is not written has a default; tlresearch config lists all options.\n"
    )
    return f"{head}{_yaml(values, comments)}seed: 0\n"


def _data(survey: Survey, recipe: Recipe, *, portable: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """The `data` section, and what is to be said of its values."""
    data: dict[str, Any] = {"name": survey.layout.data["name"], "root": _root(survey.root, portable=portable)}
    data |= {key: value for key, value in survey.layout.data.items() if key != "name"}
    comments: dict[str, str] = {}
    if "val" not in survey.splits:
        data["val_fraction"] = _HELD_OUT
        comments["data.val_fraction"] = "no validation split is given: this share of the rest is chosen by"
    smallest = min(survey.counts.values(), default=len(survey.table.names))
    if "test" not in survey.splits and smallest >= _ENOUGH:
        data["test_fraction"] = _HELD_OUT
        comments["data.test_fraction"] = "no test split is given: this share is looked at once, at the end"
    data |= recipe.sections.get("data", {})
    if survey.layout.kind == "text":
        data["max_length"], comments["data.max_length"] = _length(survey)
    elif survey.sizes and survey.layout.kind == "image":
        height, width = (int(median(side)) for side in zip(*survey.sizes, strict=True))
        comments["data.name"] = f"images of {width} x {height} pixels (the median)"
    data["batch_size"] = recipe.batch_size
    return data, comments


def _root(root: Path, *, portable: bool) -> str:
    """How the experiment names the folder: below the data directory or the current folder where that is the same."""
    for base in (data_folder().resolve(), Path.cwd()) if portable else ():
        if root.is_relative_to(base):
            name = str(root.relative_to(base))
            if find_data(name).resolve() == root:
                return name
    return str(root)


def _length(survey: Survey) -> tuple[int, str]:
    """Tokens that nearly all texts have room in, and why."""
    texts = getattr(survey.table.images, "texts", [])
    words = sorted(len(text.split() if isinstance(text, str) else text) for text in texts)
    long = words[int(0.95 * (len(words) - 1))] if words else 64
    tokens = min(256, max(32, -(-int(1.5 * long) // 16) * 16))
    return tokens, f"tokens; 95 of 100 texts have {long} words or fewer; what is longer is cut"


def _is_uneven(survey: Survey) -> bool:
    counts = survey.counts.values()
    return bool(counts) and not survey.table.multilabel and max(counts) > _UNEVEN * min(counts)


def _sweep(survey: Survey, topic: str) -> str:
    recipe = RECIPES[survey.layout.kind, survey.layout.task]
    overrides: dict[str, Any] = {
        "freeze.schedule": "depth",
        "freeze.unfreeze_depth": 0,
        "freeze.epochs": recipe.swept_epochs,
    }
    less = ""
    if survey.to_learn_from > _SWEPT:
        overrides["data.train_fraction"] = round(_SWEPT / survey.to_learn_from, 3)
        less = f"# Trials learn from about {_SWEPT} samples, so that they are quick; the experiment learns from all.\n"
    points = [{"optimizer.lr": recipe.lr / 3**depth, "freeze.unfreeze_depth": depth} for depth in range(3)]
    lines = [
        "# Which learning rate, and how many stages to unfreeze? Depth 0 is the linear probe.",
        f"# Run:   tlresearch sweep {topic}/{SWEEP}      (again: it continues; trials=40 adds some)",
        f"{less}experiment: {topic}/{EXPERIMENT}",
        f"overrides: {_flow(overrides)}",
        "space:  # every key of the experiment can be searched",
        f"  optimizer.lr: {_flow({'low': recipe.lr / 300, 'high': recipe.lr * 3, 'log': True})}",
        f"  freeze.unfreeze_depth: {_flow({'low': 0, 'high': recipe.deepest})}",
        "enqueue:  # tried first",
        *(f"  - {_flow(point)}" for point in points),
        "sampler: {name: tpe}",
        "pruner: {name: median, options: {n_startup_trials: 4, n_warmup_steps: 2}}  # ends trials that fall behind",
        f"trials: {recipe.trials}",
        "# Beside the trials; add full: {freeze.schedule: full, freeze.unfreeze_depth: null, optimizer.lr: 3.0e-4}.",
        "baselines:",
        f"  linear_probe: {_flow({'freeze.unfreeze_depth': 0, 'optimizer.lr': recipe.lr})}",
    ]
    return "\n".join(lines) + "\n"


def _yaml(values: Values, comments: Comments) -> str:
    """Sections with one value a line and its comment behind it."""
    lines = []
    for section, entries in ((name, entries) for name, entries in values.items() if entries):
        lines.append(f"{section}:")
        for key, value in entries.items():
            comment = comments.get(f"{section}.{key}")
            line = f"  {key}: {_flow(value)}"
            lines.append(f"{line:<40}  # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


class _Flow(yaml.SafeDumper):
    """Writes floats as people do, and as every reader of YAML takes them for floats: 3.0e-4, not 0.0003 or 3e-4."""


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    plain = 0.01 <= abs(value) < 1000
    return dumper.represent_scalar(
        "tag:yaml.org,2002:float", repr(round(value, 3)) if plain else f"{mantissa}e{int(exponent)}"
    )


_Flow.add_representer(float, _float)


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    text: str = yaml.dump(
        value, Dumper=_Flow, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")
