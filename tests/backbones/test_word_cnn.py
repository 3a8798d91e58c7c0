from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tlresearch.backbones.word_cnn import build_word_cnn
from tlresearch.base.errors import UserError, WeightsError
from tlresearch.config.schema import BackboneConfig


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "words.tsv").write_text("good film , good\nbad 1\n")
    (tmp_path / "vectors.txt").write_text("4 3\ngood 1 2 3\nBad 4 5 6\nzebra 7 8 9\nthe 0 0 1\n")
    return tmp_path


def test_stages_and_vocabulary(files: Path) -> None:
    backbone = build_word_cnn(options={"vocabulary": str(files / "words.tsv"), "width": 6, "maps": 5, "sizes": [2, 3]})
    assert backbone.stage_names == ("embeddings", "convolutions")
    assert backbone.out_features == 10
    assert backbone.weights.random_stages == ("embeddings", "convolutions")
    assert backbone.preprocessing.tokenizer.words == ("good", ",", "1", "bad", "film")
    assert backbone.stages[0].embedding.weight[0].abs().sum() == 0
    few = build_word_cnn(options={"vocabulary": [str(files / "words.tsv")], "min_count": 2, "width": 2})
    assert few.preprocessing.tokenizer.words == ("good",)


def test_what_a_batch_pads_changes_nothing(files: Path) -> None:
    torch.manual_seed(0)
    backbone = build_word_cnn(options={"vocabulary": str(files / "words.tsv"), "width": 6, "maps": 50}).eval()
    with torch.no_grad():  # windows of padding alone would give the bias
        for convolution in backbone.stages[1].convolutions:
            convolution.bias.fill_(3.0)
            convolution.weight.mul_(-1)
    short = {"ids": torch.tensor([[2, 5]]), "mask": torch.tensor([[True, True]])}
    ids, mask = torch.tensor([[2, 5, 0, 0, 0, 0, 0], [2, 3, 4, 5, 6, 2, 3]]), torch.ones(2, 7, dtype=torch.bool)
    mask[0, 2:] = False
    torch.testing.assert_close(backbone({"ids": ids, "mask": mask})[0], backbone(short)[0])
    table = backbone.stages[0].embedding.weight
    kernel = backbone.stages[1].convolutions[0]
    padded = torch.cat([torch.zeros(2, 6), table[[2, 5]], torch.zeros(2, 6)])
    by_hand = torch.stack([(kernel.weight * padded[i : i + 3].T).sum((1, 2)) + kernel.bias for i in range(4)])
    torch.testing.assert_close(backbone(short)[0, :50], by_hand.relu().amax(0))


def test_given_vectors(files: Path) -> None:
    options = {"vocabulary": str(files / "words.tsv"), "vectors": str(files / "vectors.txt"), "maps": 2}
    backbone = build_word_cnn(options=options)
    words = backbone.preprocessing.tokenizer.words
    assert backbone.stages[0].embedding.weight[2 + words.index("bad")].tolist() == [4, 5, 6]
    assert backbone.weights.source == "vectors.txt"
    assert len(backbone.weights.sha256) == 64
    assert backbone.weights.random_stages == ("convolutions",)
    alone = build_word_cnn(options={"vectors": str(files / "vectors.txt")})
    assert alone.preprocessing.tokenizer.words == ("good", "bad", "zebra", "the")


def test_hidden_states_of_words(files: Path) -> None:
    backbone = build_word_cnn(options={"vectors": str(files / "vectors.txt")}, end="sequence")
    assert backbone.stage_names == ("embeddings",)
    value = {"ids": torch.tensor([[2, 0]]), "mask": torch.tensor([[True, False]])}
    assert backbone(value)["hidden"][0].tolist() == [[1, 2, 3], [0, 0, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs the text files whose words get a vector"),
        ({"vocabulery": "x"}, r"no option 'vocabulery' \(did you mean 'vocabulary'\?\)"),
        ({"vectors": "vectors.txt", "maps": 0}, "options.maps must be a whole number of at least 1 but got 0"),
        ({"vectors": "broken.txt"}, "broken.txt:2 has 1 numbers, unlike those above"),
        ({"vectors": "nothing.txt"}, "'nothing.txt' is neither in"),
    ],
)
def test_refused(options: dict[str, object], message: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLRESEARCH_WEIGHTS", str(files))
    (files / "broken.txt").write_text("a 1 2\nb 1\n")
    with pytest.raises(UserError, match=message):
        build_word_cnn(options=options)


def test_no_pretrained_weights_by_name(files: Path) -> None:
    with pytest.raises(WeightsError, match="no pretrained weights of word_cnn"):
        build_word_cnn(weights=BackboneConfig().weights, options={"vectors": str(files / "vectors.txt")})
