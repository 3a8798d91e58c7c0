"""Whose code a stored model may name: our own, and that of packages that the user trusts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

TRUSTED = "TLRESEARCH_TRUSTED_LOADERS"
"""Variable that names packages, separated by commas."""
_only_trusted: ContextVar[bool] = ContextVar("only_trusted", default=False)


def is_trusted(path: str) -> bool:
    """Whether the user trusts the package of a dotted path."""
    return path.partition(".")[0] in filter(None, os.environ.get(TRUSTED, "").split(","))


@contextlib.contextmanager
def only_trusted() -> Iterator[None]:
    """While it lasts, what a dotted path leads to is imported from our tasks and trusted packages only.

    A config is the user's, and may name any code. A stored model is a file that somebody else may have written.
    """
    token = _only_trusted.set(True)
    try:
        yield
    finally:
        _only_trusted.reset(token)


def may_import(path: str) -> bool:
    """Whether what a dotted path leads to may be imported now."""
    # Our tasks are named by their classes; everything else of ours by short names, which import nothing.
    return not _only_trusted.get() or is_trusted(path) or path.startswith("tlresearch.tasks.")
