"""`tlresearch inspect`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tlresearch.commands.shared import OVERRIDES, STORE_KEY, Outcome, console_of_leader, store_argument

EXAMPLE = (
    "tlresearch inspect torchvision/resnet50\n"
    "tlresearch inspect hymenoptera/gradual --picture schedule.png\n"
    "tlresearch inspect 3f2a9c1b --saliency 8"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("what", help="a backbone such as torchvision/resnet50, an experiment, or a run (id or name)")
    parser.add_argument("--saliency", type=int, default=0, metavar="N", help="of a run: explain N images by Grad-CAM")
    parser.add_argument("--items", default="", metavar="A,B", help="of a run: explain the samples of these names")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw an experiment's schedule, or a run's stages")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    store_argument(parser)


def command(options: argparse.Namespace) -> Outcome:
    """Shows a backbone's stages and costs, an experiment's plan, or what fine-tuning did to the stages of a run."""
    from tlresearch.understand.inspection.inspect import inspect

    console = console_of_leader()
    with console.status(f"looking at {options.what}"):
        return inspect(
            options.what,
            [word for word in options.overrides if not word.startswith(STORE_KEY)],
            saliency=options.saliency,
            items=[name for name in options.items.split(",") if name],
            picture=options.picture,
        )
