"""`tlresearch report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tlresearch.commands.shared import console_of_leader, store_argument

EXAMPLE = "tlresearch report 3f2a9c1b\ntlresearch report hymenoptera/lr_x_unfreeze_depth --out study.html"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("what", help="name of a sweep, or run id, unique beginning of it, or run name")
    parser.add_argument("--out", type=Path, help="file to write (default reports/NAME-ID.html)")
    store_argument(parser)


def command(options: argparse.Namespace) -> int:
    """Writes one HTML page about a run or study, which a colleague opens without MLflow."""
    from tlresearch.understand.report import write_report

    file = write_report(options.what, options.out)
    console_of_leader().print(
        f"written to {file} ({file.stat().st_size / 1e6:.1f} MB); open it in a browser", highlight=False, soft_wrap=True
    )
    return 0
