"""What a stored model is rebuilt by: a function of ours (or of a package that the user trusts), found by its name."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tlresearch.base.trust import TRUSTED, is_trusted, only_trusted

SETTINGS = "served.json"
"""File of a stored model that names its loader."""
OURS = "tlresearch.serving"
LOADER = "tlresearch.serving.stored.load_predictor"
"""What rebuilds the models of our tasks."""
EARLIER: Mapping[str, str] = {
    "tlresearch.serving.classification.load_predictor": "classification",
    "tlresearch.serving.text.load_text_predictor": "classification",
    "tlresearch.serving.audio.load_audio_predictor": "classification",
    "tlresearch.serving.tokens.load_tokens_predictor": "tokens",
    "tlresearch.serving.speech.load_speech_predictor": "speech_recognition",
    "tlresearch.serving.dense.load_dense_predictor": "segmentation",
}
"""Loaders that runs recorded when each task and modality had one, with the task that is meant; `LOADER` reads them."""


class Predictor(Protocol):
    """A trained network that reads raw samples and answers with a table."""

    def read(self, model_input: Any) -> list[Any]:
        """Reads what MLflow hands over: a data frame, a list or one sample."""
        ...

    def table(self, samples: Sequence[Any]) -> dict[str, list[Any]]:
        """Returns the answers as columns with one entry per sample."""
        ...


def rebuild(folder: Path) -> Any:
    """Rebuilds the predictor in the folder of a stored model.

    Raises:
        ValueError: If its loader is neither ours nor trusted.
        UserError: If its task or backbone is neither ours nor trusted.
    """
    with only_trusted():
        return find_loader(recorded_loader(folder))(folder)


def recorded_loader(folder: Path) -> str:
    """Returns the dotted path of the loader that a stored model names."""
    loader: str = json.loads((folder / SETTINGS).read_text())["loader"]
    return loader


def find_loader(path: str) -> Callable[[Path], Any]:
    """Imports the function that rebuilds the network.

    Raises:
        ValueError: If it is not one of tlresearch's: a stored model must not name code of its choice.
    """
    module, _, name = (LOADER if path in EARLIER else path).rpartition(".")
    ours = module.startswith(f"{OURS}.")
    if ours or is_trusted(path):
        loader: Callable[[Path], Any] = getattr(importlib.import_module(module), name)
        if not ours or getattr(loader, "__module__", "") == module:  # and not what a module of ours has imported
            return loader
    raise ValueError(
        f"the model's loader must be in {OURS} but is '{path}'; if you trust it, add its package to {TRUSTED}"
    )
