"""What several commands say or need."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from tlresearch.base.paths import is_yaml, known_place
from tlresearch.base.ranks import is_leader
from tlresearch.base.redact import redact

if TYPE_CHECKING:
    from rich.console import Console

    from tlresearch.show.page import Page

OVERRIDES = "values by full key, such as optimizer.lr=3e-3; `tlresearch config` lists them all"
STORE_KEY = "tracking.uri="
"""The override that names a store."""
_STORE = "MLFLOW_TRACKING_URI"


class Outcome(Protocol):
    """What a command has found, for the command line to show; see `tlresearch.show.page.Shown`."""

    @property
    def page(self) -> Page:
        """The page about it."""
        ...

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        ...


def store_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the option that names the MLflow store a command looks for runs in; `store_of` follows it."""
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="the MLflow store to look in, as tracking.uri of the run's config (default MLFLOW_TRACKING_URI, else "
        "SQLite under TLRESEARCH_HOME)",
    )


@contextlib.contextmanager
def store_of(options: argparse.Namespace) -> Iterator[None]:
    """Makes the store that a command names the default one while it runs: by its option, or among its overrides."""
    if not hasattr(options, "tracking_uri"):
        yield
        return
    overrides = [word.partition("=")[2] for word in getattr(options, "overrides", ()) if word.startswith(STORE_KEY)]
    uri = options.tracking_uri or (overrides[-1] if overrides else None)
    before = os.environ.get(_STORE)
    if uri:
        os.environ[_STORE] = uri
    try:
        yield
    finally:
        if uri and before is None:
            del os.environ[_STORE]
        elif uri and before is not None:
            os.environ[_STORE] = before


def named_yaml(text: str, kind: Literal["experiments", "sweeps"], console: Console) -> str | Path:
    """The experiment or sweep that a command names: by its name or path, or by the folder of data it is drafted for.

    Args:
        text: What was typed.
        kind: Which of the two.
        console: Where it is said what was seen in the folder, and chosen for it.
    """
    if is_yaml(text, kind):
        return text
    place = known_place(text)
    if place is None or place.suffix in (".yaml", ".yml"):
        return text
    from tlresearch.drafting.draft import draft
    from tlresearch.show.elements import Facts
    from tlresearch.show.page import page_of
    from tlresearch.show.terminal import show

    with console.status(f"looking at {text}"):
        drafted = draft(place)
    show(console, page_of("", Facts(tuple(drafted.said))))
    return drafted.experiment if kind == "experiments" else drafted.sweep


def console_of_leader() -> Console:
    """Returns the terminal, which is shown no secret; of several processes of one run, only the first writes to it."""
    from tlresearch.show.terminal import open_console

    return open_console(cast(Any, _Clean(sys.stdout)), quiet=not is_leader())


def warn_if_open(host: str) -> None:
    """Says on the terminal's error stream that a server answers others than this machine."""
    if host not in ("localhost", "::1") and not host.startswith("127."):
        print(f"warning: on {host} everybody in the network can ask, without a password; 127.0.0.1 is this machine "
              "alone (docs/security.md)", file=sys.stderr, flush=True)  # fmt: skip


class _Clean:
    """A stream in which secrets are hidden."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> Any:
        return self._stream.write(redact(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
