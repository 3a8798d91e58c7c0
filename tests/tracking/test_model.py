"""A stored model predicts class names from raw images after loading."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking.model import log_model
from tlresearch.tracking.records import Runs
from tlresearch.tracking.run import JournalRun, open_run

LOADER = """
import torch
from tlresearch.modality.image import Preprocessing
from tlresearch.tasks.classification import ClassPredictor

class Brightness(torch.nn.Module):
    def forward(self, images):
        return 25.5 * images.mean(dim=(2, 3))[:, :2]

def load(folder):
    assert (folder / "weights.txt").read_text() == "weights"
    plain = Preprocessing(crop=None, resize=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    return ClassPredictor(Brightness(), torch.nn.Identity(), plain, ["red", "green"], "binary")
"""


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[JournalRun, str, Any]:
    import mlflow

    (tmp_path / "toyloader.py").write_text(LOADER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toyloader", raising=False)
    monkeypatch.setenv("TLRESEARCH_TRUSTED_LOADERS", "toyloader")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "weights.txt").write_text("weights")
    config = TrackingConfig(system_metrics=False)
    with open_run(config, experiment="e", name="r", params={}, tags={}) as run:
        log_model(
            run,
            tmp_path / "folder",
            ["red", "green"],
            loader="toyloader.load",
            metrics={"val/accuracy": 0.9},
            step=3,
        )
    model_id = Runs(run.store).get(run.run_id).model_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", run.store.uri)
    mlflow.set_tracking_uri(run.store.uri)
    return run, model_id, mlflow.pyfunc.load_model(f"runs:/{run.run_id}/model")


def picture(red: int, green: int) -> np.ndarray[Any, Any]:
    return np.broadcast_to(np.array([red, green, 0], np.uint8), (6, 5, 3)).copy()


def png(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def test_it_predicts_from_paths_bytes_and_arrays(loaded: tuple[JournalRun, str, Any], tmp_path: Path) -> None:
    _, _, model = loaded
    arrays = np.stack([picture(200, 10), picture(10, 200)])
    (tmp_path / "x.png").write_bytes(png(arrays[0]))
    (tmp_path / "y.png").write_bytes(png(arrays[1]))
    encoded = [png(array) for array in arrays]
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    for images in (
        arrays,
        list(arrays),
        pd.DataFrame({"image": [str(tmp_path / "x.png"), str(tmp_path / "y.png")]}),
        pd.DataFrame({"image": encoded}),
        pd.DataFrame({"image": [base64.b64encode(data).decode() for data in encoded]}),
    ):
        answer = model.predict(images)
        assert list(answer["class"]) == ["red", "green"]
        assert list(answer.columns) == ["class", "probability", "p(red)", "p(green)"]
        assert (answer["probability"] > 0.99).all()
    assert len(model.predict(pd.DataFrame({"image": [base64.b64encode(png(noise)).decode()]}))) == 1


def test_wrong_input_is_a_clear_error(loaded: tuple[JournalRun, str, Any]) -> None:
    _, _, model = loaded
    with pytest.raises(Exception, match="column 'image'"):
        model.predict(pd.DataFrame({"picture": ["x"]}))
    with pytest.raises(Exception, match="uint8"):
        model.predict(np.zeros((1, 6, 5, 3), np.float32))


def test_the_logged_model_is_linked_described_and_holds_no_pickle(
    loaded: tuple[JournalRun, str, Any], tmp_path: Path
) -> None:
    run, model_id, model = loaded
    logged = run.store.client.get_logged_model(model_id)
    assert logged.source_run_id == run.run_id
    assert str(logged.status.value) == "READY"
    assert [(metric.key, metric.step) for metric in logged.metrics] == [("val/accuracy", 3)]
    assert run.store.client.get_run(run.run_id).outputs.model_outputs[0].model_id == model_id
    assert model.metadata.signature.outputs.input_names()[0] == "class"
    names = {file.name for file in (tmp_path / "home" / "artifacts").rglob("*") if file.is_file()}
    assert "weights.txt" in names
    assert not [name for name in names if name.endswith((".pkl", ".pt"))]


def test_a_loader_from_elsewhere_is_refused() -> None:
    from tlresearch.tracking.loaders import find_loader

    with pytest.raises(ValueError, match="must be in tlresearch"):
        find_loader("os.system")
