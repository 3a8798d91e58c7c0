"""Libraries that say less while a block runs, and as much as before after it."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def quiet(*loggers: str, messages: Sequence[str] = (), categories: Sequence[type[Warning]] = ()) -> Iterator[None]:
    """Lets some loggers through with errors only, and ignores some warnings.

    Args:
        loggers: Names of the loggers.
        messages: Regular expressions that the beginnings of ignored warnings match.
        categories: Kinds of warnings that are ignored whatever they say.
    """
    levels = {name: logging.getLogger(name).level for name in loggers}
    with warnings.catch_warnings():
        for message in messages:
            warnings.filterwarnings("ignore", message=message)
        for category in categories:
            warnings.filterwarnings("ignore", category=category)
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
