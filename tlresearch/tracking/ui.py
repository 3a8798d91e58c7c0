"""Serves MLflow's UI for the local store with few resources: one worker, no job runner, this machine only.

It opens at the newest record: the table of trials of the newest study, or the page of the newest run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser

from tlresearch.tracking.store import connect
from tlresearch.tracking.views import latest, saved_views

_PATIENCE = 60  # seconds until the server answers


def serve(*, port: int = 5000, host: str = "127.0.0.1", browser: bool = False) -> int:
    """Serves the UI until interrupted. If the store is a server, only prints the server's address.

    Args:
        port: Port to listen on.
        host: Address to listen on.
        browser: Whether a browser is opened once the server answers, on a machine with a desktop.

    Returns:
        Exit code of the server.
    """
    store = connect()
    if store.artifacts is None:
        print(f"the runs are on a server, open {store.ui}")
        return 0
    base = f"http://{host}:{port}"
    newest = latest(store, base)
    print(f"MLflow UI over {store.label}; Ctrl-C stops it.", flush=True)
    if newest is not None:
        print(f"The newest, {newest[0]}:\n  {newest[1]}", flush=True)
    print("Tables of runs:", flush=True)
    for name, address in saved_views(store, base):
        print(f"  {name:<32} {address}", flush=True)
    # With more workers every request takes 44 ms. The job runner serves language models and takes 2 GB of memory.
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
    # The address may hold a password, and everybody on the machine can read a command line, so it goes through the
    # environment.
    settings = {
        "MLFLOW_BACKEND_STORE_URI": store.uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",  # the server's libraries warn of their own deprecations
    }
    # In a new session, so that Ctrl-C reaches only this process: it ends the server without a traceback of the server.
    server = subprocess.Popen(command, env={**os.environ, **settings}, start_new_session=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if browser and newest is not None and _has_desktop():
        threading.Thread(target=_open, args=(base, newest[1]), daemon=True).start()
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait()


def _has_desktop() -> bool:
    """Whether the user has a desktop. Without a display, `webbrowser` would start a browser in the terminal."""
    return sys.stdout.isatty() and (
        sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    )


def _open(base: str, address: str) -> None:
    """Opens a page once the server answers."""
    for _ in range(_PATIENCE):
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=1):
                webbrowser.open(address)
                return
        except OSError:
            time.sleep(1)
