"""A stored classifier of sounds predicts from files, bytes and arrays as the task it was made from."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pandas import DataFrame

from tests.backbones.speech_models import save_speech
from tests.data.sounds import save_classes
from tests.toy import toy_text
from tlresearch.backbones.build import build_backbone
from tlresearch.config.load import load_text
from tlresearch.data.build import build_data
from tlresearch.data.loading import make_loader
from tlresearch.finetuning.presets import build_schedule
from tlresearch.serving.audio import audio_servable, load_audio_predictor, save_audio_predictor
from tlresearch.tasks.build import build_task, needed_end

BACKBONES = {
    "hf": "{name: 'hf/MODEL', options: {layerdrop: 0.3}}",
    "log_mel": "{name: log_mel/small_cnn, weights: null, options: {log_mel: {seconds: 0.3, mels: 16}}}",
}


@pytest.mark.parametrize("name", BACKBONES)
def test_predictions_are_those_of_the_task(name: str, tmp_path: Path) -> None:
    root, model = save_classes(tmp_path / "tones", count=4), tmp_path / "model"
    if name == "hf":
        save_speech(model, "wav2vec2")
    data_section = f"{{name: audio_folder, root: '{root}'}}"
    config = load_text(toy_text(data=data_section, backbone=BACKBONES[name].replace("MODEL", str(model)))).config
    backbone = build_backbone(config.backbone, needed_end(config.task))
    data = build_data(config.data, preprocessing=backbone.preprocessing, seed=0)
    task = build_task(config, backbone, data, build_schedule(config, backbone.stage_names)).eval()
    assert audio_servable(task, data)
    stored = tmp_path / "stored"
    stored.mkdir()
    save_audio_predictor(stored, config, task, data)
    if name == "hf":
        model.rename(tmp_path / "gone")
    predictor = load_audio_predictor(stored)
    split = data.splits["train"]
    batch = next(iter(make_loader(split, batch_size=8, shuffle=False, seed=0)))
    with torch.no_grad():
        wanted = task(batch.inputs).softmax(dim=1)
    paths = [str(root / split.names[index]) for index in batch.indices.tolist()]
    contents = [Path(path).read_bytes() for path in paths]
    for given in (
        paths,
        DataFrame({"audio": paths}),
        contents,
        [base64.b64encode(content).decode() for content in contents],
        [np.asarray(split.raw(index)) for index in batch.indices.tolist()],
    ):
        numbers, probabilities = predictor.predict(predictor.read(given))
        torch.testing.assert_close(probabilities, wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(numbers, wanted.argmax(1))
    for one in (paths[0], contents[0], np.asarray(split.raw(0))):
        torch.testing.assert_close(predictor.predict(predictor.read(one))[1], wanted[:1], rtol=1e-4, atol=1e-5)
    assert json.loads((stored / "predictor.json").read_text())["classes"] == ["high", "low"]
    with pytest.raises(FileNotFoundError, match="there is no sound file"):
        predictor.read(["nowhere.wav"])
    with pytest.raises(ValueError, match="needs a column 'audio' but has: sound"):
        predictor.read(DataFrame({"sound": paths}))
