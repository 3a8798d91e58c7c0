"""Secrets that a run and a sweep are given are in nothing they leave: the store, files, output and errors."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.servers import free_port
from tests.toy import toy_text
from tlresearch.base.redact import HIDE
from tlresearch.cli import main
from tlresearch.tracking.store import connect

pytestmark = pytest.mark.slow

CANARY = "canary7fd1a0c4e2"


@pytest.fixture
def project(tmp_path: Path, tables: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with an experiment and a sweep, and variables that hold secrets."""
    monkeypatch.delenv(HIDE, raising=False)
    for number, name in enumerate(
        ("ANYTHING", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY")
    ):
        monkeypatch.setenv(name, f"{CANARY}{number}")
    (tmp_path / "experiments" / "toy").mkdir(parents=True)
    (tmp_path / "sweeps" / "toy").mkdir(parents=True)
    text = toy_text(freeze="{schedule: full, epochs: 1}")
    text += "\ndescription: 'of ${oc.env:ANYTHING}, ${oc.env:AWS_SECRET_ACCESS_KEY}'\n"
    (tmp_path / "experiments" / "toy" / "base.yaml").write_text(text)
    sweep = {
        "experiment": "toy/base",
        "description": "of ${oc.env:ANYTHING}",
        "overrides": {"tracking.tags": {"mine": "${oc.env:ANYTHING}", "api_token": "${oc.env:MLFLOW_TRACKING_TOKEN}"}},
        "space": {"optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True}},
        "trials": 2,
    }
    (tmp_path / "sweeps" / "toy" / "s.yaml").write_text(yaml.safe_dump(sweep))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(project: Path, captured: pytest.CaptureFixture[str]) -> list[str]:
    """Where the canary is: files below the home folder, and what was printed."""
    found = [
        path.relative_to(project).as_posix()
        for path in sorted((project / "home").rglob("*"))
        if path.is_file() and CANARY.encode() in path.read_bytes()
    ]
    out, err = captured.readouterr()
    return found + [line for line in (out + err).splitlines() if CANARY in line]


def test_a_run_tells_no_secret_and_can_still_be_repeated(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [
        "tracking.model=true",
        "tracking.figures=true",
        f"tracking.tags={{password: {CANARY}5, mine: '${{oc.env:ANYTHING}}'}}",
        "task.dropout=0.1",
        f"name=see https://me:{CANARY}6@host/x?token={CANARY}7",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tlresearch", "run", "toy/base", *words])
        assert main(["run", "toy/base", *words]) == 0
    assert not told(project, capfd)
    store = connect()
    run = store.client.search_runs([e.experiment_id for e in store.client.search_experiments()])[0]
    assert run.data.tags["mine"] == "***"
    config = Path(store.client.download_artifacts(run.info.run_id, "config.yaml")).read_text()
    assert "${oc.env:ANYTHING}" in config
    assert main(["reproduce", run.info.run_id]) == 0
    assert not told(project, capfd)


def test_a_run_on_bad_data_ends_as_failed_and_leaves_no_half(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for cls in ("cat", "dog"):
        (project / "photos" / cls).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (number, ord(cls[0]), 0)).save(project / "photos" / cls / f"{number}.png")
    (project / "photos" / "cat" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    data = f"{{name: image_folder, root: {project}/photos, batch_size: 4}}"
    (project / "experiments" / "toy" / "photos.yaml").write_text(
        toy_text(freeze="{schedule: full, epochs: 1}", data=data)
    )
    words = ["run", "toy/photos", "trainer.deterministic=true"]
    assert main(words) == 2
    err = capfd.readouterr().err
    assert "unreadable images (1): cat/bad.png: not an image" in err
    assert "Traceback" not in err
    store = connect()
    experiments = [experiment.experiment_id for experiment in store.client.search_experiments()]
    assert [run.info.status for run in store.client.search_runs(experiments)] == ["FAILED"]
    assert not list((project / "home").rglob("*.tmp"))
    assert not list((project / "home" / "cache").glob("activations/*"))
    assert main([*words, "data.on_error=skip"]) == 0
    assert sorted(run.info.status for run in store.client.search_runs(experiments)) == ["FAILED", "FINISHED"]


def test_a_sweep_tells_no_secret(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "toy/s"]) == 0
    assert not told(project, capfd)
    best = project / "home" / "sweeps" / "toy" / "s" / "best.yaml"
    assert "${oc.env:ANYTHING}" in best.read_text()
    assert main(["run", str(best)]) == 0
    assert not told(project, capfd)


@pytest.mark.parametrize(
    "command",
    [
        ["run", "toy/base", f"tracking.uri=http://me:{CANARY}@127.0.0.1:1"],
        ["run", "toy/base", f"tracking.uri=postgresql://me:{CANARY}@127.0.0.1:1/x"],
        ["sweep", "toy/s", f"storage=postgresql://me:{CANARY}@127.0.0.1:1/x"],
        ["sweep", "toy/s", f"storage=nothing://me:{CANARY}@127.0.0.1:1/x"],
        [
            "run",
            "toy/base",
            f"data.url=http://me:{CANARY}@127.0.0.1:1/x.zip?token={CANARY}",
            f"data.sha256={'0' * 64}",
            "data.root=x",
        ],
        [
            "run",
            "toy/base",
            f"backbone.weights=http://me:{CANARY}@127.0.0.1:1/x.pth",
            f"backbone.weights_sha256={'0' * 64}",
        ],
        ["run", "toy/base", "optimizer.name=${oc.env:ANYTHING}"],
        ["run", "toy/base", "backbone.name=${oc.env:ANYTHING}"],
        ["run", "toy/base", "data.root=${oc.env:ANYTHING}/x", "data.name=image_folder"],
    ],
    ids=lambda command: command[2].partition("=")[0] + command[2].partition("=")[2][:9],
)
def test_errors_tell_no_secret(command: list[str], project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 2
    out, err = capfd.readouterr()
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert "not valid YAML" not in err
    assert CANARY not in out + err
    assert not told(project, capfd)


def test_a_server_with_accounts_takes_a_run_only_with_the_password(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flask_wtf", reason="the extra dev is not installed")
    port, folder = free_port(), project / "server"
    folder.mkdir()
    accounts = folder / "accounts.ini"
    accounts.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/users.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    settings = {
        "MLFLOW_AUTH_CONFIG_PATH": str(accounts),
        "MLFLOW_AUTH_ADMIN_PASSWORD": f"{CANARY}-admin",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the test",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{project}/home/mlflow.db",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
    }
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--app-name",
        "basic-auth",
        "--workers",
        "1",
        "--port",
        str(port),
    ]
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")  # MLflow would prefer it
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    words = ["run", "toy/base", f"tracking.uri=http://127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log:
        command += ["--artifacts-destination", str(folder / "artifacts")]
        server = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "log").read_text()
            if (folder / "users.db").exists() and answers(port):
                break
            time.sleep(0.2)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another one")
        assert main(words) == 2
        assert "it refuses us; set MLFLOW_TRACKING_USERNAME" in capfd.readouterr().err
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"{CANARY}-admin")
        assert main(words) == 0
        assert not told(project, capfd)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(port: int) -> bool:
    """Whether something listens at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
