"""`tlresearch schema`."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "tlresearch schema"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--out", type=Path, default=Path(), help="folder that holds experiments/ and sweeps/ (default .)"
    )


def command(options: argparse.Namespace) -> int:
    """Writes JSON Schemas of experiments and sweeps, by which editors complete and check YAML."""
    from tlresearch.config.json_schema import first_line, write_schemas

    files = write_schemas(options.out)
    print(f"written to {' and '.join(map(str, files))}; the first line of experiments/photos/probe.yaml is then:")
    print(first_line(1), end="")
    return 0
