"""What is seen in a folder: the layout of every kind of data that people have, and one clear line for the rest."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlresearch.base.errors import DataError, UserError
from tlresearch.cli import main
from tlresearch.drafting.survey import Survey, look


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(path)


def sound(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.zeros(800, np.int16).tobytes())


def table(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def seen(survey: Survey) -> tuple[str, str, dict[str, Any]]:
    return survey.layout.kind, survey.layout.task, dict(survey.layout.data)


def test_a_folder_per_class_with_and_without_splits(tmp_path: Path) -> None:
    for name in ("cats/1.png", "cats/2.png", "dogs/1.png"):
        picture(tmp_path / "plain" / name)
        picture(tmp_path / "split" / "train" / name)
        picture(tmp_path / "split" / "valid" / name)
    survey = look(tmp_path / "plain")
    assert seen(survey) == ("image", "classification", {"name": "image_folder"})
    assert survey.counts == {"cats": 2, "dogs": 1}
    assert survey.sizes == [(20, 30)] * 3
    assert look(tmp_path / "split").splits == {"train": 3, "val": 3}


def test_a_table_of_pictures_names_its_columns_and_their_folder(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / "scans" / f"{number}.png", number)
    rows = [f"p{number // 2},{number}.png,{'ill' if number % 2 else 'well'},train" for number in range(4)]
    table(tmp_path / "labels.csv", "patient_id,file,diagnosis,subset", *rows)
    survey = look(tmp_path)
    assert survey.root == tmp_path / "scans"
    assert seen(survey)[2] == {
        "name": "image_csv",
        "table": "../labels.csv",
        "image_column": "file",
        "label_column": "diagnosis",
        "split_column": "subset",
    }


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("reviews.csv", ["review;stars;sentiment", "a good film;5;pos", "a bad film;1;neg"], ("review", "sentiment")),
        ("sms.tsv", ["ham\tsee you at noon", "spam\twin a prize now", "ham\tno, later"], ("1", "0")),
        ("train.tsv", ["a good film\t1", "a bad film\t0", "so so , really\t1"], ("0", "1")),
        ("r.jsonl", ['{"body": "a good film", "y": 1}', '{"body": "a bad film", "y": 0}'], ("body", "y")),
    ],
)
def test_a_table_of_texts_by_its_header_or_by_what_stands_in_it(
    tmp_path: Path, name: str, rows: list[str], columns: tuple[str, str]
) -> None:
    table(tmp_path / name, *rows)
    for place in (tmp_path, tmp_path / name):
        kind, task, data = seen(look(place))
        assert (kind, task, data["name"]) == ("text", "classification", "text_table")
        assert (data["text_column"], data["label_column"]) == columns


def test_a_table_that_is_named_is_looked_at_alone(tmp_path: Path) -> None:
    table(tmp_path / "reviews.csv", "text,label", "a good film,1", "a bad film,0", "so and so,1")
    table(tmp_path / "more.csv", "text,label", "a good film,1", "a bad film,0", "so and so,1")
    for name in ("photos/cats/1.png", "scans/image/1.png", "scans/label/1.png"):
        picture(tmp_path / name)
    survey = look(tmp_path / "reviews.csv")
    assert survey.layout.data["name"] == "text_table"
    assert survey.root == tmp_path / "reviews.csv"


def test_a_column_of_measured_numbers_is_learnt_as_numbers(tmp_path: Path) -> None:
    for number in range(30):
        picture(tmp_path / f"{number}.png", number)
    table(tmp_path / "faces.csv", "file,age", *[f"{number}.png,{number + 0.5}" for number in range(30)])
    kind, task, data = seen(look(tmp_path))
    assert (kind, task, data["targets"]) == ("image", "regression", ["age"])
    assert look(tmp_path).described() == "30 images, numbers: age; no splits are given"


def test_files_of_lines_are_classes(tmp_path: Path) -> None:
    table(tmp_path / "pos.txt", *["good it is"] * 12)
    table(tmp_path / "neg.txt", *["bad it is"] * 12)
    assert seen(look(tmp_path))[2] == {"name": "text_lines", "files": {"neg": "neg.txt", "pos": "pos.txt"}}


def test_tagged_words_with_their_splits_in_the_names(tmp_path: Path) -> None:
    for name in ("wnut17train.conll", "emerging.dev.conll"):
        table(tmp_path / name, "Ann\tB-person", "sings\tO", "", "In\tO", "Oslo\tB-place")
    kind, task, data = seen(look(tmp_path))
    assert (kind, task, data["name"]) == ("text", "tokens", "conll")
    assert data["files"] == {"train": "wnut17train.conll", "val": "emerging.dev.conll"}


def test_sounds_by_folder_by_name_and_by_table(tmp_path: Path) -> None:
    for digit in ("one", "two"):
        for take in range(4):
            sound(tmp_path / "folders" / digit / f"{take}.wav")
            sound(tmp_path / "names" / "recordings" / f"{digit}_ann_{take}.wav")
            sound(tmp_path / "table" / f"{digit}{take}.wav")
    table(tmp_path / "table" / "all.csv", "path,label", *[f"{d}{n}.wav,{d}" for d in ("one", "two") for n in range(4)])
    for name, source in (("folders", "audio_folder"), ("names", "audio_folder"), ("table", "audio_manifest")):
        survey = look(tmp_path / name)
        assert seen(survey)[::2][1]["name"] == source
        assert survey.counts == {"one": 4, "two": 4}


def test_masks_lie_beside_their_images(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "image" / f"{number}.png")
        mask = np.full((20, 30), 255 * (number % 2), np.uint8)
        (tmp_path / "label").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "label" / f"{number}_mask.png")
    kind, task, data = seen(look(tmp_path))
    assert (kind, task) == ("image", "segmentation")
    assert data["options"] == {"images": "image", "masks": "label", "mask_suffix": "_mask"}


def test_boxes_of_voc_and_coco(tmp_path: Path) -> None:
    voc, coco = tmp_path / "voc", tmp_path / "coco"
    picture(voc / "JPEGImages" / "1.jpg")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    table(voc / "Annotations" / "1.xml", f"<annotation><object><name>cell</name>{box}</object></annotation>")
    assert seen(look(voc)) == ("image", "detection", {"name": "voc"})
    picture(coco / "photos" / "1.jpg")
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 30, "height": 20}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8]}],
    }
    (coco / "all.json").write_text(json.dumps(content))
    options = {"annotations": "all.json", "images": "photos"}
    assert seen(look(coco)) == ("image", "detection", {"name": "coco", "options": options})


def test_what_cannot_be_learnt_from_gets_one_line(tmp_path: Path) -> None:
    empty, odd, single, loose = (tmp_path / name for name in ("empty", "odd", "single", "loose"))
    empty.mkdir()
    table(odd / "notes.md", "# nothing")
    picture(single / "cats" / "1.png")
    picture(loose / "1.png")
    for place, words in (
        (empty, "is empty"),
        (odd, r"nothing to learn from \(1 passed over: 1 .md\)"),
        (single, "two classes are needed, but all 1 images are 'cats'"),
        (loose, "1 images but no labels: put them into one folder per class"),
    ):
        with pytest.raises(DataError, match=words):
            look(place)
    with pytest.raises(UserError, match="there is no folder"):
        look(tmp_path / "missing")


def test_the_commands_say_so_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for command in ("init", "run", "sweep"):
        assert main([command, str(tmp_path / "empty")]) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert "is empty" in text
        assert text.count("\n") == 1
    assert not (tmp_path / "home").exists()
    assert main(["init", "no_such_folder"]) == 2
    assert "there is no folder or file 'no_such_folder'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "source", "task"),
    [
        ("hymenoptera_data", "image_folder", "classification"),
        ("sms_spam", "text_table", "classification"),
        ("emotion", "text_table", "classification"),
        ("poem_sentiment", "text_table", "classification"),
        ("free_spoken_digit", "audio_folder", "classification"),
        ("isbi2012_em", "masks", "segmentation"),
        ("bccd", "voc", "detection"),
        ("wnut17", "conll", "tokens"),
        ("pneumoniamnist", "npz", "classification"),
    ],
)
def test_public_data_sets_are_seen_as_what_they_are(data_dir: Path, name: str, source: str, task: str) -> None:
    survey = look(data_dir / name)
    assert (survey.layout.data["name"], survey.layout.task) == (source, task)
