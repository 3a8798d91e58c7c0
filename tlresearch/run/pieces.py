"""An experiment from what a program has: `tlresearch.fit` with objects in the place of names.

An object that can be named (a class or function that can be imported, a partial of one, an optimizer) becomes its name
and arguments, as in a file. Any other is handed over (`base/handed.py`): the run uses it all the same, and says that
its record cannot build it again.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from tlresearch.backbones.base import StagedBackbone, WeightsRecord
from tlresearch.backbones.stages import stages
from tlresearch.backbones.weights import digest
from tlresearch.base import handed
from tlresearch.base.errors import ConfigError
from tlresearch.config.load import Loaded, Overrides, as_mapping, load_experiment, revise
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.base import Data
from tlresearch.data.datasets import by_split, data_of
from tlresearch.modality.tensors import Tensors
from tlresearch.modality.values import stack
from tlresearch.run.fit import Role, RunResult
from tlresearch.run.fit import fit as fit_experiment

log = logging.getLogger(__name__)

KEYS = {"loss": "task.loss", "metrics": "task.metrics", "callbacks": "trainer.callbacks", "loggers": "trainer.loggers"}
"""Pieces that are no section of an experiment themselves, and where they belong."""
SECTIONS = tuple(item.name for item in fields(ExperimentConfig))


@dataclass
class Pieces:
    """The values that a config gets of them, and the objects behind some.

    Attributes:
        values: Values by full key of the experiment.
        objects: Objects by their name in the config.
        described: What is known of each object, by key.
    """

    values: dict[str, Any] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    described: dict[str, str] = field(default_factory=dict)

    def named(self, key: str, given: Any) -> dict[str, Any]:
        """Returns name and arguments of a piece, and keeps it where it has to be there itself."""
        if isinstance(given, str):
            return {"name": given}
        if isinstance(given, Mapping):
            return dict(given)
        if isinstance(given, Optimizer):
            takes = inspect.signature(type(given)).parameters
            defaults = {name: value for name, value in given.defaults.items() if name in takes}
            return {"name": path_of(type(given)), **{name: _plain(value) for name, value in defaults.items()}}
        target, options = given, {}
        if isinstance(given, functools.partial) and not given.args:
            target, options = given.func, given.keywords
        path = path_of(target)
        if path and all(_is_plain(value) for value in options.values()):
            return {"name": path, **options}
        return {"name": self.keep(key, given)}

    def keep(self, key: str, given: Any, build: Callable[..., Any] | None = None) -> str:
        """Keeps an object under a name that nothing else has; `build` is what the name stands for."""
        kind = given if inspect.isroutine(given) or inspect.isclass(given) else type(given)
        qualified = f"{handed.PREFIX}{kind.__module__}.{kind.__qualname__}"
        name, number = qualified, 2
        while name in self.objects:
            name, number = f"{qualified}_{number}", number + 1
        # Losses and metrics keep numbers: the next run gets them as they were handed over.
        self.objects[name] = build or (copy.deepcopy(given) if key.startswith("task.") else given)
        settings = {name: value for name, value in getattr(given, "__dict__", {}).items() if _is_plain(value)}
        text = f"{_source(kind)} {sorted(settings.items())}"
        self.described[key] = (
            f"{qualified.removeprefix(handed.PREFIX)} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
        )
        return name

    @contextmanager
    def present(self) -> Iterator[None]:
        """Has the objects found while the context lasts; says what the record lacks."""
        if self.described:
            what = ", ".join(f"{key} ({text.split()[0]})" for key, text in self.described.items())
            log.warning("%s: handed over as objects, so the record alone cannot build them again", what)
        with handed.present(handed.Handed(self.objects, self.described)):
            yield


def gather(pieces: Mapping[str, Any]) -> Pieces:
    """Sorts pieces into values of a config and objects.

    Raises:
        ConfigError: If a piece is none, or does not go with another.
    """
    gathered = Pieces()
    given = {key: value for key, value in pieces.items() if value is not None}
    unknown = [key for key in given if key not in SECTIONS and key not in KEYS and key != "transform"]
    if unknown:
        raise ConfigError([f"{key}: is no section of an experiment, nor a piece of one" for key in unknown], "pieces")
    transform, data = given.pop("transform", None), given.pop("data", None)
    named = isinstance(data, str) or (isinstance(data, Mapping) and "train" not in data)
    if data is not None and not named:
        sets = by_split(data)
        built = data_of(sets, transform, seed=int(given.get("seed", 0)))
        gathered.values |= _data(gathered, sets["train"], built)
    else:
        built = None
        if data is not None:
            gathered.values["data"] = {"name": data} if isinstance(data, str) else dict(data)
        if transform is not None:
            raise ConfigError(["transform: goes with data sets that are handed over as data="], "pieces")
    backbone = given.pop("backbone", None)
    if isinstance(backbone, nn.Module):
        gathered.values |= _backbone(gathered, backbone, built)
    elif backbone is not None:
        gathered.values["backbone"] = {"name": backbone} if isinstance(backbone, str) else dict(backbone)
    for key, value in given.items():
        _take(gathered, key, value)
    return gathered


def _take(gathered: Pieces, key: str, value: Any) -> None:
    full = KEYS.get(key, key)
    if key in ("metrics", "callbacks", "loggers"):
        several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        gathered.values[full] = [gathered.named(f"{full}[{number}]", one) for number, one in enumerate(several)]
    elif key in ("optimizer", "scheduler", "loss"):
        gathered.values[full] = gathered.named(full, value)
    elif key == "freeze":
        gathered.values[full] = {"schedule": value} if isinstance(value, str) else dict(value)
    elif key == "task" and isinstance(value, str):
        gathered.values["task.name"] = value
    elif isinstance(value, Mapping):
        gathered.values |= {f"{full}.{name}": entry for name, entry in value.items()}
    else:
        gathered.values[full] = value


def _backbone(gathered: Pieces, network: nn.Module, data: Data | None) -> dict[str, Any]:
    """The section of a network that was handed over: each run trains a copy, so that the next starts from the same."""
    if not isinstance(network, StagedBackbone) and data is None:
        raise ConfigError(
            [
                "backbone: a network needs data= as data sets too, whose samples say what it takes; or hand over "
                "tlresearch.stages(network, example, preprocessing=...)"
            ],
            "pieces",
        )

    def build() -> StagedBackbone:
        own = copy.deepcopy(network)
        if isinstance(own, StagedBackbone):
            return own
        assert data is not None
        split = data.splits["train"]
        example = stack([split.raw(index) for index in range(min(2, len(split)))])
        cut = stages(own, example, preprocessing=data.preprocessing or Tensors(()))
        cut.weights = WeightsRecord("object", digest(dict(network.state_dict())))
        return cut

    name = gathered.keep("backbone", network, build)
    return {
        "backbone.options": {},
        "backbone.name": name,
        "backbone.weights": None,
        "backbone.checkpoint": None,
        "tracking.model": False,
    }


def _data(gathered: Pieces, train: Any, built: Data) -> dict[str, Any]:
    """The section of data that was handed over; a training loader says its batch size."""
    name = gathered.keep("data", getattr(train, "dataset", train), lambda: built)
    values: dict[str, Any] = {"data.options": {}, "data.name": name, "data.root": None}
    if isinstance(train, DataLoader) and isinstance(train.batch_size, int):
        values["data.batch_size"] = train.batch_size
    return values | ({"task.name": "regression"} if built.kind == "numbers" else {})


def path_of(target: Any) -> str:
    """The dotted path from which a class or function can be imported again; empty if there is none."""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "")
    if not module or module == "__main__" or "." in name or not name:
        return ""
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return ""
    return f"{module}.{name}" if found is target else ""


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _source(kind: Any) -> str:
    """Its source; where there is none, as in an interactive session, what it was compiled to."""
    try:
        text = inspect.getsource(kind)
    except (OSError, TypeError):
        code = getattr(kind, "__code__", None)
        text = repr(kind) if code is None else f"{code.co_code.hex()} {code.co_names}"
    return text


def fit(
    experiment: str | Path | Mapping[str, Any] | ExperimentConfig | Loaded[ExperimentConfig] | None = None,
    overrides: Overrides = (),
    *,
    role: Role | None = None,
    console: Console | None = None,
    **pieces: Any,
) -> RunResult:
    """Runs an experiment: from a file, from values, from objects, or from several of them.

    A run that was killed or interrupted goes on where it stopped when the same is fitted again.

    Args:
        experiment: Name under ``experiments/``, path of a YAML file, its content as a dict or `tlresearch.Experiment`;
            ``None`` takes the defaults.
        overrides: Values by full key, ``{"optimizer.lr": 1e-3}`` or ``["optimizer.lr=1e-3"]``.
        role: What the run is for; ``None`` is a run of its own, which ends with the test.
        console: Where progress is shown; ``None`` shows it in a notebook alone.
        pieces: Sections of the experiment by name (``freeze={"schedule": "lp_ft", "epochs": 4}``), and objects in
            their place: `backbone`, a module without its head; `data`, data sets or loaders for training, validation
            and maybe test, or a LightningDataModule; `transform` of their inputs; `loss`, `metrics`, `optimizer`,
            `scheduler`, `callbacks` and `loggers`.

    Returns:
        Metrics, history and the trained task.

    Raises:
        UserError: If config, data, weights or store are wrong; one text says all.
    """
    if console is None and Console().is_jupyter:
        console = Console()
    gathered = gather(pieces)
    with gathered.present():
        values = {**gathered.values, **as_mapping(overrides)}
        if not isinstance(experiment, Loaded):
            experiment = load_experiment({} if experiment is None else experiment, values)
        elif values:
            experiment = revise(experiment, values)
        return fit_experiment(experiment, role=role, console=console)
