"""What a user can mend: errors that end a command with one clear text and exit code 2."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any


class UserError(Exception):
    """A mistake in config, data, a file or the surroundings; its text names the place and the cure.

    The command line prints the text without a traceback and exits with code 2.
    Anything that is not a `UserError` is a bug of ours and keeps its traceback.
    """


class ConfigError(UserError):
    """All problems of one config at once.

    Args:
        problems: One line per problem, each beginning with the full key path.
        source: The file (or command line) the config came from.
    """

    def __init__(self, problems: Sequence[str], source: str = "config") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {line}" for line in problems)]))


class DataError(UserError):
    """A data folder, file or label that cannot be used; the text names it and the cure."""


class WeightsError(UserError):
    """Weights that cannot be found, do not fit the backbone, or fail their hash."""


class MissingExtraError(UserError):
    """An optional dependency is not installed.

    Args:
        package: The package that could not be imported.
        extra: The extra of tlresearch that installs it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed: it comes with the extra '{extra}' (pip install 'tlresearch[{extra}]')"
        )


class MissingFileError(UserError):
    """A file or folder that a config names is not here; the text names the places it was looked for."""


class TrackingError(UserError):
    """The MLflow store cannot be reached or does not hold what was asked for."""


def nearest(word: str, known: Sequence[str]) -> str:
    """Returns ``" (did you mean 'x'?)"`` for the known word closest to `word`, or an empty string."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def load_object(path: str, key: str) -> Any:
    """Imports an object of the user's own by dotted path, such as ``my_package.my_module.MyData``.

    Args:
        path: The dotted path.
        key: The config key it stands in, for the error.

    Raises:
        UserError: If the module or the name in it does not exist.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise UserError(f"{key}: '{path}' is neither known nor a dotted path such as my_package.my_module.{path}")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise UserError(
            f"{key}: there is no module '{error.name}' for '{path}'; "
            "run from the folder that holds it, or add that to PYTHONPATH"
        ) from None
    except AttributeError:
        raise UserError(f"{key}: the module '{module}' has no '{name}'") from None


def call_object(path: str, key: str, arguments: Mapping[str, Any]) -> Any:
    """Imports an object of the user's own and calls it; arguments it does not take are the config's mistake.

    Raises:
        UserError: If it cannot be imported or does not take the arguments.
    """
    target = load_object(path, key)
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        section = key.rpartition(".")[0]
        given = ", ".join(arguments) or "none"
        raise UserError(f"{section}.options: {path} does not take these arguments ({given}): {error}") from None
    return target(**arguments)
