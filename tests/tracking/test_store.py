"""The store: where it is, a fresh database under many processes, a server that is down or up, addresses."""

from __future__ import annotations

import http.server
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.servers import free_port, mlflow_server
from tests.tracking.outages import artifact
from tlresearch.base.errors import TrackingError, UserError
from tlresearch.base.redact import redact, redact_command
from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking.run import open_run
from tlresearch.tracking.store import connect, resolve_uri


def test_the_uri_is_that_of_the_config_then_the_environment_then_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_uri() == f"sqlite:///{tmp_path}/home/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000/")
    assert resolve_uri() == "http://host:5000"
    assert resolve_uri("sqlite:///here.db") == f"sqlite:///{tmp_path}/here.db"


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///:memory:"])
def test_stores_that_do_not_keep_runs_are_refused(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"sqlite:///path/mlflow\.db"):
        resolve_uri(uri)


@pytest.mark.parametrize("uri", ["sqlite:///a?.db", "sqlite:///a%20b/mlflow.db", "sqlite:///m.db?timeout=30"])
def test_a_database_that_its_address_would_name_otherwise_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking.uri: .* means something else in the address of a database"):
        resolve_uri(uri)
    assert resolve_uri("sqlite:///~/m.db") == f"sqlite:///{Path.home()}/m.db"


START = """
import sys
from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking.run import open_run
config = TrackingConfig(system_metrics=False)
with open_run(config, experiment="e", name=sys.argv[1], params={}, tags={}) as run:
    run.log_metrics({"loss": 1.0}, 0)
"""


@pytest.mark.slow
def test_four_processes_start_at_once_on_a_fresh_database(tmp_path: Path) -> None:
    (tmp_path / "home" / "mlflow.db").unlink()
    processes = [
        subprocess.Popen([sys.executable, "-c", START, f"r{index}"], stderr=subprocess.PIPE, text=True)
        for index in range(4)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    assert "INFO" not in "".join(errors), "alembic is quiet"
    client = connect().client
    (experiment,) = [found for found in client.search_experiments() if found.name == "e"]
    assert len(client.search_runs([experiment.experiment_id])) == 4
    assert experiment.artifact_location == str(tmp_path / "home" / "artifacts" / "e")
    with sqlite3.connect(tmp_path / "home" / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_server_that_is_down_is_a_clear_error_within_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(TrackingError, match="does not answer") as caught:
        connect(f"http://user:hunter2@127.0.0.1:{free_port()}")
    assert time.monotonic() - started < 10
    assert "127.0.0.1" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 500])
def test_what_is_wrong_with_a_server_is_told_by_its_answer_not_by_digits_in_an_address(status: int) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(TrackingError) as caught:
            connect(f"http://127.0.0.1:{server.server_port}/lab401")
        server.shutdown()
        thread.join()
    assert ("it refuses us" in str(caught.value)) == (status == 401)
    assert "does not answer" not in str(caught.value)


def test_a_proxy_that_is_asked_instead_of_the_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port, proxy = free_port(), free_port()
    monkeypatch.setenv("HTTP_PROXY", f"http://ada:hunter2@127.0.0.1:{proxy}")
    monkeypatch.setenv("http_proxy", f"http://ada:hunter2@127.0.0.1:{proxy}")
    with pytest.raises(TrackingError, match=rf"through the proxy http://\*\*\*@127.0.0.1:{proxy} .* NO_PROXY=127"):
        connect(f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(TrackingError, match="does not answer") as caught:
        connect(f"http://127.0.0.1:{port}")
    assert "proxy" not in str(caught.value)


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_text("this is not a database, it only looks like one" * 10)
    with pytest.raises(TrackingError, match=r"bad\.db"):
        connect("sqlite:///bad.db")


@pytest.mark.slow
def test_a_run_on_a_server_is_stored_there(tmp_path: Path, empty_database: Path) -> None:
    with mlflow_server(tmp_path / "server", template=empty_database) as running:
        _record_there(running.uri, tmp_path)


def _record_there(server: str, tmp_path: Path) -> None:
    config = TrackingConfig(uri=server, system_metrics=False)
    with open_run(config, experiment="remote", name="r", params={"a": 1}, tags={}) as run:
        run.log_metrics({"loss": 1.0}, 0)
        run.log_text("hello", "a.txt")
    stored = run.store.client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.metrics == {"loss": 1.0}
    assert artifact(run, "a.txt").read_text() == "hello"
    assert run.url.startswith(f"{server}/#/experiments/")
    assert not (tmp_path / "home" / "artifacts").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://user:pa@ss@host/db", "postgresql://***@host/db"),
        ("postgresql://user:pa/ss@host/db", "postgresql://***@host/db"),
        ("https://abcdef@host/x", "https://***@host/x"),
        ("http://host:5000/path@2", "http://host:5000/path@2"),
        ("https://h/x?token=abc&b=2", "https://h/x?token=***&b=2"),
        ("https://h/x?X-Amz-Signature=abc", "https://h/x?X-Amz-Signature=***"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("sorted(x, key=len)", "sorted(x, key=len)"),
        ("hf_abcdefghijklmnopqrstuvwx", "***"),
    ],
)
def test_redact_hides_credentials_and_nothing_else(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_a_command_line_is_shown_without_secrets() -> None:
    words = [
        "tlresearch",
        "run",
        "x",
        "--password",
        "abc",
        "db.token=def",
        "optimizer.lr=1e-3",
        "max_tokens=5",
    ]
    assert redact_command(words) == ("tlresearch run x --password *** 'db.token=***' optimizer.lr=1e-3 max_tokens=5")


def test_a_deleted_experiment_is_restored(caplog: pytest.LogCaptureFixture) -> None:
    store = connect()
    first = store.experiment_id("gone")
    store.client.delete_experiment(first)
    assert store.experiment_id("gone") == first
    assert "restored" in caplog.text


def test_a_run_is_created_in_an_experiment_that_is_looked_up_once() -> None:
    store = connect()
    first = store.create_run("e").info.experiment_id
    store.client.rename_experiment(first, "renamed")
    assert store.create_run("e").info.experiment_id == first  # a sweep's runs stay together
    store.client.delete_experiment(first)
    second = store.create_run("e").info.experiment_id
    assert second != first
    store.client.delete_experiment(second)
    assert store.create_run("e").info.experiment_id == second
    assert store.client.get_experiment(second).lifecycle_stage == "active"


def test_a_view_is_saved_in_the_format_of_the_ui() -> None:
    import base64
    import json
    import zlib

    from tlresearch.tracking.views import save_view

    store = connect()
    experiment = store.experiment_id("e")
    url = save_view(store, experiment, metrics=["val/accuracy"], params=["optimizer.lr"], best_first="val/accuracy")
    assert url.endswith(f"{experiment}/runs?workflowType=machine_learning&viewStateShareKey=tlresearch")
    tag = store.client.get_experiment(experiment).tags["mlflow.sharedViewState.tlresearch"]
    state = json.loads(zlib.decompress(base64.b64decode(tag.removeprefix("deflate;"))))
    assert "metrics.`val/accuracy`" in state["selectedColumns"]
    assert state["orderByAsc"] is False
