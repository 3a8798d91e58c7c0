"""What a stored model is rebuilt by: a function of ours (or of a package that the user trusts), found by its name."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

SETTINGS = "served.json"
"""File of a stored model that names its loader."""
OURS = "tlresearch.serving"
TRUSTED = "TLRESEARCH_TRUSTED_LOADERS"


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
    """
    return find_loader(json.loads((folder / SETTINGS).read_text())["loader"])(folder)


def find_loader(path: str) -> Callable[[Path], Any]:
    """Imports the function that rebuilds the network.

    Raises:
        ValueError: If it is not one of tlresearch's: a stored model must not name code of its choice.
    """
    trusted = list(filter(None, os.environ.get(TRUSTED, "").split(",")))
    module, _, name = path.rpartition(".")
    ours = module.startswith(f"{OURS}.")
    if ours or module.split(".")[0] in trusted:
        loader: Callable[[Path], Any] = getattr(importlib.import_module(module), name)
        if not ours or getattr(loader, "__module__", "") == module:  # and not what a module of ours has imported
            return loader
    raise ValueError(
        f"the model's loader must be in {' or '.join([OURS, *trusted])} but is '{path}'; if you trust it, add its "
        f"package to {TRUSTED}"
    )
