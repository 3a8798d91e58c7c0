"""Entities are scored as seqeval scores them; tokens without a tag have no part in loss or metrics."""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

import pytest
import torch
from seqeval.metrics import classification_report
from torch.nn import functional

from tests.toy import toy_backbone
from tlresearch.base.errors import MissingExtraError
from tlresearch.data.base import Batch, Data, Fingerprint
from tlresearch.data.text import IGNORED, TextSplit
from tlresearch.modality.text import TextPreprocessing, WordTokenizer
from tlresearch.tasks.tokens import EntityScore, TokensTask, entities, padded, tag_weights

TAGS = ("O", "B-creative-work", "I-creative-work", "B-per", "I-per")


def task(**options: object) -> TokensTask:
    return TokensTask(
        toy_backbone(),
        classes=TAGS,
        optimizer=lambda backbone, head: torch.optim.SGD(head.parameters(), lr=0.1),
        changing=frozenset(),
        **options,  # type: ignore[arg-type]
    )


def test_known_values() -> None:
    # Wrong end, right, wrong kind, missed, invented; an I without its B begins an entity.
    given = [["B-per", "I-per", "O", "B-per"], ["I-per", "O", "B-creative-work"], ["B-per", "O"]]
    found = [["B-per", "O", "O", "B-per"], ["B-per", "O", "B-per"], ["O", "B-per"]]
    score = EntityScore(["creative-work", "per"])
    score.update(given, found)
    values = score.compute()
    assert values == pytest.approx(
        {"precision": 2 / 5, "recall": 2 / 5, "f1": 2 / 5, "f1_creative_work": 0, "f1_per": 4 / 9}
    )
    assert entities(["I-per", "I-per", "B-per"]) == [("per", 0, 1), ("per", 2, 2)]
    with pytest.raises(ValueError, match="2 given but 1 predicted"):
        score.update([["O", "O"]], [["O"]])


def test_scores_equal_those_of_seqeval() -> None:
    draw = random.Random(0)
    given = [[draw.choice(TAGS) for _ in range(draw.randint(1, 9))] for _ in range(60)]
    found = [[tag if draw.random() < 0.7 else draw.choice(TAGS) for tag in row] for row in given]
    score = EntityScore(["creative-work", "per"])
    for start in range(0, 60, 7):
        score.update(given[start : start + 7], found[start : start + 7])
    report = classification_report(given, found, output_dict=True)
    values = score.compute()
    for name, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert values[name] == pytest.approx(report["micro avg"][theirs])
    assert values["f1_per"] == pytest.approx(report["per"]["f1-score"])
    assert values["f1_creative_work"] == pytest.approx(report["creative-work"]["f1-score"])


def test_loss_and_metrics_leave_out_tokens_without_a_tag() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(2, 4, len(TAGS))
    targets = [torch.tensor([IGNORED, 3, 4, 0]), torch.tensor([3, IGNORED])]
    logits, tags = outputs[[0, 0, 0, 1], [1, 2, 3, 0]], torch.tensor([3, 4, 0, 3])
    unit = task()
    assert unit.loss(outputs, targets).item() == pytest.approx(functional.cross_entropy(logits, tags).item())
    assert padded(targets, outputs).tolist() == [[IGNORED, 3, 4, 0], [3, IGNORED, IGNORED, IGNORED]]
    assert unit.loss(outputs, torch.full((2, 4), IGNORED)).item() == 0
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    weighted = task(class_weights=weights).loss(outputs, targets).item()
    assert weighted == pytest.approx(functional.cross_entropy(logits, tags, weight=weights).item())
    assert tag_weights(targets, 5).tolist() == pytest.approx([4 / 5, 4 / 5, 4 / 5, 4 / 10, 4 / 5])
    sure = functional.one_hot(padded(targets, outputs).clamp(min=0), len(TAGS)).float() * 9
    sure[0, 3] = functional.one_hot(torch.tensor(3), len(TAGS)) * 9  # an entity too many
    batch = Batch(torch.zeros(2, 4), targets, torch.tensor([0, 1]))
    unit.update_metrics("val", sure, batch, torch.tensor(0.5))
    values = unit.compute_metrics("val")
    assert values["accuracy"] == pytest.approx(3 / 4)
    assert (values["precision"], values["recall"]) == pytest.approx((2 / 3, 1.0))
    assert values["loss"] == 0.5
    assert unit.meters["val_meters"].entities.counts.sum() == 0  # closed metrics begin anew


def test_figures_and_items() -> None:
    tokenizer = WordTokenizer(["anna", "went"])
    preprocessing = TextPreprocessing("words", "", 9, None, tokenizer)
    targets = [torch.tensor([3, 0]), torch.tensor([0, IGNORED, 3])]
    split = TextSplit(
        [["Anna", "went"], ["\u4e2d went", "Bob"]], targets=targets, names=["a", "b"], preprocessing=preprocessing
    )
    data = Data("d", {"val": split}, TAGS, "tokens", Fingerprint(""))
    unit = task()
    outputs = torch.zeros(2, 3, len(TAGS))
    outputs[0, 0, 3] = outputs[0, 1, 0] = outputs[1, 0, 0] = outputs[1, 2, 1] = 5
    unit.update_metrics("val", outputs, Batch(torch.zeros(2, 3), targets, torch.tensor([0, 1])), torch.tensor(1.0))
    items = unit.items(data)
    assert items is not None
    assert [(item.name, item.target, item.prediction) for item in items.items] == [
        ("a", "per 0-0", "per 0-0"),
        ("b", "per 1-1", "creative-work 1-1"),
    ]
    drawn = unit.figures(data)
    assert set(drawn) == {"confusion_matrix.png", "wrong_sentences.png"}
    for figure in drawn.values():
        figure.savefig(io.BytesIO())  # warns of letters the font lacks
    texts = " ".join(text.get_text() for text in drawn["wrong_sentences.png"].texts)
    assert "Bob (creative-work)" in texts
    assert "Anna" not in texts


def test_missing_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "seqeval.metrics.sequence_labeling", None)
    with pytest.raises(ModuleNotFoundError):
        task()
    for name in [name for name in sys.modules if name.startswith("seqeval")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingExtraError, match="seqeval is not installed: it comes with the extra 'text'"):
        task()
