from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tlresearch.data.base import Data

Build = Callable[..., Data]


def changed_names(before: Data, after: Data) -> set[str]:
    old, new = before.fingerprint.files, after.fingerprint.files
    return {name for name in {*old, *new} if old.get(name) != new.get(name)}


def test_one_changed_byte_changes_the_digest_and_names_the_file(folder: Callable[..., Path], build: Build) -> None:
    root = folder({"cat": 4, "dog": 4}, ["train", "val"], suffix="bmp")
    before = build(root)
    path = root / "train" / "dog" / "dog2train.bmp"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    after = build(root)
    assert before.fingerprint.digest != after.fingerprint.digest
    assert changed_names(before, after) == {"train/dog/dog2train.bmp"}


def test_the_digest_does_not_depend_on_where_the_data_lie(
    folder: Callable[..., Path], tmp_path: Path, build: Build
) -> None:
    root = folder({"cat": 4, "dog": 4})
    before = build(root)
    moved = root.rename(tmp_path / "moved")
    assert build(moved).fingerprint == before.fingerprint


def test_label_split_and_selection_count(folder: Callable[..., Path], build: Build) -> None:
    root = folder({"cat": 6, "dog": 6}, ["train", "val"])
    digests = {build(root).fingerprint.digest, build(root, labels_per_class=3).fingerprint.digest}
    digests.add(build(root, classes=["dog", "cat"]).fingerprint.digest)
    (root / "val" / "cat" / "cat0val.png").rename(root / "val" / "dog" / "cat0val.png")
    digests.add(build(root).fingerprint.digest)
    assert len(digests) == 4


def test_pixels_in_memory_count(build: Build) -> None:
    assert build(name="digits").fingerprint == build(name="digits").fingerprint
    assert build(name="digits").fingerprint.digest != build(name="digits", split_seed=1).fingerprint.digest
