# PYTHON_ARGCOMPLETE_OK
"""The command line: finds the command, and turns what went wrong into a line and an exit code.

A command is a module under ``commands/``. Everything heavy is imported inside its function, so that --help is instant.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tlresearch.base.errors import UserError
from tlresearch.base.redact import protect_output
from tlresearch.commands import (
    cache,
    compare,
    config,
    curve,
    demo,
    export,
    init,
    inspect,
    predict,
    rank,
    register,
    report,
    reproduce,
    run,
    schema,
    serve,
    shift,
    sweep,
    sync,
    ui,
    verify,
    worker,
)
from tlresearch.commands.completion import complete
from tlresearch.commands.shared import Outcome, console_of_leader, store_of
from tlresearch.show.signs import survive_encodings

COMMANDS = (
    init,
    run,
    sweep,
    worker,
    reproduce,
    compare,
    verify,
    curve,
    shift,
    predict,
    register,
    serve,
    export,
    report,
    rank,
    inspect,
    config,
    schema,
    ui,
    sync,
    cache,
    demo,
)
"""In the order of the help. Each module has ``arguments``, ``EXAMPLE``, and ``command``, which returns an exit code or
what it has found."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 1 (a result not reached) or 2 (bad input)."""
    survive_encodings()
    options = _parse(arguments)
    protect_output()
    command: Callable[[argparse.Namespace], int | Outcome] = options.command
    try:
        _find_modules_here()
        with _each_warning_once(), store_of(options):
            outcome = command(options)
            return outcome if isinstance(outcome, int) else _show(outcome)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not _is_about(error, getattr(options, "out", None)):
            raise
        print(f"error: --out: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr)
        return 130


def _is_about(error: OSError, out: str | Path | None) -> bool:
    """Whether an error is about the file or folder that a user named for what a command writes."""
    if out is None or not isinstance(error.filename, str):
        return False
    there, named = Path(error.filename).absolute(), Path(out).absolute()
    return there.is_relative_to(named) or named.is_relative_to(there)


def _show(outcome: Outcome) -> int:
    """Shows what a command has found."""
    from tlresearch.show.terminal import show

    show(console_of_leader(), outcome.page)
    return outcome.exit_code


def _find_modules_here() -> None:
    """Makes data sets, backbones and tasks of one's own importable from the current folder."""
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder is no longer there; go to another one") from None
    if here not in sys.path:
        sys.path.insert(0, here)


@contextlib.contextmanager
def _each_warning_once() -> Iterator[None]:
    """A command that runs an experiment several times, by seed or trial, says what is wrong with its data once."""
    said: set[str] = set()

    def new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return text not in said and not said.add(text)  # type: ignore[func-returns-value]

    handler = logging.lastResort  # Python's own: prints warnings where nobody asked for anything else
    if handler:
        handler.addFilter(new)
    try:
        yield
    finally:
        if handler:
            handler.removeFilter(new)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line; overrides may stand before and behind options, which argparse does not see by itself."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what may follow
        complete(parser)
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") or "=" not in word for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tlresearch",
        description="Transfer-learning research: which backbone, how deep to unfreeze, at which learning rates.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        summary = (module.command.__doc__ or "").strip()
        command = commands.add_parser(
            module.__name__.rpartition(".")[2],
            help=summary,
            description=summary,
            epilog="example:\n" + textwrap.indent(module.EXAMPLE, "  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.arguments(command)
        command.set_defaults(command=module.command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
