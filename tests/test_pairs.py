"""Pairs of texts through the one path: read together or each by itself, cached, served, exported, ranked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.backbones.text_models import save_model
from tests.tracking.conftest import THIRD_PARTY
from tlresearch import fit
from tlresearch.activations.entry import read_meta
from tlresearch.activations.store import ActivationStore, default_store
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.pairs import PairBackbone
from tlresearch.base.errors import ConfigError, DataError, UserError
from tlresearch.config.load import load_text
from tlresearch.config.schema import BackboneConfig
from tlresearch.data.base import Data, SampleKey
from tlresearch.data.build import build_data
from tlresearch.modality.pair import JointPairs, RawPairs
from tlresearch.modality.values import stack, unstack
from tlresearch.run.fit import RunResult
from tlresearch.run.recorded import load
from tlresearch.tracking.model import load_model
from tlresearch.tracking.records import Runs
from tlresearch.tracking.store import connect
from tlresearch.understand.ranking.rank import rank

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
WORDS = ("good", "bad", "film", "paris", "very", "not", "anna", "went")
QUICK: dict[str, Any] = {f"tracking.{key}": False for key in ("figures", "model", "system_metrics", "weights")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with weights, and pairs of short texts with a class and a number: how many words they share."""
    folder = tmp_path_factory.mktemp("pairs")
    save_model(folder / "bert", "bert", weights=True)
    generator = np.random.default_rng(0)
    rows = []
    for index in range(48):
        first, second = (list(generator.choice(WORDS, int(generator.integers(1, 5)), replace=False)) for _ in range(2))
        second = first if index % 3 == 0 else second
        shared = len(set(first) & set(second)) / len({*first, *second})
        split = ("train", "train", "val", "test")[index % 4]
        row = {
            "premise": " ".join(first),
            "hypothesis": " ".join(second),
            "label": "same" if index % 3 == 0 else "other",
        }
        rows.append({**row, "shared": shared, "split": split})
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pd.DataFrame(rows).to_csv(folder / "pairs.csv", index=False)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_home(place: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLRESEARCH_HOME", str(place / "home"))
        yield


def experiment(place: Path, pairs: str = "joint", **sections: str) -> str:
    base = {
        "name": f"pairs_{pairs}",
        "data": f"{{name: text_table, root: {place}/pairs.jsonl, text_columns: [premise, hypothesis], "
        "split_column: split, batch_size: 8}",
        "backbone": f"{{name: hf/{place}/bert, pairs: {pairs}, options: {{pooling: mean}}}}",
        "freeze": "{schedule: linear_probe, epochs: 2}",
        "optimizer": "{name: adamw, lr: 0.01}",
        "trainer": "{precision: 32-true, memory_format: contiguous, checkpoint_seconds: 0}",
    }
    return "\n".join(f"{key}: {value}" for key, value in {**base, **sections}.items())


def numbers(place: Path) -> str:
    return (
        f"{{name: text_table, root: {place}/pairs.csv, text_columns: [premise, hypothesis], targets: [shared], "
        "split_column: split, batch_size: 8}"
    )


def run(text: str, **overrides: Any) -> RunResult:
    return fit(load_text(text), {**QUICK, **overrides})


def data_of(text: str) -> tuple[Any, Data]:
    config = load_text(text).config
    backbone = build_backbone(config.backbone)
    return backbone, build_data(config.data, preprocessing=backbone.preprocessing, seed=0)


def test_token_types_are_those_of_the_network(place: Path) -> None:
    """The first text 0, the second 1; cut into stages the network answers as a whole."""
    backbone, data = data_of(experiment(place))
    batch = data.splits["train"].__getitems__([SampleKey(row, 0) for row in range(4)])
    first, _ = data.splits["train"].raw(0)
    types = batch.inputs["types"][0][batch.inputs["mask"][0]]
    assert types.tolist() == [0] * len(first.split()) + [1] * (len(types) - len(first.split()))
    backbone.eval()
    with torch.no_grad():
        whole = backbone(batch.inputs)
        stored = stack(unstack(backbone(batch.inputs, stop=2)))
        torch.testing.assert_close(backbone(stored, start=2), whole)
        without = backbone({**batch.inputs, "types": torch.zeros_like(batch.inputs["types"])})
    assert not torch.allclose(without, whole)


def test_separate_texts_are_those_of_the_backbone_alone(place: Path) -> None:
    backbone, data = data_of(experiment(place, "concat"))
    alone = build_backbone(BackboneConfig(name=f"hf/{place}/bert", options={"pooling": "mean"})).eval()
    backbone.eval()
    pairs = [data.splits["val"].raw(row) for row in range(3)]
    with torch.no_grad():
        found = backbone(data.splits["val"].__getitems__([SampleKey(row, 0) for row in range(3)]).inputs)
        vectors = [alone(stack(alone.preprocessing.prepare_all(list(side)))) for side in zip(*pairs, strict=True)]
    first, second = vectors
    expected = torch.cat([first, second, (first - second).abs(), first * second], dim=1)
    torch.testing.assert_close(found, expected)
    cosine = PairBackbone(alone, "cosine").eval()
    with torch.no_grad():
        inputs = data.splits["val"].__getitems__([SampleKey(row, 0) for row in range(3)]).inputs
        torch.testing.assert_close(cosine(inputs)[:, 0], torch.cosine_similarity(first, second))


def test_a_text_is_stored_once_however_many_pairs_hold_it(place: Path) -> None:
    _, data = data_of(experiment(place, "concat"))
    train = data.splits["train"]
    texts = {text for row in range(len(train)) for text in train.raw(row)}
    assert len(train.parts) == len(texts) < 2 * len(train)
    run(experiment(place, "concat"))
    stored = {read_meta(entry.path)["samples"] for entry in store().entries()}
    assert len(texts) in stored
    assert 2 * len(train) not in stored


def store() -> ActivationStore:
    return default_store(10**9)


@pytest.mark.parametrize("pairs", ["joint", "concat", "cosine"])
def test_the_cache_changes_nothing(pairs: str, place: Path) -> None:
    text = experiment(place, pairs, task="{name: regression}", data=numbers(place))
    cached, plain = run(text), run(text, **{"cache.enabled": False})
    for name, value in cached.metrics.items():
        assert plain.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("schedule", ["full", "lora", "gradual", "lp_ft"])
@pytest.mark.parametrize("pairs", ["joint", "concat"])
def test_pairs_are_classified_under_every_kind_of_schedule(pairs: str, schedule: str, place: Path) -> None:
    result = run(experiment(place, pairs, freeze=f"{{schedule: {schedule}, epochs: 5}}"))
    assert result.history[-1]["train/loss"] < result.history[0]["train/loss"]
    assert result.metrics["test/accuracy"] >= 0


@pytest.mark.parametrize("pairs", ["joint", "concat", "cosine"])
def test_pairs_are_served_and_predicted(pairs: str, place: Path, tmp_path: Path) -> None:
    text = experiment(place, pairs, task="{name: regression}", data=numbers(place))
    result = run(text, **{"tracking.model": True})
    store = connect()
    model = load_model(store, Runs(store).get(result.run_id).model_id)
    table = pd.read_csv(place / "pairs.csv")
    answers = model.predict(table[["premise", "hypothesis"]])
    assert list(answers) == ["shared"]
    [pair] = model.predict([tuple(table.loc[0, ["premise", "hypothesis"]])])["shared"]
    assert pair == pytest.approx(answers["shared"][0], abs=1e-5)
    file = tmp_path / "answers.csv"
    predicted = load(result.run_id).predict([str(place / "pairs.csv")], texts=["good film", "bad film"], out=str(file))
    assert len(predicted.answers) == len(table) + 1
    written = pd.read_csv(file)
    assert written["input"][1].endswith("pairs.csv:3")
    np.testing.assert_allclose(written["shared"][: len(table)], answers["shared"], atol=1e-5)
    with pytest.raises(UserError, match="pairs of texts; give 2 for each, but got 1"):
        load(result.run_id).predict(texts=["good film"])


def test_pairs_are_ranked(place: Path) -> None:
    file = place / "ranked.yaml"
    file.write_text(experiment(place, "concat", task="{name: regression}", data=numbers(place)))
    [found] = rank(str(file), [f"hf/{place}/bert"]).backbones
    assert not found.problem
    assert set(found.scores) == {"logme", "knn", "probe"}


def test_what_does_not_fit_together_is_said(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"say how the pairs of data.text_columns are read"):
        load_text("data: {name: text_table, root: x, text_columns: [a, b]}")
    with pytest.raises(ConfigError, match="names the two columns of a pair"):
        load_text("data: {name: text_table, root: x, text_columns: [a]}")
    with pytest.raises(DataError, match=r"is for pairs of texts, which data.text_columns names"):
        run(experiment(place, data=f"{{name: text_table, root: {place}/pairs.csv, text_column: premise}}"))
    with pytest.raises(UserError, match="is for backbones that read texts"):
        build_backbone(BackboneConfig(name="small_cnn", weights=None, pairs="joint"))


def test_raw_pairs() -> None:
    raw = RawPairs(("a", "b"))
    assert raw.read(("x", "y")) == [("x", "y")]
    assert raw.read([["x", "y"], ["z", "w"]]) == [("x", "y"), ("z", "w")]
    with pytest.raises(ValueError, match="needs the columns 'a' and 'b' but has: a"):
        raw.read(pd.DataFrame({"a": ["x"]}))
    with pytest.raises(ValueError, match="a text of the pair is empty"):
        raw.read(("x", " "))


def test_words_are_pairs_too() -> None:
    from tlresearch.modality.text import TextPreprocessing, WordTokenizer

    tokenizer = WordTokenizer(["good", "film"])
    pairs = JointPairs.of(TextPreprocessing("words", tokenizer.sha256, 3, None, tokenizer), types=True)
    [value] = pairs.prepare_all([("good good film", "film")])
    assert value["ids"].tolist() == [2, 2, 3]  # the longer text is cut
    assert value["types"].tolist() == [0, 0, 1]
