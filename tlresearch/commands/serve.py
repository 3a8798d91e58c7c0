"""`tlresearch serve`."""

from __future__ import annotations

import argparse
from typing import Any

from tlresearch.commands.shared import console_of_leader, store_argument, warn_if_open

EXAMPLE = "tlresearch serve 3f2a9c1b\ntlresearch serve models:/ants_bees@champion --port 5002"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("model", help="run id, unique beginning of it, run name, or models:/name@alias")
    parser.add_argument("--port", type=int, default=5002, help="port (default 5002; 0 takes a free one)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    store_argument(parser)


def command(options: argparse.Namespace) -> int:
    """Serves a model by MLflow's scoring server: raw files in, predictions out."""
    from tlresearch.tracking.records import Runs
    from tlresearch.tracking.registry import find_model
    from tlresearch.tracking.scoring import serve_model

    warn_if_open(options.host)
    console = console_of_leader()
    found = find_model(Runs(), options.model)

    def ready(address: str, predictor: Any) -> None:
        columns, row = (
            ", ".join(f'"{name}"' for name in predictor.raw.columns),
            ", ".join('"…"' for _ in predictor.raw.columns),
        )
        body = f'{{"dataframe_split": {{"columns": [{columns}], "data": [[{row}]]}}}}'
        lines = (
            f"{found.name} answers at {address}/invocations; Ctrl-C stops it. A request, a text or a file in base64:",
            f"  curl {address}/invocations -H 'Content-Type: application/json' -d '{body}'",
        )
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    serve_model(found.run.store, found.model_id, host=options.host, port=options.port, ready=ready)
    return 0
