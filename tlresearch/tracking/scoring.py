"""Serves a logged model by MLflow's own scoring server, in this process."""

from __future__ import annotations

import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

from tlresearch.base.errors import TrackingError
from tlresearch.tracking.model import load_model
from tlresearch.tracking.store import Store


def serve_model(
    store: Store, model_id: str, *, host: str = "127.0.0.1", port: int = 5002, ready: Callable[[str, Any], None]
) -> None:
    """Answers ``POST /invocations`` until interrupted.

    Args:
        store: The store that holds the model.
        model_id: The logged model.
        host: Address to listen on.
        port: Port; 0 chooses a free one.
        ready: Called with the server's address and the predictor when the server accepts requests.

    Raises:
        TrackingError: If the port is in use, or the model is incomplete.
    """
    # The port is opened first: loading a model takes seconds, and a port in use should be an error at once.
    listening = _listen(host, port)
    with listening:
        model = load_model(store, model_id)
        with warnings.catch_warnings():
            # The server's libraries warn about one another when they are imported.
            warnings.simplefilter("ignore")
            import uvicorn
            from mlflow.pyfunc import scoring_server

            app = scoring_server.init(model)
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listening.getsockname()[1]}", model.unwrap_python_model().predictor)  # type: ignore[no-untyped-call]
        sys.stdout.flush()
        try:
            uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none")).run(sockets=[listening])
        except KeyboardInterrupt:
            return  # uvicorn has shut down, and then raises the signal again


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise TrackingError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    return listening
