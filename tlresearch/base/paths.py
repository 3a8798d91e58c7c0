"""Where files are looked up and kept: data, weights, experiments, sweeps, and the home of everything written."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tlresearch.base.errors import MissingFileError, UserError, nearest

_ADDRESS = re.compile(r"\?|%[0-9A-Fa-f]{2}")  # begins a query, stands for another letter


def home() -> Path:
    """The folder everything is written to: ``TLRESEARCH_HOME``, else ``.tlresearch`` in the current folder.

    Raises:
        UserError: If addresses of databases and artifacts cannot name it.
    """
    folder = Path(os.environ.get("TLRESEARCH_HOME", ".tlresearch")).absolute()
    odd = _ADDRESS.search(str(folder))
    if odd is not None:
        raise UserError(
            f"TLRESEARCH_HOME: {folder} holds '{odd[0]}', which means something else in the address of a database; "
            "set it to a folder without that"
        )
    return folder


def data_folder() -> Path:
    """The data directory: ``TLRESEARCH_DATA``, else ``data`` in the current folder."""
    return Path(os.environ.get("TLRESEARCH_DATA", "data")).absolute()


def find_data(root: str) -> Path:
    """Finds a data folder or file; a relative path under ``TLRESEARCH_DATA`` (else ``data``), then as it is.

    Raises:
        MissingFileError: If it is in neither place; the text names both.
    """
    return _find(root, "data.root", data_folder(), "TLRESEARCH_DATA")


def find_weights(name: str) -> Path:
    """Finds a weights file; a relative path under ``TLRESEARCH_WEIGHTS`` (else ``weights``), then as it is.

    Raises:
        MissingFileError: If it is in neither place; the text names both.
    """
    return _find(name, "backbone.weights", Path(os.environ.get("TLRESEARCH_WEIGHTS", "weights")), "TLRESEARCH_WEIGHTS")


def _find(name: str, key: str, folder: Path, variable: str) -> Path:
    path = Path(name).expanduser()
    if path.is_absolute():
        if _exists(path):
            return path
        raise MissingFileError(f"{key}: {path} does not exist")
    for candidate in (folder / path, path):
        if _exists(candidate):
            return candidate.absolute()
    raise MissingFileError(
        f"{key}: '{name}' is neither in {folder.absolute()} ({variable}) nor in {Path.cwd()}; "
        f"put it there, or set {variable} to the folder that holds it"
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have, or a folder that may not be read
        return False


def find_yaml(name: str, folder: str) -> Path:
    """Finds an experiment or sweep: a path to a YAML file, or its name under `folder` without the suffix.

    Args:
        name: Such as ``hymenoptera/linear_probe`` or ``experiments/hymenoptera/linear_probe.yaml``.
        folder: ``experiments`` or ``sweeps``.

    Raises:
        UserError: If there is none; the text lists the nearest name.
    """
    for candidate in (Path(name), Path(folder) / f"{name}.yaml", Path(folder) / name):
        if candidate.is_file():
            return candidate
    known = sorted(str(path.relative_to(folder).with_suffix("")) for path in Path(folder).rglob("*.yaml"))
    listing = f"; {folder}/ holds {', '.join(known)}" if known else f"; {folder}/ holds none here"
    raise UserError(f"there is no {folder[:-1]} '{name}'{nearest(name, known)}{listing}")


def topic(path: Path, folder: str) -> tuple[str, str]:
    """Splits a YAML's place into the topic (its folder under `folder`) and its name."""
    parts = path.with_suffix("").parts
    below = parts[parts.index(folder) + 1 :] if folder in parts else parts[-1:]
    return ("/".join(below[:-1]) or below[-1], below[-1])
