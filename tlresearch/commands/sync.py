"""`tlresearch sync`."""

from __future__ import annotations

import argparse

from tlresearch.commands.shared import console_of_leader, store_argument

EXAMPLE = "tlresearch sync"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    store_argument(parser)


def command(options: argparse.Namespace) -> int:
    """Delivers to MLflow what runs recorded while it was away."""
    from tlresearch.base.errors import TrackingError
    from tlresearch.base.redact import redact
    from tlresearch.tracking.courier import deliver, describe_deliveries
    from tlresearch.tracking.journal import is_written, journals
    from tlresearch.tracking.store import connect, resolve_uri

    console = console_of_leader()
    labels = list(dict.fromkeys(journal.store for journal in journals() if not is_written(journal)))
    if not labels:
        console.print("nothing waits: MLflow has everything")
        return 0
    given = resolve_uri()
    code = 0
    for label in labels:
        # An address is kept without its password: the whole one has to be given again.
        uri = given if redact(given) == label else label
        if redact(uri) != uri and uri == label:
            raise TrackingError(
                f"the address {label} is kept without its password: set MLFLOW_TRACKING_URI, or --tracking-uri"
            )
        connect(uri)
        done = deliver(uri)
        if whole := [one for one in done if not one.problem]:
            console.print(f"delivered to {label}: {describe_deliveries(whole)}", highlight=False, soft_wrap=True)
        for one in done:
            if one.problem:
                code = 1
                console.print(f"run {one.name or one.run_id}: {one.problem}", highlight=False, soft_wrap=True)
    return code
