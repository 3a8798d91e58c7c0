"""`tlresearch ui`."""

from __future__ import annotations

import argparse

from tlresearch.commands.shared import store_argument, warn_if_open

EXAMPLE = "tlresearch ui\ntlresearch ui --port 5001\ntlresearch ui --study hymenoptera/lr_x_unfreeze_depth"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--port", type=int, default=5000, help="port (default 5000)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    parser.add_argument(
        "--study",
        nargs="?",
        const="",
        metavar="NAME",
        help="Optuna's own dashboard instead, at this study (default: the newest); needs the extra `dashboard`",
    )
    parser.add_argument("--storage", metavar="URL", help="with --study: Optuna's database (default: the local one)")
    parser.add_argument("--no-browser", action="store_true", help="print the addresses and open none of them")
    store_argument(parser)


def command(options: argparse.Namespace) -> int:
    """Serves the MLflow UI on this machine and opens it at the study or run that came last."""
    warn_if_open(options.host)
    if options.study is not None:
        from tlresearch.studies.sweeps.dashboard import serve as serve_dashboard

        return serve_dashboard(options.study, storage=options.storage, port=options.port, host=options.host)
    from tlresearch.tracking.ui import serve

    return serve(port=options.port, host=options.host, browser=not options.no_browser)
