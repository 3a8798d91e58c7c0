"""`tlresearch ui`."""

from __future__ import annotations

import argparse

from tlresearch.commands.shared import store_argument, warn_if_open

EXAMPLE = "tlresearch ui --port 5001"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--port", type=int, default=5000, help="port (default 5000)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    store_argument(parser)


def command(options: argparse.Namespace) -> int:
    """Serves the MLflow UI on this machine."""
    from tlresearch.tracking.ui import serve

    warn_if_open(options.host)
    return serve(port=options.port, host=options.host)
