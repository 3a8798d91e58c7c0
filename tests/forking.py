"""The program of a process that has imported everything, and forks for each command of tlresearch it is asked for.

    python -W ignore tests/forking.py SOCKET [MODULE …]

Further modules are imported as well. A request is a line of JSON (`arguments`, `folder`, `environment`) with three
descriptors for the standard streams. The answers are two lines: the process's number, and later its exit code. The
child is what `tlresearch` is: it calls the same `cli.main`, in a session of its own. The end of this program's standard
input is its own end.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any

POLL = 0.02  # seconds


def serve(path: str, modules: list[str]) -> None:
    """Answers requests until the standard input ends."""
    import lightning.pytorch  # noqa: F401
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import optuna  # noqa: F401
    import torch

    import tlresearch.commands.run
    import tlresearch.commands.sweep
    import tlresearch.studies.sweeps.run  # noqa: F401

    for module in modules:
        importlib.import_module(module)
    torch.set_num_threads(1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    under_way: dict[int, socket.socket] = {}
    while True:
        readable, _, _ = select.select([listener, sys.stdin], [], [], POLL)
        if sys.stdin in readable:
            return
        if listener in readable:
            connection, _ = listener.accept()
            task, streams = _receive(connection)
            process = os.fork()
            if process == 0:
                listener.close()
                _become(task, streams)
            for stream in streams:
                os.close(stream)
            under_way[process] = connection
            _say(connection, process)
        while under_way:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                break
            if process in under_way:
                with under_way.pop(process) as connection:
                    _say(connection, os.waitstatus_to_exitcode(status))


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    text, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not text.endswith(b"\n"):
        text += connection.recv(1 << 16)
    return json.loads(text), streams


def _say(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # whoever asked does not want to know any more
        connection.sendall(f"{number}\n".encode())


def _become(task: dict[str, Any], streams: list[int]) -> None:
    """Turns this child into the command; does not return."""
    code: object = 1
    try:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(task["folder"])
        os.environ.clear()
        os.environ.update(task["environment"])
        # What the interpreter does with it when it starts.
        sys.path[1:1] = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(":") if place]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.argv = ["tlresearch", *task["arguments"]]
        from tlresearch.cli import main

        code = main(task["arguments"])
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        traceback.print_exc()
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
