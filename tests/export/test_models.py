"""Models of texts, sounds and masks are exported as images' are: what is shipped answers as the project serves them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.serving.every_task import EVERY, Made, make
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.backbones.build import build_backbone
from tlresearch.base.errors import UserError
from tlresearch.config.schema import BackboneConfig
from tlresearch.export import standalone
from tlresearch.export.formats import DTYPES, Form, original, runner, write
from tlresearch.export.measure import answers, measure
from tlresearch.export.network import Exportable
from tlresearch.modality.sound import AudioPreprocessing, Waveform
from tlresearch.modality.text import portable, reader
from tlresearch.modality.values import stack

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
KINDS = ("text", "sounds", "masks", "numbers", "joint pairs", "separate pairs")
NUMBERS = ("numbers", "separate pairs")


def exportable(made: Made, folder: Path) -> Exportable:
    return Exportable(made.predictor(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shipped_answers_as_what_is_served(kind: str, tmp_path: Path) -> None:
    made = make(EVERY[kind](tmp_path))
    model = exportable(made, tmp_path / "stored")
    module = model.module(model.network, DTYPES["fp32"])
    run = original(model)
    part, rows = made.data.splits["train"], range(4)
    wanted = answers(run, made.data, "train", rows)
    for row, one in zip(rows, wanted, strict=True):
        with torch.inference_mode():
            first, *rest = module(*map(torch.from_numpy, model.front.arrays([part.raw(row)])))
        np.testing.assert_allclose(first.numpy(), one, atol=1e-4, rtol=1e-5)
        if kind not in NUMBERS:
            assert torch.equal(rest[0], first.argmax(dim=1))
        elif rest:
            assert bool((rest[0][:, :, 0] <= first).all())
            assert bool((first <= rest[0][:, :, 1]).all())
    measured = measure(model, run, wanted, wanted, made.data, "train", rows, 1)
    assert (measured.changed, measured.difference) == (0, 0)
    turned = [one + 1000 if kind in NUMBERS else one[:, ::-1] for one in wanted]
    assert measure(model, run, turned, wanted, made.data, "train", rows, 1).changed > 0.9
    key = "dice" if kind == "masks" else "mae" if kind in NUMBERS else "accuracy"
    assert 0 <= measured.metrics[key] <= (1000 if kind in NUMBERS else 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_answers_from_raw_samples_where_tlresearch_is_not(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    made = make(EVERY[kind](tmp_path))
    model = exportable(made, tmp_path / "stored")
    about = {"reads": model.reads, "classes": json.dumps(model.predictor.classes), "kind": model.predictor.kind}
    about |= model.front.metadata()
    wanted = answers(original(model), made.data, "train", range(3))
    for form in (Form("onnx"), Form("pt2")):
        target = tmp_path / form.file
        write(model, form, tmp_path / "stored", target, about)
        found = answers(runner(model, form, target, Path), made.data, "train", range(3))
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, atol=5e-3)  # resized pixels may be rounded to another level
    shutil.copy(str(standalone.__file__), tmp_path / "predict.py")
    samples = raw_samples(kind, tmp_path)
    code = "import sys\nsys.modules['tlresearch'] = None\nimport predict\npredict.main('model.onnx', *sys.argv[1:])"
    command = [sys.executable, "-c", code, *samples]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert told.returncode == 0, told.stderr
    answer = told.stdout.strip().split("\t")[1]
    if kind == "masks":
        shown = np.asarray(Image.open(tmp_path / "photo.mask.png"))
        assert shown.shape == (40, 64)
        assert answer.startswith(f"{model.predictor.classes[0]} ")
    else:
        row = samples if len(samples) > 1 else str(tmp_path / samples[0]) if kind == "numbers" else samples[0]
        first = model.predictor.first(model.predictor.read([row])[0])[0]
        if kind in NUMBERS:
            name, number = answer.split()
            assert (name, float(number)) == (model.predictor.classes[0], pytest.approx(first[0], rel=1e-4, abs=1e-4))
        else:
            assert answer == f"{model.predictor.classes[int(first.argmax())]} {first.max():.4f}"


def raw_samples(kind: str, folder: Path) -> list[str]:
    if kind == "text":
        return ["a good film"]
    if "pairs" in kind:
        return ["a good film", "the film"]
    if kind == "sounds":
        return [str(next((folder / "tones").rglob("*.wav")))]
    size = (8, 8) if kind == "numbers" else (40, 64, 3)
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return ["photo.png"]


def test_a_detection_is_refused_with_what_is_possible(tmp_path: Path) -> None:
    made = make(EVERY["boxes"](tmp_path))
    with pytest.raises(UserError, match="as many boxes as it finds"):
        exportable(made, tmp_path / "stored")


@pytest.mark.parametrize("kind", ["tokens", "recognition"])
def test_what_no_graph_holds_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="export: "):
        exportable(make(EVERY[kind](tmp_path)), tmp_path / "stored")


def test_a_vocabulary_of_words_is_cut_as_in_training(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("It's the film's end , l’été 3 times don't _x_ naïve")
    options = {"vocabulary": str(tmp_path / "a.txt")}
    given = build_backbone(BackboneConfig(name="word_cnn", weights=None, options=options)).preprocessing
    texts = [
        "IT'S the end!",
        "l’été, don't _x_ twice",
        "naïve",
        "",
        "   ",
        "a b c the the the",
        "It's the film's END -- 3",
    ]
    wanted = given.tokenizer.texts(texts, 4)
    ids, mask, _ = reader(portable(given, 4), given.tokenizer.texts([""], 4)[0][0])(texts)
    assert [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)] == wanted


@pytest.mark.parametrize(
    "wanted",
    [
        AudioPreprocessing(seconds=0.01, normalise=True),
        AudioPreprocessing(seconds=0.05),
        AudioPreprocessing(shortest=700),
        AudioPreprocessing(normalise=True),
    ],
    ids=str,
)
def test_a_waveform_is_prepared_as_in_training(wanted: AudioPreprocessing) -> None:
    clips = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    given: Any = Waveform(wanted)(clips)
    alone: Any = stack([wanted(clip) for clip in clips])
    torch.testing.assert_close(given, alone["audio"] if isinstance(alone, dict) else alone)


def test_a_mask_has_the_size_of_its_image(tmp_path: Path) -> None:
    made = make(EVERY["masks"](tmp_path))
    predictor = made.predictor(tmp_path / "stored")
    image = torch.randint(0, 256, (3, 21, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for fit in ("stretch", "letterbox"):
        predictor.preprocessing = replace(predictor.preprocessing, fit=fit)
        model = Exportable(predictor)
        module = model.module(model.network, torch.float32)
        with torch.inference_mode():
            probabilities, answer = module(*map(torch.from_numpy, model.front.arrays([image])))
        assert answer.shape == (1, 21, 50)
        np.testing.assert_allclose(probabilities.numpy(), predictor.first(image), atol=1e-4)


@pytest.mark.parametrize(("orientation", "shape"), [("exif", (1, 40, 30, 3)), ("stored", (1, 30, 40, 3))])
def test_the_script_turns_photos_as_training_did(orientation: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "x.jpg", exif=exif)

    class Session:
        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(shape=[1, None, None, 3])]

    about = {"preprocessing": json.dumps({"orientation": orientation})}
    assert standalone.read_image(str(tmp_path / "x.jpg"), Session(), about)[0].shape == shape
