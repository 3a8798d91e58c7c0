"""Suppresses log records and warnings of libraries while a block runs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def quiet(*loggers: str, messages: Sequence[str] = (), categories: Sequence[type[Warning]] = ()) -> Iterator[None]:
    """Suppresses everything below errors of some loggers, and some warnings, while the context lasts.

    Args:
        loggers: Names of the loggers.
        messages: Warnings to ignore: regular expressions for the beginnings of their texts.
        categories: Warnings to ignore: their classes.
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
