"""Serves MLflow's UI for the local store, the light way: one worker, no job runner, this machine only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tlresearch.tracking.store import connect
from tlresearch.tracking.views import saved_views


def serve(*, port: int = 5000, host: str = "127.0.0.1") -> int:
    """Serves the UI until interrupted; of a store that is a server, prints the server's address.

    Returns:
        Exit code of the server.
    """
    store = connect()
    if store.artifacts is None:
        print(f"the runs are on a server, open {store.ui}")
        return 0
    print(f"MLflow UI over {store.label}; Ctrl-C stops it. Tables of runs:", flush=True)
    for name, address in saved_views(store, f"http://{host}:{port}"):
        print(f"  {name:<32} {address}", flush=True)
    # With more workers every request takes 44 ms; the jobs are for language models and cost 2 GB of memory.
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--workers",
        "1",
        "--host",
        host,
        "--port",
        str(port),
    ]
    # By the environment: a command line can be read by everybody on the machine.
    settings = {
        "MLFLOW_BACKEND_STORE_URI": store.uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",  # what the server's own libraries have deprecated
    }
    # In a session of its own, so that Ctrl-C reaches this process alone, which ends the server without its complaints.
    server = subprocess.Popen(command, env={**os.environ, **settings}, start_new_session=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait()
