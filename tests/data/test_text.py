"""Texts and tagged words from files: read right, refused with the place, tokenised and aligned."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tlresearch.base.errors import DataError, MissingExtraError
from tlresearch.config.schema import DataConfig
from tlresearch.data.base import Data, SampleKey
from tlresearch.data.build import build_data
from tlresearch.data.loading import EpochSampler, make_loader
from tlresearch.data.text import IGNORED, aligned
from tlresearch.data.text_files import read_conll
from tlresearch.modality.image import Preprocessing
from tlresearch.modality.text import Encoded, TextPreprocessing, WordTokenizer, split_words

WORDS = WordTokenizer(["good", "bad", "film", "a", "paris", "in", "anna"])
PREPROCESSING = TextPreprocessing("words", WORDS.sha256, 16, None, WORDS)
ROWS = [("a good film", "pos"), ('"bad film', "neg"), ("good, good", "pos"), ("bad", "neg")] * 3


def build(root: Path | None, preprocessing: Any = PREPROCESSING, **options: Any) -> Data:
    config = DataConfig(**{"name": "text_table", "root": root and str(root), "val_fraction": 0.5, **options})
    return build_data(config, preprocessing=preprocessing, seed=0)


def every(data: Data) -> set[tuple[Any, str]]:
    return {
        (split.raw(i), data.classes[int(split.targets[i])]) for split in data.splits.values() for i in range(len(split))
    }


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("a.tsv", "".join(f"{text}\t{label}\n" for text, label in ROWS), ("0", "1")),
        ("a.tsv", "text\tlabel\r\n" + "".join(f"{text}\t{label}\r\n" for text, label in ROWS), ("text", "label")),
        (
            "a.csv",
            "\ufefflabel,sentence\n" + "".join(f'{label},"{t.replace(chr(34), chr(34) * 2)}"\n' for t, label in ROWS),
            ("sentence", "label"),
        ),
        ("a.jsonl", "".join(json.dumps({"s": t, "y": label, "z": 1}) + "\n" for t, label in ROWS), ("s", "y")),
    ],
)
def test_formats(name: str, content: str, columns: tuple[str, str], tmp_path: Path) -> None:
    data = build(write(tmp_path / name, content), text_column=columns[0], label_column=columns[1])
    assert data.classes == ("neg", "pos")
    assert data.kind == "binary"
    assert every(data) == set(ROWS)
    assert len(data.splits["train"]) == len(data.splits["val"]) == 6


def test_splits_are_found_or_named(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        write(tmp_path / f"{split}.tsv", "".join(f"{text} {split}\t{label}\n" for text, label in ROWS))
    found = build(tmp_path, text_column="0", label_column="1")
    assert {split: found.splits[split].raw(0).split()[-1] for split in found.splits} == {
        "train": "train",
        "val": "dev",
        "test": "test",
    }
    (tmp_path / "more").mkdir()
    write(tmp_path / "more" / "test.tsv", (tmp_path / "train.tsv").read_text())  # of the same name as another file
    named = build(tmp_path, text_column="0", label_column="1", files={"train": "test.tsv", "val": "more/test.tsv"})
    assert named.splits["train"].raw(0).endswith("test")
    assert set(named.splits) == {"train", "val"}


def test_several_labels(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\n" + "one,x;y\ntwo,y\nthree,x\nfour,y;x\n")
    data = build(file, val_fraction=0.25)
    assert data.kind == "multilabel"
    assert sum(int(split.targets.sum()) for split in data.splits.values()) == 6


def test_one_file_for_each_class(tmp_path: Path) -> None:
    write(tmp_path / "r.neg", "bad\n\n a bad film \n")
    write(tmp_path / "r.pos", "good\u2028film\ngood\n")
    data = build(tmp_path, name="text_lines", files={"n": "r.neg", "p": "r.pos"})
    assert every(data) == {("bad", "n"), ("a bad film", "n"), ("good\u2028film", "p"), ("good", "p")}


CONLL = (
    "-DOCSTART- -X- O\n\nAnna NNP B-per\nin IN O\nParis NNP B-loc\n\nbad JJ O\n\n\nfilm NN O\nAnna X B-per\n"
    "Paris X I-per\n"
)


def test_columns_of_tagged_words(tmp_path: Path) -> None:
    data = build(write(tmp_path / "a.conll", CONLL), name="conll", val_fraction=0.4)
    assert data.kind == "tokens"
    assert data.classes == ("O", "B-loc", "B-per", "I-per")
    sentences = {
        tuple(split.raw(i)): [data.classes[tag] for tag in split.targets[i].tolist()]
        for split in data.splits.values()
        for i in range(len(split))
    }
    assert sentences == {
        ("Anna", "in", "Paris"): ["B-per", "O", "B-loc"],
        ("bad",): ["O"],
        ("film", "Anna", "Paris"): ["O", "B-per", "I-per"],
    }
    tabbed = build(write(tmp_path / "b.conll", "a b\tB-x\nc\tO\n \t \nd\tO\n"), name="conll", val_fraction=0.5)
    assert {tuple(s.raw(i)) for s in tabbed.splits.values() for i in range(len(s))} == {("a b", "c"), ("d",)}


def test_the_first_token_of_a_word_has_its_tag() -> None:
    tokens = Encoded([0] * 7, [None, 0, 0, 1, 3, 3, None])
    assert aligned(tokens, torch.tensor([5, 6, 7, 8])).tolist() == [IGNORED, 5, IGNORED, 6, 8, IGNORED, IGNORED]
    # Two words of one piece each, side by side, are still two.
    assert aligned(Encoded([1, 1], [0, 1]), torch.tensor([3, 3])).tolist() == [3, 3]


def test_words_beyond_the_longest_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = build(write(tmp_path / "a.conll", CONLL), name="conll", max_length=2)
    assert max(len(tags) for split in data.splits.values() for tags in split.targets) == 2
    assert "words are neither trained on nor counted" in caplog.text


def test_texts_are_cut_and_padded(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", "a good film in paris\tpos\nbad\tneg\n" * 2)
    data = build(file, text_column="0", label_column="1", max_length=3, val_fraction=0.5)
    batch = next(iter(make_loader(data.splits["train"], batch_size=2, shuffle=False, seed=0)))
    assert batch.inputs["ids"].tolist() == [[5, 2, 4], [3, 0, 0]]
    assert batch.inputs["mask"].tolist() == [[True] * 3, [True, False, False]]
    assert data.splits["train"][SampleKey(0, 7)][0]["ids"].tolist() == [5, 2, 4]


def test_what_follows_the_longest_text_costs_nothing() -> None:
    words = WordTokenizer(["good", "film"])
    text = "Good film! " * 20
    assert words.texts([text], 5) == [[2, 3, 1, 2, 3]]
    assert split_words(text, 4) == ["good", "film", "!", "good"] == split_words(text)[:4]
    assert split_words(text, 0) == []


def test_words() -> None:
    assert split_words("He didn't like it, 'twas n't good-ish!") == [
        *("he", "didn't", "like", "it", ",", "'twas", "n't", "good", "-", "ish", "!")
    ]
    assert WORDS.texts(["", "GOOD zebra"], 9) == [[1], [2, 1]]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        (
            "a.tsv",
            "text\tlabel\nx\tpos\n",
            {"label_column": "labels"},
            r"no column 'labels' \(did you mean 'label'\?\)",
        ),
        ("a.tsv", "text\tlabel\nx\tpos\ty\n", {}, r"a.tsv, line 2 has 3 values, but the header has 2"),
        ("a.tsv", "text\tlabel\nx\t\ny\tpos\n", {}, r"a.tsv: rows with nothing in column 'label' \(1\): line 2"),
        ("a.tsv", "text\tlabel\n \tpos\ny\tneg\n", {}, r"unreadable texts \(1\): a.tsv:2: the text is empty"),
        ("a.jsonl", '{"text": 1}\n', {}, r"a.jsonl, line 1: no column 'label'"),
        ("a.jsonl", "{]\n", {}, r"a.jsonl, line 1 is not JSON"),
        ("a.conll", "Anna B-per\nParis\n", {"name": "conll"}, r"lines with fewer than 2 columns \(1\): line 2"),
        ("a.conll", "Anna Person\nB B-x\n", {"name": "conll"}, r"tags of another form \(1\): 'Person'"),
    ],
)
def test_refused(name: str, content: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        build(write(tmp_path / name, content), **options)


def test_other_refusals(tmp_path: Path) -> None:
    (tmp_path / "latin.tsv").write_bytes("text\tlabel\ncaf\xe9\tpos\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 2: not a text in UTF-8"):
        build(tmp_path / "latin.tsv")
    file = write(tmp_path / "a.tsv", "".join(f"{text}\t{label}\n" for text, label in ROWS))
    columns = {"text_column": "0", "label_column": "1"}
    with pytest.raises(DataError, match="is for images"):
        build(file, **columns, augment="flip")
    with pytest.raises(DataError, match="this backbone does not take"):
        build(file, Preprocessing(crop=None, resize=None), **columns)
    with pytest.raises(DataError, match="at most 8"):
        build(file, replace(PREPROCESSING, limit=8), **columns, max_length=9)
    with pytest.raises(DataError, match="no file for train"):
        build(tmp_path, **columns)
    with pytest.raises(DataError, match="gives images"):
        build_data(DataConfig(name="digits"), preprocessing=PREPROCESSING, seed=0)


def test_fingerprint_depends_on_texts_and_tags_not_on_the_tokenizer(tmp_path: Path) -> None:
    first = build(write(tmp_path / "a.conll", CONLL), name="conll")
    other = WordTokenizer(["x"])
    same = build(tmp_path / "a.conll", TextPreprocessing("x", other.sha256, 16, None, other), name="conll")
    assert first.fingerprint.digest == same.fingerprint.digest
    for changed in (CONLL.replace("bad", "good"), CONLL.replace("JJ O", "JJ B-per")):
        assert build(write(tmp_path / "a.conll", changed), name="conll").fingerprint.digest != first.fingerprint.digest


def test_batches_of_training_are_of_one_length_and_resume() -> None:
    lengths = [number % 10 for number in range(95)]
    sampler = EpochSampler(95, shuffle=True, seed=0, batch_size=10, lengths=lengths)
    order = [key.index for key in sampler]
    assert sorted(order) == list(range(95))
    spread = [{lengths[index] for index in order[start : start + 10]} for start in range(0, 95, 10)]
    assert max(map(len, spread)) <= 2
    assert spread != sorted(spread, key=min)  # the batches are not in order of their lengths
    sampler.skip(30, epoch=0)
    assert [key.index for key in sampler] == order[30:]
    sampler.set_epoch(1)
    assert [key.index for key in sampler] != order


def test_hub_data_set_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra text is not installed")
    names = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    columns = {"text": [text for text, _ in ROWS], "label": [int(label == "pos") for _, label in ROWS]}
    whole = datasets.Dataset.from_dict(columns, features=features)
    secret = datasets.Dataset.from_dict({**columns, "label": [-1] * len(ROWS)}, features=features)
    datasets.DatasetDict({"train": whole, "validation": whole, "test": secret}).save_to_disk(str(tmp_path / "set"))
    options = {"name": "hf_dataset", "dataset": str(tmp_path / "set")}
    data = build(None, **options)
    assert data.classes == ("neg", "pos")
    assert set(data.splits) == {"train", "val"}
    assert every(data) == set(ROWS)
    with pytest.raises(DataError, match="no column 'lable'"):
        build(None, **{**options, "label_column": "lable"})
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="extra 'text'"):
        build(None, **options)


def test_real_data_counts(data_dir: Path) -> None:
    files = {"train": "wnut17train.conll", "val": "emerging.dev.conll", "test": "emerging.test.annotated"}
    data = build(data_dir / "wnut17", name="conll", files=files, max_length=200)
    counts = {name: (len(part), sum(len(part.raw(i)) for i in range(len(part)))) for name, part in data.splits.items()}
    assert counts == {"train": (3394, 62730), "val": (1009, 15733), "test": (1287, 23394)}
    assert len(data.classes) == 13
    data = build(data_dir / "sst2", text_column="0", label_column="1")
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 6920, "val": 872, "test": 1821}


@pytest.mark.parametrize(
    ("tags", "classes"),
    [
        (("B-x", "L-x", "O", "U-y"), ("O", "B-x", "E-x", "S-y")),
        (("x", "x", "O", "y"), ("O", "I-x", "I-y")),
        (("I-x", "I-x", "O", "I-y"), ("O", "I-x", "I-y")),
        (("B-x", "E-x", "O", "S-y"), ("O", "B-x", "E-x", "S-y")),
    ],
)
def test_tags_of_every_scheme(tags: tuple[str, ...], classes: tuple[str, ...], tmp_path: Path) -> None:
    lines = "".join(f"{word} {tag}\n" for word, tag in zip("abcd", tags, strict=True))
    (tmp_path / "t.conll").write_text(f"{lines}\n" * 4)
    assert read_conll(tmp_path / "t.conll", {}).classes == classes
