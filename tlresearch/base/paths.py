"""Places of files: data, weights, experiments, sweeps, and the home folder for everything that is written."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tlresearch.base.errors import MissingFileError, UserError, nearest

SHIPPED = Path(__file__).parents[1] / "shipped"
"""Experiments and sweeps inside the package: links to those of the repository, which a wheel holds as files."""
BEST = "best.yaml"
"""What a sweep leaves below its own YAML: the experiment of its best trial."""
_ADDRESS = re.compile(r"\?|%[0-9A-Fa-f]{2}")  # begins a query, stands for another letter


def home() -> Path:
    """The folder everything is written to: ``TLRESEARCH_HOME``, else ``.tlresearch`` in the current folder.

    Raises:
        UserError: If addresses of databases and artifacts cannot name it.
    """
    folder = Path(os.environ.get("TLRESEARCH_HOME") or ".tlresearch").expanduser().absolute()
    check_addressable(folder, "TLRESEARCH_HOME")
    return folder


def check_addressable(path: Path, key: str) -> None:
    """Refuses a path that the address of a database cannot hold.

    Args:
        path: The path.
        key: What names it, for the error.

    Raises:
        UserError: If it is no text, or means something else in an address.
    """
    shown = os.fsencode(path).decode(errors="backslashreplace")
    if shown != str(path):
        raise UserError(f"{key}: {shown} is not UTF-8, so no address can name it; take another path")
    odd = _ADDRESS.search(str(path))
    if odd is not None:
        raise UserError(
            f"{key}: {path} holds '{odd[0]}', which means something else in the address of a database; "
            "take a path without that"
        )


def data_folder() -> Path:
    """Returns the data folder: ``TLRESEARCH_DATA``, else ``data`` in the current folder."""
    return Path(os.environ.get("TLRESEARCH_DATA") or "data").expanduser().absolute()


def weights_folder() -> Path:
    """The folder of weights files: ``TLRESEARCH_WEIGHTS``, else ``weights`` in the current folder."""
    return Path(os.environ.get("TLRESEARCH_WEIGHTS") or "weights").expanduser().absolute()


def find_data(root: str) -> Path:
    """Finds a data folder or file; a relative path under ``TLRESEARCH_DATA`` (else ``data``), then as it is.

    Raises:
        MissingFileError: If it is in neither place; the text names both.
    """
    return _find(root, "data.root", data_folder(), "TLRESEARCH_DATA")


def known_place(name: str) -> Path | None:
    """Finds data that a command names, by path or in the data folder; ``None`` if there is none."""
    return next((path for path in (Path(name), data_folder() / name) if _exists(path)), None)


def find_weights(name: str) -> Path:
    """Finds a weights file; a relative path under ``TLRESEARCH_WEIGHTS`` (else ``weights``), then as it is.

    Raises:
        MissingFileError: If it is in neither place; the text names both.
    """
    return _find(name, "backbone.weights", weights_folder(), "TLRESEARCH_WEIGHTS")


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
    except OSError:  # a name that no file can have, or a folder that we may not read
        return False


def yaml_folders(kind: str) -> list[Path]:
    """Lists the folders in which experiments or sweeps are looked up by name, in order.

    These are the current folder's, then those that were drafted for a folder of data, then those that ship with
    tlresearch, so that an installed package needs no clone.

    Args:
        kind: ``experiments`` or ``sweeps``.
    """
    return [Path(kind), home() / kind, SHIPPED / kind]


def yaml_names(kind: str) -> list[str]:
    """Returns the names of all experiments or sweeps in `yaml_folders`, sorted."""
    paths = [path for folder in yaml_folders(kind) for path in folder.rglob("*.yaml") if path.name != BEST]
    return sorted({yaml_name(path, kind) for path in paths})


def is_yaml(name: str, kind: str) -> bool:
    """Whether there is an experiment or sweep with this path or name."""
    return _yaml(name, kind) is not None


def find_yaml(name: str, kind: str) -> Path:
    """Finds an experiment or sweep: a path to a YAML file, or its name (see `yaml_folders`) without the suffix.

    Args:
        name: Such as ``hymenoptera/linear_probe`` or ``experiments/hymenoptera/linear_probe.yaml``.
        kind: ``experiments`` or ``sweeps``.

    Raises:
        UserError: If there is none; the text lists the nearest name.
    """
    path = _yaml(name, kind)
    if path is not None:
        return path
    names = yaml_names(kind)
    topics = ", ".join(f"{topic}/" for topic in dict.fromkeys(entry.partition("/")[0] for entry in names))
    raise UserError(
        f"there is no {kind[:-1]} '{name}', and no folder or file of data either{nearest(name, names)}; {kind} by name "
        f"begin with {topics}"
    )


def _yaml(name: str, kind: str) -> Path | None:
    by_name = [folder / f"{name}.yaml" for folder in yaml_folders(kind)]
    by_path = [Path(name), Path(kind, name)] if name.lower().endswith((".yaml", ".yml")) else []
    return next((path for path in [*by_path, *by_name] if path.is_file()), None)


def yaml_name(path: Path, kind: str) -> str:
    """Returns the name under which a YAML is found: its place below the last folder called `kind`, else its own."""
    parts = path.with_suffix("").parts
    start = len(parts) - parts[::-1].index(kind) if kind in parts else len(parts) - 1
    return "/".join(parts[start:])


def topic(path: Path, kind: str) -> tuple[str, str]:
    """Splits the path of a YAML file into its topic (the folder under `kind`) and its name."""
    folder, _, stem = yaml_name(path, kind).rpartition("/")
    return (folder or stem, stem)
