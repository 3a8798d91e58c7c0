"""Texts through the one path: every schedule, the cache, resume, adapters, sweeps and the model that is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch

from tests.backbones.text_models import save_model
from tests.tracking.conftest import THIRD_PARTY
from tlresearch import fit
from tlresearch.backbones.build import build_backbone
from tlresearch.base.errors import UserError
from tlresearch.config.load import load_text
from tlresearch.config.schema import BackboneConfig
from tlresearch.finetuning.callback import EpochReport
from tlresearch.modality.text import text_input
from tlresearch.modality.values import stack
from tlresearch.run.fit import Role
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
GOOD, BAD = ("a very good film", "the film not bad"), ("a bad film", "the film very very bad")
QUICK = {
    "tracking.figures": False,
    "tracking.model": False,
    "tracking.system_metrics": False,
    "tracking.weights": False,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with weights, texts and tagged words; one home, as making a store takes seconds."""
    folder = tmp_path_factory.mktemp("text")
    save_model(folder / "bert", "bert", weights=True)
    rows = [
        f"{text} {'in paris ' * (n % 4)}\t{y}"
        for n in range(24)
        for y, texts in (("p", GOOD), ("n", BAD))
        for text in texts
    ]
    (folder / "texts.tsv").write_text("\n".join(f"{row}" for row in rows))
    sentence = "{0}\tB-per\nwent\tO\nto\tO\nparis\tB-loc\n\nthe\tO\nfilm\tO\nin\tO\nparis\tB-loc\n"
    (folder / "tags.conll").write_text("\n".join(sentence.format(name) for name in ("anna", "annas") * 16))
    return folder


@pytest.fixture(autouse=True)
def one_home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", str(place / "home"))


def experiment(place: Path, **sections: str) -> str:
    base = {
        "name": "texts",
        "data": f"{{name: text_table, root: {place}/texts.tsv, text_column: '0', label_column: '1', "
        "test_fraction: 0.2, batch_size: 8}",
        "backbone": f"{{name: hf/{place}/bert, options: {{pooling: mean}}}}",
        "freeze": "{schedule: full, epochs: 2}",
        "optimizer": "{name: adamw, lr: 0.003}",
    }
    return "\n".join(f"{key}: {value}" for key, value in {**base, **sections}.items())


def run(text: str, **overrides: Any) -> Any:
    return fit(load_text(text), {**QUICK, **overrides})


@pytest.mark.parametrize(
    ("freeze", "moved"),
    [
        ("{schedule: bias_only, epochs: 1}", {"bias"}),
        (
            "{schedule: lora, epochs: 1, lora: {rank: 2, targets: ['*query', '*value']}}",
            {"query.weight", "value.weight"},
        ),
    ],
)
def test_parts_of_layers(freeze: str, moved: set[str], place: Path) -> None:
    result = run(experiment(place, freeze=freeze))
    before = build_backbone(BackboneConfig(name=f"hf/{place}/bert")).original_state_dict()
    after = result.task.backbone.original_state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert set(after) == set(before)
    assert changed
    assert all(any(name.endswith(ending) for ending in moved) for name in changed)


def test_tags_are_learnt(place: Path) -> None:
    text = experiment(
        place,
        data=f"{{name: conll, root: {place}/tags.conll, test_fraction: 0.2, batch_size: 8}}",
        backbone=f"{{name: hf/{place}/bert}}",
        task="{name: tokens}",
        trainer="{monitor: val/f1, select: best}",
        freeze="{schedule: lp_ft, epochs: 5, probe_epochs: 1}",
        optimizer="{name: adamw, lr: 0.01}",
    )
    result = run(text, **{"tracking.figures": True})
    assert result.metrics["test/f1"] > 0.9
    assert result.metrics["test/f1_per"] > 0.9
    store = connect()
    names = {file.path for file in store.client.list_artifacts(result.run_id, "figures")}
    assert "figures/confusion_matrix.png" in names


def test_a_task_and_data_that_do_not_fit_are_refused(place: Path) -> None:
    with pytest.raises(UserError, match="tokens learns tokens targets, but those of texts are binary"):
        run(experiment(place, task="{name: tokens}", trainer="{monitor: val/f1}"))


def test_the_served_model_takes_texts(place: Path, tmp_path: Path) -> None:
    for backbone in (
        f"{{name: hf/{place}/bert, options: {{pooling: last}}}}",
        f"{{name: word_cnn, weights: null, options: {{vocabulary: {place}/texts.tsv, width: 8, maps: 4}}}}",
    ):
        text = experiment(place, backbone=backbone, freeze="{schedule: full, epochs: 1}")
        result = run(text, **{"tracking.model": True})
        mlflow.set_tracking_uri(connect().uri)
        served = mlflow.pyfunc.load_model(f"runs:/{result.run_id}/model")
        frame = served.predict(pd.DataFrame({"text": [*GOOD, *BAD]}))
        assert list(frame.columns) == ["class", "probability", "p(n)", "p(p)"]
        pd.testing.assert_frame_equal(frame, served.predict([*GOOD, *BAD]))
        backbone_of, head = result.task.backbone.eval(), result.task.head.eval()
        ids = backbone_of.preprocessing.tokenizer.texts([*GOOD, *BAD], 40)
        with torch.no_grad():
            expected = head(backbone_of(stack([text_input(row) for row in ids]))).softmax(dim=1)
        assert frame["p(p)"].tolist() == pytest.approx(expected[:, 1].tolist(), abs=1e-5)
        with pytest.raises(Exception, match="needs a column 'text'"):
            served.predict(pd.DataFrame({"txt": ["x"]}))


class Stop:
    """Ends a run as a crash would, behind its second epoch."""

    def __call__(self, report: EpochReport) -> None:
        if report.epoch == 2:
            raise RuntimeError("stopped")


def test_neither_an_interruption_nor_the_cache_changes_a_result(place: Path) -> None:
    text = experiment(place, freeze="{schedule: gradual, epochs: 5}", task="{name: classification, dropout: 0.2}")
    settings = {**QUICK, "trainer.checkpoint_seconds": 0.0}
    whole = fit(load_text(text), settings, role=Role("whole", repeats="whole"))
    with pytest.raises(RuntimeError, match="stopped"):
        fit(load_text(text), settings, role=Role("broken", listener=Stop()))
    assert list((place / "home" / "unfinished").glob("*/*.ckpt"))
    resumed = fit(load_text(text), settings, role=Role("broken"))
    assert len(resumed.history) == 5
    assert resumed.history == whole.history
    assert resumed.metrics == whole.metrics
    plain = run(text, **{"cache.enabled": False})
    assert {name: plain.metrics[name] for name in whole.metrics} == pytest.approx(whole.metrics, rel=1e-3, abs=1e-4)
