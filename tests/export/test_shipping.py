"""An exported classifier answers as its run does, in any format, without tlresearch; one that does not is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.recorded import Recorded
from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.errors import UserError
from tlresearch.cli import main
from tlresearch.config.load import load_text
from tlresearch.export.formats import Form, open_onnx
from tlresearch.export.outcome import Export
from tlresearch.export.quantize import WEIGHTED, kept_exact
from tlresearch.export.shipping import export_run, forms_of
from tlresearch.modality.image import Evaluation, Frame, Preprocessing
from tlresearch.run.fit import fit
from tlresearch.tracking.manifest import damaged, read_manifest
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
CLASSES = ("dark", "light")
QUICK = forms_of(["onnx", "safetensors"], ["static"], [])


@pytest.fixture(scope="module")
def one_home(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A home with a run over photos of many sizes."""
    home = tmp_path_factory.mktemp("export") / "home"
    home.mkdir()
    shutil.copy(empty_database, home / "mlflow.db")
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for level, name in ((0, "dark"), (60, "light")):
            place = home / "images" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                height, width = draw.integers(24, 50, 2)
                pixels = draw.integers(level, level + 190, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    return home


@pytest.fixture(scope="module")
def run_id(one_home: Path) -> Iterator[str]:
    text = toy_text(
        data=f"{{name: image_folder, root: '{one_home}/images', batch_size: 8, image_size: 16, resize: 19}}",
        backbone="{name: small_cnn, weights: null, options: {in_channels: 3, width: 4}}",
        tracking="{figures: false, system_metrics: false}",
    )
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("TLRESEARCH_HOME", str(one_home))
        yield fit(load_text(text)).run_id


@pytest.fixture(scope="module")
def exported(run_id: str, one_home: Path) -> Export:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("TLRESEARCH_HOME", str(one_home))
        patch.setattr("tlresearch.export.measure._SECONDS", 0.0)
        return export_run(run_id, QUICK, out=one_home / "out", changed=0.5)


@pytest.mark.parametrize("size", [(31, 47), (50, 26), (19, 19), (20, 65), (2, 301), (400, 3)])
@pytest.mark.parametrize(
    "wanted",
    [
        Preprocessing(crop=16, resize=19),
        Preprocessing(crop=15, resize=20, interpolation="bicubic"),
        Preprocessing(crop=None, resize=None),
        Preprocessing(crop=22, resize=None),  # larger than some: filled up
        Preprocessing(crop=16, resize=None, fit="stretch"),
        Preprocessing(crop=26, resize=None, fit="letterbox"),
    ],
    ids=str,
)
def test_the_frame_is_that_of_training(wanted: Preprocessing, size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    given = Frame(wanted)(images.permute(0, 2, 3, 1))
    torch.testing.assert_close(given, Evaluation(wanted)(images), atol=1e-5, rtol=1e-5)


def test_a_frame_without_operations_is_refused() -> None:
    with pytest.raises(UserError, match="lanczos"):
        Frame(Preprocessing(crop=16, resize=None, interpolation="lanczos"))


def test_every_format_answers_as_the_run(exported: Export) -> None:
    assert [s.form.name for s in exported.forms if s.refused] == []
    assert (exported.split, exported.samples) == ("val", 12)
    for shipped in exported.forms:
        assert shipped.path.exists()
        assert shipped.measured is not None
        if shipped.form.numbers == "fp32":
            assert shipped.measured.difference < 1e-5, shipped.form
            assert shipped.measured.metrics == pytest.approx(exported.original.metrics, abs=1e-4)
        else:  # it is another model, so something was quantised
            assert 1e-5 < shipped.measured.difference < 0.5


def test_the_run_keeps_files_and_figures(exported: Export, one_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", str(one_home))
    store = connect()
    run = store.client.get_run(exported.run_id)
    measured = exported.forms[0].measured
    assert measured is not None
    assert run.data.metrics["export/onnx-fp32/latency_ms"] == measured.latency
    assert run.data.metrics["export/original/val_accuracy"] == exported.original.metrics["accuracy"]
    manifest = read_manifest(store, exported.run_id)
    assert manifest is not None
    assert {"export/model.onnx", "export/model-int8-static.onnx", "export/model.json"} <= set(manifest.files)
    assert damaged(store, run, manifest) == []
    assert run.info.status == "FINISHED"


def test_int8_leaves_the_preprocessing_alone(exported: Export) -> None:
    import onnx

    source, quantised = exported.folder / "model.onnx", exported.folder / "model-int8-static.onnx"
    ahead = kept_exact(source)
    graph = onnx.load(source).graph
    kinds = {node.op_type for node in graph.node if node.name in ahead}
    assert "Resize" in kinds
    assert not kinds & WEIGHTED
    first = next(node for node in onnx.load(quantised).graph.node if "Quantize" in node.op_type)
    assert not set(first.input) & {value.name for value in graph.input}
    assert b"/home/" not in source.read_bytes()  # no folder of the machine it was made on
    assert str(Path(__file__).parents[2]).encode() not in source.read_bytes()


def test_it_predicts_where_tlresearch_is_not(exported: Export, tmp_path: Path) -> None:
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for package in ("onnxruntime", "numpy", "PIL", "numpy.libs", "pillow.libs"):
        place = Path(np.__file__).parents[1] / package
        if place.exists():
            (libraries / package).symlink_to(place)
    for name in ("model.onnx", "model-int8-static.onnx", "predict.py"):
        shutil.copy(exported.folder / name, tmp_path)
    image = exported.folder.parent / "images/val/light/0.png"
    code = (
        "import sys; sys.path[:0] = ['libraries', '.']\n"
        "try:\n    import tlresearch\nexcept ModuleNotFoundError:\n    print('none')\n"
        f"import predict\nfor model in ('model.onnx', 'model-int8-static.onnx'):\n    predict.main(model, '{image}')\n"
        "print(predict.predict(predict.onnxruntime.InferenceSession('model.onnx'), sys.argv[1])[0].tolist())"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(image)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0] == "none"
    assert [line.split("\t")[1].split()[0] in CLASSES for line in lines[1:3]] == [True, True]
    with Image.open(image) as opened:
        batch = np.asarray(opened)[None]
    here = open_onnx(exported.folder / "model.onnx")
    assert json.loads(lines[3]) == pytest.approx(here.run(None, {"images": batch})[0][0].tolist(), abs=1e-6)
    assert json.loads(here.get_modelmeta().custom_metadata_map["classes"]) == list(CLASSES)


def test_a_form_that_answers_otherwise_is_refused_and_removed(
    exported: Export,
    one_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", str(one_home))
    monkeypatch.setattr("tlresearch.export.measure._SECONDS", 0.0)
    out = tmp_path / "out"
    out.mkdir()
    (out / "weights-bf16").mkdir()  # of an earlier export
    command = ["export", exported.run_id, "--to", "safetensors", "--half", "bf16", "--tolerance", "1e-6"]
    assert main([*command, "--out", str(out), "--samples", "5"]) == 1
    shown = capsys.readouterr().out
    assert "refused: safetensors bf16: " in shown
    assert "5 samples of val" in shown
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "weights"]
    assert list(json.loads((out / "model.json").read_text())["measured"]) == ["split", "samples", "original", "weights"]


def test_what_cannot_be_exported_is_one_line(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", recorded.trial]) == 2
    assert "has no model" in capsys.readouterr().err
    with pytest.raises(UserError, match="add --to onnx"):
        forms_of(["pt2"], ["static"], [])
    assert forms_of(["onnx", "pt2"], [], ["fp16"]) == [
        Form("onnx"), Form("onnx", "fp16"), Form("pt2"), Form("pt2", "fp16"),
    ]  # fmt: skip


@pytest.mark.slow
def test_adapters_are_merged(one_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="the extra 'text' is not installed")
    monkeypatch.setenv("TLRESEARCH_HOME", str(one_home))
    monkeypatch.setattr("tlresearch.export.measure._SECONDS", 0.0)
    text = toy_text(
        name="adapted",
        data=f"{{name: image_folder, root: '{one_home}/images', batch_size: 8, image_size: 16, resize: 19}}",
        backbone="{name: small_cnn, weights: null, options: {in_channels: 3, width: 8}}",
        freeze="{schedule: lora, epochs: 2, lora: {rank: 2, alpha: 8}}",
        optimizer="{name: adamw, lr: 0.05}",
        tracking="{figures: false, system_metrics: false}",
    )
    result = fit(load_text(text))
    whole = export_run(result.run_id, [Form("pt2"), Form("safetensors")], out=one_home / "adapted")
    assert [shipped.refused for shipped in whole.forms] == ["", ""]
    image = torch.randint(0, 256, (1, 30, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = torch.export.load(one_home / "adapted/model.pt2").module()(image)[0]
        frame = Frame(Preprocessing(crop=16, resize=19, mean=(0.5,) * 3, std=(0.5,) * 3))
        wanted = result.task.eval()(frame(image)).softmax(dim=1)
        # Without what the adapters learnt it would answer otherwise.
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
    names = load_file(one_home / "adapted/weights/weights.safetensors")
    assert not [name for name in names if "lora" in name or "base_layer" in name]
