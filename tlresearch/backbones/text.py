"""A backbone over text, which can write down the vocabulary and settings it is built from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from tlresearch.backbones.base import StagedBackbone

FOLDER = "{folder}"
"""Stands for the folder of the files in a `Recipe`."""


class Recipe(TypedDict):
    """How to build a backbone again, its weights aside: a name and options, with `FOLDER` for where the files are."""

    name: str
    options: dict[str, Any]


class TextBackbone(StagedBackbone):
    """Stages over token numbers.

    Args:
        save_files: Writes vocabulary and settings into a folder and says how to build the backbone from them.
        arguments: See `StagedBackbone`.
    """

    def __init__(self, *arguments: Any, save_files: Callable[[Path], Recipe], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.save_files = save_files
