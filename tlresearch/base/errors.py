"""Errors that the user can correct: they end a command with one clear text and exit code 2."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from tlresearch.base import handed
from tlresearch.base.redact import redact
from tlresearch.base.trust import TRUSTED, may_import


class UserError(Exception):
    """A mistake in config, data, a file or the environment; its text names the place and the cure.

    The command line prints the text without a traceback and exits with code 2.
    Any other exception is a bug of ours and keeps its traceback.

    Args:
        text: The text; passwords, tokens and the values of environment variables that a config reads are hidden.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(redact(text))


class ConfigError(UserError):
    """All problems of a config together.

    Args:
        problems: One line per problem, each beginning with the full key path.
        source: The file (or command line) the config came from.
    """

    def __init__(self, problems: Sequence[str], source: str = "config") -> None:
        self.problems = tuple(one_line(redact(problem)) for problem in problems)
        self.source = source
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {line}" for line in self.problems)]))


class DataError(UserError):
    """A data folder, file or label that cannot be used; the text names it and the cure, in one line."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text, 2500))


class WeightsError(UserError):
    """Weights that cannot be found, do not fit the backbone, or fail their hash; one line."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text, 2500))


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
    """A file or folder that a config names does not exist; the text names the places that were searched."""


class TrackingError(UserError):
    """The MLflow store cannot be reached, refuses a request, or does not hold a run or model."""


class RunFailedError(UserError):
    """A failure of one run only, such as its loss, memory or data loader: a sweep goes on without the run."""


def one_line(problem: str | BaseException, longest: int = 1000) -> str:
    """Returns a text, or the text of an error, in one line of readable length and without secrets.

    For a `ConfigError` that is its problems without the file, for an error without a text its class name.
    """
    if isinstance(problem, ConfigError):
        return _shortened("; ".join(problem.problems), longest)
    lines = [line.strip() for line in str(problem).splitlines()]
    return _shortened(" ".join(line for line in lines if line) or type(problem).__name__, longest)


def first_line(error: BaseException, longest: int = 400) -> str:
    """Returns the first line of a library's error, without secrets: advice, dumps and SQL statements follow it."""
    # SQLAlchemy puts advice in front of the error instead.
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("(raised as a result of")]
    return one_line(lines[0] if lines else type(error).__name__, longest)


def _shortened(line: str, longest: int) -> str:
    clean = redact(line)
    return clean if len(clean) <= longest else f"{clean[:longest]}…"


def nearest(word: str, names: Sequence[str], *, count: int = 1) -> str:
    """Returns ``" (did you mean 'x'?)"`` for the names closest to `word`, or an empty string."""
    import difflib

    # Reversed, so that of two names that differ only in case the first is proposed.
    by_lower_case = {name.lower(): name for name in reversed(names)}
    matches = difflib.get_close_matches(word.lower(), by_lower_case, n=count, cutoff=0.5)
    close = [by_lower_case[name] for name in matches]
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def load_object(path: str, key: str, *, ours: bool = False) -> Any:
    """Imports a user's object by dotted path, such as ``my_package.my_module.MyData``.

    Args:
        path: The dotted path.
        key: The config key that holds the path, for the error.
        ours: Whether a short name of ours stands for the path, so that nobody else has chosen it.

    Raises:
        UserError: If the module does not exist, cannot be imported, or has no such name; or if a stored model names it
            and it is not trusted.
    """
    if path.startswith(handed.PREFIX):
        try:
            return handed.find(path)
        except KeyError:
            raise UserError(
                f"{key}: {path.removeprefix(handed.PREFIX)} was handed over as an object, which no record holds; hand "
                "it over again, as in tlresearch.fit(config, ...)"
            ) from None
    module, _, name = path.rpartition(".")
    if not module:
        raise UserError(f"{key}: '{path}' is neither known nor a dotted path such as my_package.my_module.{path}")
    if not ours and not may_import(path):
        raise UserError(
            f"{key}: a stored model names {path}, whose code would run; if you trust it, add its package to {TRUSTED}"
        )
    try:
        return _at(module, (name,))
    except AttributeError:
        raise UserError(f"{key}: the module '{module}' has no '{name}'") from None
    except Exception as error:  # a module of the user's may raise anything
        if _is_missing(error, module):
            raise UserError(
                f"{key}: there is no module '{error.name}' for '{path}'; "  # type: ignore[attr-defined]
                "run from the folder that holds it, or add that to PYTHONPATH"
            ) from None
        raise UserError(
            f"{key}: '{module}' cannot be imported: {type(error).__name__}: {one_line(error, 300)}; "
            f"`python -c 'import {module}'` shows where"
        ) from error


def _at(module: str, names: Sequence[str]) -> Any:
    """The object of this name in a module, or in a class of one: ``my_module.Colours.RED``."""
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        above, _, last = module.rpartition(".")
        if error.name != module or not above:
            raise
        try:
            return _at(above, (last, *names))
        except AttributeError:
            raise error from None
    for name in names:
        found = getattr(found, name)
    return found


def _is_missing(error: Exception, module: str) -> bool:
    """Whether an import failed because there is no such module, and not in it."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    return name is not None and (module == name or module.startswith(f"{name}."))


def call_object(path: str, key: str, arguments: Mapping[str, Any]) -> Any:
    """Imports a user's object by dotted path and calls it.

    Raises:
        UserError: If it cannot be imported or does not take the arguments.
    """
    target = load_object(path, key)
    # Arguments that do not fit are a mistake in the config; a TypeError from within the call is a bug of the object.
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        section = key.rpartition(".")[0]
        names = ", ".join(arguments) or "none"
        raise UserError(f"{section}.options: {path} does not take these arguments ({names}): {error}") from None
    return target(**arguments)
