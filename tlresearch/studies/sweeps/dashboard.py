"""Serves Optuna's dashboard for the database of the studies; needs the extra `dashboard`."""

from __future__ import annotations

import contextlib
import signal
import threading
import warnings
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna

from tlresearch.base.errors import MissingExtraError, UserError, nearest
from tlresearch.config.sweep_schema import SweepConfig
from tlresearch.studies.sweeps import study as studies


def serve(name: str, *, storage: str | None, port: int, host: str) -> int:
    """Serves the dashboard until interrupted.

    Args:
        name: Study that the printed address opens; if empty, the newest study.
        storage: Database of the studies; ``None`` for the local database.
        port: Port to listen on.
        host: Address to listen on.

    Returns:
        Exit code.

    Raises:
        MissingExtraError: If the dashboard is not installed.
        UserError: If the database cannot be opened, or has no such study.
    """
    try:
        import optuna_dashboard
    except ModuleNotFoundError as error:
        if error.name != "optuna_dashboard":
            raise
        raise MissingExtraError("optuna-dashboard", "dashboard") from None
    with warnings.catch_warnings(), studies.quiet_optuna():
        warnings.simplefilter("ignore")  # its libraries warn of their own deprecations
        opened = studies.open_storage(SweepConfig(storage=storage))
        study_ids = {study.study_name: study._study_id for study in optuna.get_all_study_summaries(opened)}
        if not study_ids:
            raise UserError("ui: there is no study yet; tlresearch sweep makes one")
        chosen = name or max(study_ids, key=lambda study: study_ids[study])
        if chosen not in study_ids:
            raise UserError(
                f"ui: there is no study '{chosen}'{nearest(chosen, [*study_ids])}; there are {', '.join(study_ids)}"
            )
        app = optuna_dashboard.wsgi(opened)
    try:
        server = make_server(host, port, app, handler_class=_Quiet)
    except OSError as error:
        raise UserError(
            f"ui: port {port} of {host} cannot be listened on ({error.strerror}); give another --port"
        ) from None
    address = f"http://{host}:{port}/dashboard/studies/{study_ids[chosen]}"
    print(f"Optuna's dashboard; Ctrl-C stops it. Study {chosen}:\n  {address}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # In a thread: the server catches exceptions while it answers a request, and so would swallow the interrupt.
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    with warnings.catch_warnings(), contextlib.suppress(KeyboardInterrupt):
        warnings.simplefilter("ignore")
        serving.start()
        serving.join()
    return 0


class _Quiet(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *args: object) -> None:
        """Drops a line of the log."""
