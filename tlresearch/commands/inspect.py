"""`tlresearch inspect`."""

from __future__ import annotations

import argparse

from tlresearch.commands.shared import OVERRIDES, console_of_leader

EXAMPLE = "tlresearch inspect torchvision/resnet50\ntlresearch inspect hymenoptera/gradual"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("what", help="a backbone such as torchvision/resnet50, or an experiment")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def command(options: argparse.Namespace) -> int:
    """Shows the stages of a backbone, or the plan of an experiment, before anything trains."""
    from tlresearch.inspect import inspect_anything

    inspect_anything(options.what, options.overrides, console_of_leader())
    return 0
