"""`tlresearch init`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tlresearch.base.errors import UserError
from tlresearch.base.paths import data_folder, known_place
from tlresearch.commands.shared import console_of_leader

EXAMPLE = "tlresearch init photos/\ntlresearch init reviews.csv"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("folder", help="folder of images, sounds, texts, masks or boxes, or one table")


def command(options: argparse.Namespace) -> int:
    """Looks at a folder of data and writes an experiment and a sweep for it, to be read and changed."""
    place = known_place(options.folder)
    if place is None:
        raise UserError(f"init: there is no folder or file '{options.folder}' here or in {data_folder()}")
    from tlresearch.drafting.draft import draft
    from tlresearch.show.elements import Command, Facts
    from tlresearch.show.page import page_of
    from tlresearch.show.terminal import show

    drafted = draft(place, below=Path())
    name, sweep = (
        str(file.with_suffix("").relative_to(file.parents[1])) for file in (drafted.experiment, drafted.sweep)
    )
    commands = (Command(f"tlresearch run {name}", "run it"), Command(f"tlresearch sweep {sweep}", "search"))
    show(console_of_leader(), page_of("", Facts(tuple(drafted.said)), *commands))
    return 0
