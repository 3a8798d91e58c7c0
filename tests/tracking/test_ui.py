"""The UI server: it answers on this machine, its printed address leads to a table of runs, and it ends with us."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking.run import open_run
from tlresearch.tracking.store import connect
from tlresearch.tracking.views import save_view


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_server_answers_and_ends_quietly(end: signal.Signals) -> None:
    with open_run(TrackingConfig(system_metrics=False), experiment="birds", name="a", params={}, tags={}) as run:
        save_view(connect(), run.experiment_id, metrics=["val/accuracy"], params=[])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tlresearch", "ui", "--no-browser", "--port", str(port)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.3)
    finally:
        process.send_signal(end)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=" in output
    assert f"The newest, run a:\n  http://127.0.0.1:{port}/#/experiments/1/runs/{run.run_id}?" in output
    assert "Traceback" not in output
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0  # nothing is left listening
