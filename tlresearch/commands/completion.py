"""What a shell completes on our command line: commands and options, experiments, sweeps, keys and their values, runs.

A key press must not wait: nothing here imports torch or MLflow, and names of runs are read off the local store alone.
"""

from __future__ import annotations

import argparse
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tlresearch.base.paths import yaml_names


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers the shell if it asks for completions, and ends the process then."""
    import argcomplete

    for command in _commands(parser):
        for action in command._actions:
            if action.dest in COMPLETERS:
                action.completer = COMPLETERS[action.dest]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def experiments(prefix: str, **_: Any) -> list[str]:
    """Names of experiments, YAML files, and folders that may hold data."""
    return [*yaml_names("experiments"), *_paths(prefix)]


def sweeps(prefix: str, **_: Any) -> list[str]:
    """Names of sweeps, YAML files, and folders that may hold data."""
    return [*yaml_names("sweeps"), *_paths(prefix)]


def runs(prefix: str, **_: Any) -> list[str]:
    """Names of recorded runs, newest first; ids once their beginning is typed."""
    from tlresearch.tracking.database import recent_runs

    recent = recent_runs()
    ids = [run_id[: max(8, len(prefix))] for run_id, _ in recent if prefix and run_id.startswith(prefix)]
    return list(dict.fromkeys([*(name for _, name in recent if name), *ids]))


def anything(prefix: str, **given: Any) -> list[str]:
    """What may be an experiment or a run."""
    return [*experiments(prefix, **given), *runs(prefix, **given)]


def overrides(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """``key=`` while a key is typed, and the values of an option that has a choice."""
    from tlresearch.config.json_schema import full_keys

    of_experiment = full_keys("experiments")
    if hasattr(parsed_args, "sweep"):
        keys: Mapping[str, Any] = full_keys("sweeps") | {
            f"overrides.{key}": of_experiment[key] for key in of_experiment
        }
    else:
        keys = of_experiment
    if "=" in prefix:
        key = prefix.partition("=")[0]
        return [f"{key}={value}" for value in _choices(keys.get(key, {}))]
    return [f"{key}=" for key in keys]


def _choices(schema: Any) -> Iterator[str]:
    """The values that a schema lists."""
    if isinstance(schema, dict):
        for name, entry in schema.items():
            if name == "enum":
                yield from (str(value) for value in entry)
            elif name == "type" and entry == "boolean":
                yield from ("true", "false")
            elif name in ("anyOf", "allOf"):
                yield from (choice for part in typing.cast(list[Any], entry) for choice in _choices(part))


def _paths(prefix: str) -> list[str]:
    """Folders and YAML files below what was typed."""
    folder = Path(prefix) if prefix.endswith("/") else Path(prefix).parent
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return []
    return [
        f"{entry}/" if entry.is_dir() else str(entry) for entry in entries if entry.is_dir() or entry.suffix == ".yaml"
    ]


COMPLETERS: Mapping[str, Callable[..., list[str]]] = {
    "experiment": experiments,
    "sweep": sweeps,
    "overrides": overrides,
    "run": runs,
    "runs": runs,
    "model": runs,
    "what": anything,
}
"""By the name of an argument, whichever command has it."""
