"""Raw files of every kind are predicted by the model of a run; what is wrong is named and the rest goes on."""

from __future__ import annotations

import base64
import csv
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.recorded import Recorded
from tests.serving.every_task import EVERY, make
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.cli import main
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
INPUTS = {
    "numbers": ["0.png", "1.png"],
    "sounds": ["tones/high/0.wav", "tones/low/1.wav"],
    "recognition": ["tones/high/0.wav", "tones/low/1.wav"],
    "masks": ["masks/images/0.png", "masks/images/1.png"],
    "boxes": ["boxes/JPEGImages/0.png", "boxes/JPEGImages/1.png"],
}
COLUMNS = {
    "numbers": ["level", "low(level)", "high(level)"],
    "text": ["class", "probability", "p(bad)", "p(good)"],
    "tokens": ["words", "tags", "entities", "probability"],
    "sounds": ["class", "probability", "p(high)", "p(low)"],
    "recognition": ["transcript", "probability"],
    "masks": ["mask", "share(back)", "share(square)", "share(disc)", "overlay"],
    "boxes": ["boxes", "classes", "scores", "overlay"],
}


def rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("name", COLUMNS)  # tests/test_pairs.py has pairs of texts, which no file is
def test_every_task_predicts_raw_files(
    name: str, tmp_path: Path, tables: None, capsys: pytest.CaptureFixture[str]
) -> None:
    make(EVERY[name](tmp_path)).log("untrained")
    if name == "numbers":
        for path in INPUTS[name]:
            Image.new("L", (16, 16), 100).save(tmp_path / path)
    if name in INPUTS:
        given = [str(tmp_path / path) for path in INPUTS[name]]
    else:
        (tmp_path / "said.txt").write_text("anna went to paris")
        given = [str(tmp_path / "said.txt"), "--text", "a good film"]
    out = tmp_path / "answers.jsonl"
    assert main(["predict", "untrained", *given, "--out", str(out)]) == 0
    found = rows(out)
    assert [row["input"] for row in found] == [word for word in given if word != "--text"]
    assert [list(row) for row in found] == [["input", *COLUMNS[name]]] * 2
    for row in found:
        for column in {"mask", "overlay"} & set(row):
            with Image.open(row[column]) as picture:
                assert picture.size == (32, 32)
            assert Path(row[column]).parent == tmp_path / "answers"
    if name == "masks":
        mask = np.asarray(Image.open(found[0]["mask"]))
        assert (mask == 1).mean() == pytest.approx(found[0]["share(square)"])
    assert "2 rows in" in capsys.readouterr().out


def test_folders_are_walked_and_unreadable_files_are_named(
    recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = recorded.folder / "images/test"
    (tmp_path / "broken.png").write_bytes(b"no image")
    out = tmp_path / "new" / "answers.csv"
    assert main(["predict", recorded.run[:8], str(tmp_path / "broken.png"), str(images), "--out", str(out)]) == 1
    found = rows(out)
    names = [str(path) for path in sorted(images.rglob("*.png"))]
    assert [row["input"] for row in found] == names
    recorded_rows = rows(recorded.artifact("predictions/test.csv"))
    wanted = {row["name"]: row["prediction"] for row in recorded_rows}
    assert [row["class"] for row in found] == [
        wanted[Path(name).relative_to(images.parent).as_posix()] for name in names
    ]
    assert all(float(row["p(dark)"]) + float(row["p(light)"]) == pytest.approx(1) for row in found)
    shown = capsys.readouterr().out
    assert "1 could not be read" in shown
    assert "not an image" in shown
    assert "8 rows in" in shown
    assert main(["predict", recorded.run, *names, "--batch", "3"]) == 0
    assert capsys.readouterr().out.count(".png") == 8


def test_mistakes_are_named(recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(recorded.image)
    (tmp_path / "said.txt").write_text("a text")
    (tmp_path / "empty").mkdir()
    mistakes = {
        ("base", "nowhere.png"): "there is no file or folder nowhere.png",
        ("base",): "nothing to predict: name image files",
        ("base", "--text", "x"): "reads images, not texts",
        ("base", str(tmp_path / "said.txt")): "none of 1 inputs is a readable image",
        ("base", str(tmp_path / "empty")): "holds no files that this model reads (.jpg",
        ("base", image, "--out", "x.xlsx"): "--out: x.xlsx is neither .csv nor .jsonl nor a folder",
        ("base", image, "--batch", "0"): "--batch must be at least 1",
        ("bas", image): "there is no run 'bas'",
        (recorded.trial, image): "has no model: trials of a sweep",
        ("models:/cells@champion", image): "no model is registered as 'cells'; nothing is registered yet",
        ("models:/cells", image): "write models:/name@alias",
    }
    for words, message in mistakes.items():
        words = tuple(recorded.run if word == "base" else word for word in words)
        assert main(["predict", *words]) == 2, words
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not Path("x.xlsx").exists()


def test_a_registered_model_is_found_by_its_alias_and_keeps_its_lineage(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect().client
    try:
        assert main(["register", recorded.run[:8], "lights", "--alias", "champion"]) == 0
        assert "lights version 1 registered" in capsys.readouterr().out
        assert main(["register", recorded.run, "lights", "--alias", "newest"]) == 0
        assert "lights version 1 was registered already" in capsys.readouterr().out
        version = client.get_model_version_by_alias("lights", "champion")
        run = client.get_run(recorded.run)
        assert version.tags["tlresearch.run"] == recorded.run == version.run_id
        assert version.tags["tlresearch.weights_sha256"] == run.data.tags["tlresearch.weights_sha256"]
        fingerprint = json.loads(run.inputs.dataset_inputs[0].dataset.profile)["fingerprint"]
        assert version.tags["tlresearch.data_fingerprint"] == fingerprint
        for address in ("models:/lights@champion", "models:/lights@newest", "models:/lights/1"):
            assert main(["predict", address, str(recorded.image)]) == 0
        capsys.readouterr()
        assert main(["predict", "models:/light@champion", str(recorded.image)]) == 2
        assert "did you mean 'lights'" in capsys.readouterr().err
        assert main(["predict", "models:/lights@second", str(recorded.image)]) == 2
        assert "alias second not found" in capsys.readouterr().err
    finally:
        client.delete_registered_model("lights")


def test_a_server_answers_a_raw_file(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # set by the server: taken back behind the test
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert main(["serve", recorded.run, "--port", str(port)]) == 2
        assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    body = {
        "dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(recorded.image.read_bytes()).decode()]]}
    }
    answers: list[Any] = []

    def ask() -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        end = time.monotonic() + 120
        while not answers and time.monotonic() < end:
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    answers.append(json.load(response))
            except OSError:
                time.sleep(0.1)
        request.data = json.dumps({"dataframe_split": {"columns": ["image"], "data": [["nowhere"]]}}).encode()
        try:
            urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            with error:
                answers.append((error.code, json.load(error)["message"]))
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C

    asking = threading.Thread(target=ask)
    asking.start()
    assert main(["serve", recorded.run, "--port", str(port)]) == 0
    asking.join()
    (answer,) = answers[0]["predictions"]
    assert answers[1][0] == 400
    assert "there is no image file nowhere" in answers[1][1]
    out = tmp_path / "answer.jsonl"
    assert f"127.0.0.1:{port}/invocations" in capsys.readouterr().out
    main(["predict", recorded.run, str(recorded.image), "--out", str(out)])
    (wanted,) = rows(out)
    assert answer == pytest.approx({key: value for key, value in wanted.items() if key != "input"})


def test_what_is_not_predicted_of_a_folder_is_counted(
    recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jfif", "b.HEIC", "c.txt", "._a.png", ".ipynb_checkpoints/a.png"):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "new" / name, "JPEG")
    (tmp_path / "new" / "up").symlink_to(tmp_path / "new", target_is_directory=True)
    out = tmp_path / "answers.csv"
    assert main(["predict", recorded.run[:8], str(tmp_path / "new"), "--out", str(out)]) == 0
    assert [Path(row["input"]).name for row in rows(out)] == ["a.jfif"]
    said = "1 files to predict, 5 passed over: 1 .heic, 1 .txt, 1 links to a folder above, 2 hidden"
    assert said in caplog.text + capsys.readouterr().err
