"""`tlresearch curve`."""

from __future__ import annotations

import argparse

from tlresearch.base.errors import UserError
from tlresearch.commands.shared import OVERRIDES, Outcome, console_of_leader

EXAMPLE = "tlresearch curve hymenoptera/linear_probe --labels 1,2,5,10 --schedules linear_probe,full,lp_ft --seeds 3"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("experiment", help="name under experiments/, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    parser.add_argument("--labels", default="1,2,5,10", metavar="N,N", help="training samples per class (1,2,5,10)")
    parser.add_argument(
        "--schedules",
        default="linear_probe,full,lp_ft",
        metavar="NAME,NAME",
        help="values of freeze.schedule, depth=N, or variants of the experiment; the first is what the others are "
        "compared with (linear_probe,full,lp_ft)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="number of seeds (3)")
    parser.add_argument("--metric", help="such as test/macro_f1; unless given trainer.monitor's, on the test split")


def command(options: argparse.Namespace) -> Outcome:
    """Shows how accuracy grows with the number of labels, and when deeper unfreezing starts to pay."""
    texts = [text.strip() for text in options.labels.split(",") if text.strip()]
    if not all(text.isdigit() for text in texts):
        raise UserError(f"curve: --labels are whole numbers such as 1,2,5,10, but got '{options.labels}'")
    labels = [int(text) for text in texts]
    schedules = [text.strip() for text in options.schedules.split(",") if text.strip()]
    from tlresearch.studies.curve import fit_curve

    return fit_curve(
        options.experiment,
        labels,
        schedules,
        options.overrides,
        seeds=options.seeds,
        metric=options.metric,
        console=console_of_leader(),
    )
