"""`tlresearch rank`."""

from __future__ import annotations

import argparse

from tlresearch.base.errors import UserError
from tlresearch.commands.shared import OVERRIDES, console_of_leader

EXAMPLE = (
    "tlresearch rank hymenoptera/linear_probe --backbones torchvision/resnet18,torchvision/mobilenet_v2\n"
    "tlresearch rank hymenoptera_data --backbones all-small --boundaries"
)
ORDERS = ("logme", "h_score", "leep", "nce", "knn", "probe")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("what", help="an experiment, or a folder of images or an .npz file under TLRESEARCH_DATA")
    parser.add_argument("--backbones", default="all-small", metavar="A,B,C", help="names, or all-small (the default)")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="weights of one backbone: a file, an enum name, or null for random ones (repeatable; else the default)",
    )
    parser.add_argument(
        "--options",
        action="append",
        default=[],
        metavar="NAME=YAML",
        help="backbone.options of one backbone, such as 'word_cnn={vocabulary: [sst2/train.tsv]}' (repeatable)",
    )
    parser.add_argument("--by", choices=ORDERS, default="logme", help="score that decides the order (default: logme)")
    parser.add_argument("--boundaries", action="store_true", help="show the scores at every boundary too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def command(options: argparse.Namespace) -> int:
    """Ranks pretrained backbones on a data set without training, and proposes an unfreeze depth for each."""
    weights = dict(_pair(text, "--weights", "FILE") for text in options.weights)
    settings = dict(_pair(text, "--options", "YAML") for text in options.options)
    from tlresearch.show.terminal import show
    from tlresearch.understand.ranking.rank import SMALL, rank

    console = console_of_leader()
    names = list(SMALL) if options.backbones == "all-small" else options.backbones.split(",")
    with console.status("reading the data") as status:
        ranking = rank(
            options.what, names, options.overrides, weights=weights, options=settings, by=options.by, say=status.update
        )
    show(console, ranking.page_with(boundaries=options.boundaries))
    return 0 if ranking.there else 1


def _pair(text: str, option: str, value: str) -> tuple[str, str]:
    name, equals, given = text.partition("=")
    if not equals or not name or not given:
        raise UserError(f"{option}: '{text}' has not the form NAME={value}")
    return name, given
