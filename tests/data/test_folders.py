"""What lies in a folder is a sample, or counted and named: hidden files, other endings, links, names of tables."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tlresearch.base.errors import DataError
from tlresearch.data.base import Data
from tlresearch.data.folders import find_listed, list_files, summary
from tlresearch.data.table import split_of, splits_among

Make = Callable[..., Path]
Build = Callable[..., Data]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_what_is_no_sample_is_counted_by_kind(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        *("a.png", "b.PNG", "deep/c.png", "d.heic", "e.HEIC", "notes", "f.txt"),
        *(".g.png", "._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", "Thumbs.db", "deep/desktop.ini"),
    )
    files = list_files(root, (".png",))
    assert sorted(files.names) == ["a.png", "b.PNG", "deep/c.png"]
    assert files.passed == {".heic": 2, ".txt": 1, "without an ending": 1, "hidden": 6}
    assert summary(files.passed) == "10 passed over: 2 .heic, 1 .txt, 1 without an ending, 6 hidden"
    assert summary({f".{n}": n for n in range(1, 10)}).endswith("6 of other kinds")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "root/a/1.png", "elsewhere/2.png")
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path / "root", target_is_directory=True)
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    files = list_files(tmp_path / "root", (".png",))
    assert sorted(files.names) == ["a/1.png", "b/2.png"]
    assert files.passed == {"links to a folder above": 2}


def test_a_name_that_is_no_text_is_refused_by_its_name(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with pytest.raises(DataError, match=r"not UTF-8 \(1\): caf\\xe9\.png\. Rename"):
        list_files(tmp_path, (".png",))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Training", "train"),
        ("TEST", "test"),
        ("Validation", "val"),
        ("Testing", "test"),
        ("dev", "val"),
        ("cat", None),
    ],
)
def test_splits_by_other_names(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_train_and_val_together_are_train_unless_that_is_there() -> None:
    assert splits_among(["trainval", "test", "x"], "here") == {"trainval": "train", "test": "test"}
    assert splits_among(["trainval", "train", "val"], "here") == {"train": "train", "val": "val"}
    with pytest.raises(DataError, match=r"here holds train and Training, which are one split \(train\)"):
        splits_among(["train", "Training"], "here")


@pytest.mark.parametrize("names", [("TRAIN", "Valid"), ("training", "DEV"), ("Trainval", "Validation")])
def test_folders_of_splits_in_other_spelling(names: tuple[str, str], folder: Make, build: Build) -> None:
    data = build(folder({"cat": 3, "dog": 3}, names))
    assert data.classes == ("cat", "dog")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "val": 6}


def test_a_class_may_be_called_train(folder: Make, build: Build) -> None:
    assert build(folder({"bus": 3, "train": 3, "plane": 3})).classes == ("bus", "plane", "train")


def test_the_sum_is_said_and_kept(folder: Make, build: Build, caplog: pytest.LogCaptureFixture) -> None:
    root = touch(folder({"cat": 3, "dog": 3}), "cat/a.heic", "dog/._b.png", "dog/.ipynb_checkpoints/c.png", "readme.md")
    data = build(root)
    assert data.passed == {".heic": 1, "hidden": 2, ".md": 1}
    assert "pets: 6 images, 4 passed over: 1 .heic, 1 .md, 2 hidden" in caplog.text


def test_further_endings_of_photos_are_read(folder: Make, build: Build) -> None:
    root = folder({"cat": 3, "dog": 3}, suffix="jpg")
    for number, ending in enumerate((".jfif", ".JPE", ".JFIF")):
        (root / "cat" / f"cat{number}.jpg").rename(root / "cat" / f"{number}{ending}")
    data = build(root)
    assert sum(map(len, data.splits.values())) == 6
    assert not data.passed


def test_a_test_split_may_lack_a_class(folder: Make, build: Build, caplog: pytest.LogCaptureFixture) -> None:
    root = folder({"ash": 3, "elm": 3, "oak": 3}, ("train", "test"))
    for path in (root / "test" / "oak").iterdir():
        path.unlink()
    (root / "test" / "oak").rmdir()
    assert len(build(root).splits["test"]) == 6
    assert "no sample of the test split has the label 'oak'" in caplog.text


def test_names_of_a_table_need_no_ending_and_may_be_of_windows(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/2.JPG", "b.nii.gz", "café.png", "a/left.png")
    endings = (".png", ".jpg", ".nii", ".nii.gz")
    files = find_listed(tmp_path, ["a/1", "a\\2", "b", "cafe\u0301.png", "gone.png"], endings, "t.csv")
    assert files.names == ["a/1.png", "a/2.JPG", "b.nii.gz", "café.png", "gone.png"]
    assert files.passed == {"not in the table": 1}
    touch(tmp_path, "a/1.jpg")
    with pytest.raises(DataError, match=r"t\.csv: names that fit several files \(1\): a/1 fits 1\.jpg and 1\.png"):
        find_listed(tmp_path, ["a/1"], endings, "t.csv")
    assert find_listed(tmp_path, ["a/1.png"], endings, "t.csv").names == ["a/1.png"]


def test_classes_of_split_folders_are_one_however_their_letters_are_composed(folder: Make, build: Build) -> None:
    root = folder({"caf\u00e9": 3, "dog": 3}, ("train", "val"))
    (root / "val" / "caf\u00e9").rename(root / "val" / "cafe\u0301")
    data = build(root)
    assert data.classes == ("caf\u00e9", "dog")
    assert len(data.splits["val"]) == 6


@pytest.mark.parametrize(("ending", "saved"), [("tif", {}), ("png", {}), ("webp", {"lossless": True})])
def test_further_pages_and_frames_are_said(
    ending: str, saved: dict[str, bool], folder: Make, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder({"cat": 3, "dog": 3})
    pages = [Image.new("RGB", (12, 12), (shade, 0, 0)) for shade in (10, 200)]
    pages[0].save(root / "cat" / f"stack.{ending}", save_all=True, append_images=pages[1:], **saved)
    data = build(root)
    said = f"pets: of 1 files with several pages or frames, such as cat/stack.{ending}, only the first is read"
    assert said in caplog.text
    split, index = next(
        (s, s.names.index(f"cat/stack.{ending}")) for s in data.splits.values() if f"cat/stack.{ending}" in s.names
    )
    assert split.raw(index)[0].unique().tolist() == [10]
    caplog.clear()
    build(root)
    assert said in caplog.text  # also where the file was looked at before
