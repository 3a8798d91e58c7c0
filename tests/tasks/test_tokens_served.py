"""A stored tagger finds entities with their places in raw texts of any length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.serving.every_task import make, tokens
from tlresearch.tasks.tokens import TokensPredictor


@pytest.fixture
def predictor(tmp_path: Path) -> TokensPredictor:
    """Says ``B-per`` of anna and ``B-loc`` of paris wherever they stand: the head looks at the embeddings alone."""
    made = make(tokens(tmp_path))
    found: TokensPredictor = made.predictor(tmp_path / "stored")
    vocabulary = found.texts.tokenizer.tokenizer.get_vocab()  # type: ignore[attr-defined]
    numbers = {vocabulary["anna"]: "B-per", vocabulary["paris"]: "B-loc"}

    class Known(torch.nn.Module):
        longest = 0

        def forward(self, value: dict[str, torch.Tensor]) -> torch.Tensor:
            Known.longest = max(Known.longest, value["ids"].shape[1])
            tags = [[found.classes.index(numbers.get(number, "O")) for number in row] for row in value["ids"].tolist()]
            return torch.nn.functional.one_hot(torch.tensor(tags), len(found.classes)) * 9.0

    found.network = Known()
    return found


def test_entities_have_their_place_in_the_text(predictor: TokensPredictor) -> None:
    text = "annas film, in (paris)!"
    table = predictor.table(predictor.read([text, "film"]))
    assert table["words"][0] == ["annas", "film", ",", "in", "(", "paris", ")", "!"]
    assert [(e["kind"], e["text"]) for e in table["entities"][0]] == [("per", "annas"), ("loc", "paris")]
    assert all(text[e["start"] : e["end"]] == e["text"] for e in table["entities"][0])
    assert table["entities"][1] == []
    assert 0.9 < table["probability"][0] < 1
    row = {name: column[0] for name, column in table.items()}
    assert predictor.shown(row)[0] == "annas (per), paris (loc)"


def test_words_that_are_split_already_stay_so(predictor: TokensPredictor) -> None:
    table = predictor.table(predictor.read([["went", "to", "paris"], ["anna"]]))
    assert table["tags"] == [["O", "O", "B-loc"], ["B-per"]]
    assert table["entities"][0] == [{"kind": "loc", "text": "paris", "start": 8, "end": 13}]


def test_a_text_longer_than_the_input_runs_in_parts(predictor: TokensPredictor) -> None:
    words = ["annas", "went", "to", "paris"] * 20
    (tags,) = predictor.table([words])["tags"]
    assert tags == ["B-per", "O", "O", "B-loc"] * 20
    assert predictor.network.longest <= predictor.texts.max_length == 12  # type: ignore[operator]


def test_other_samples_are_refused(predictor: TokensPredictor) -> None:
    with pytest.raises(ValueError, match="list of its words"):
        predictor.read([[1, 2]])
    with pytest.raises(ValueError, match="the text is empty"):
        predictor.read(" ")
