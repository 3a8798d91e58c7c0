"""A stored task predicts from files, bytes and arrays as the task it was made from; so does one stored earlier."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pandas import DataFrame

from tests.backbones.speech_models import save_speech
from tests.data.sounds import save_classes
from tests.serving.every_task import EVERY, make
from tests.toy import toy_text
from tlresearch.backbones.build import build_backbone
from tlresearch.config.load import load_text
from tlresearch.data.build import build_data
from tlresearch.data.loading import make_loader
from tlresearch.finetuning.presets import build_schedule
from tlresearch.serving.stored import load_predictor, save_predictor
from tlresearch.tasks.build import build_task, needed_end
from tlresearch.tracking.loaders import EARLIER, SETTINGS, rebuild

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
    stored = tmp_path / "stored"
    stored.mkdir()
    save_predictor(stored, config, task, data)
    if name == "hf":
        model.rename(tmp_path / "gone")
    predictor: Any = load_predictor(stored)
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


LOADERS = {
    "text": "tlresearch.serving.text.load_text_predictor",
    "tokens": "tlresearch.serving.tokens.load_tokens_predictor",
    "sounds": "tlresearch.serving.audio.load_audio_predictor",
    "recognition": "tlresearch.serving.speech.load_speech_predictor",
    "masks": "tlresearch.serving.dense.load_dense_predictor",
    "boxes": "tlresearch.serving.dense.load_dense_predictor",
}


def as_earlier(description: dict[str, Any], kind: str) -> dict[str, Any]:
    """A description as it was written when each task and modality had a loader of its own."""
    backbone, rest = dict(description["backbone"]), {"classes": description["classes"], "kind": description["kind"]}
    if kind in ("masks", "boxes"):
        return {key: description[key] for key in ("backbone", "task", "classes", "preprocessing")}
    if kind in ("text", "tokens"):
        recipe = {key: backbone[key] for key in ("name", "options")}
        return {"backbone": recipe, **rest, "max_length": description["preprocessing"]["max_length"]}
    speech = {"name": "hf/", "granularity": backbone["granularity"], "options": {}}
    return {"backbone": speech, **rest, "preprocessing": description["preprocessing"]}


@pytest.mark.parametrize("kind", LOADERS)
def test_what_was_stored_by_an_earlier_loader_still_opens(kind: str, tmp_path: Path) -> None:
    made = make(EVERY[kind](tmp_path))
    folder = tmp_path / "stored"
    today = made.predictor(folder)
    part = made.data.splits["val"]
    samples = [part.raw(row) for row in range(min(2, len(part)))]
    answers = today.table(samples)
    description = json.loads((folder / "predictor.json").read_text())
    (folder / "predictor.json").write_text(json.dumps(as_earlier(description, kind)))
    (folder / SETTINGS).write_text(json.dumps({"loader": LOADERS[kind], "classes": description["classes"]}))
    earlier = rebuild(folder)
    assert type(earlier) is type(today)
    assert earlier.table(samples) == answers


def test_an_earlier_classifier_of_images_still_opens(tmp_path: Path) -> None:
    data = "{name: digits, classes: ['0', '1'], test_fraction: 0.2}"
    made = make(toy_text(data=data, backbone="{name: small_cnn, weights: null, options: {in_channels: 1, width: 4}}"))
    folder = tmp_path / "stored"
    answers = made.predictor(folder).table([made.data.splits["val"].raw(0)])
    description = json.loads((folder / "predictor.json").read_text())
    options = description["backbone"].pop("options")
    del description["task"]
    (folder / "predictor.json").write_text(json.dumps({**description, "options": options}))
    loader = "tlresearch.serving.classification.load_predictor"
    (folder / SETTINGS).write_text(json.dumps({"loader": loader}))
    assert rebuild(folder).table([made.data.splits["val"].raw(0)]) == answers
    assert {loader, *LOADERS.values()} == set(EARLIER)
