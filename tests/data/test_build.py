from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tlresearch.data.arrays import ArrayImages
from tlresearch.data.base import Data, SampleKey
from tlresearch.data.table import Table
from tlresearch.modality.image import Preprocessing

Build = Callable[..., Data]


def counts(data: Data) -> dict[str, list[int]]:
    return {
        name: torch.bincount(split.targets, minlength=len(data.classes)).tolist() for name, split in data.splits.items()
    }


def test_hymenoptera_has_the_tutorials_counts(real: Callable[[str], str], build: Build) -> None:
    data = build(real("hymenoptera_data"))
    assert data.classes == ("ants", "bees")
    assert data.kind == "binary"
    assert counts(data) == {"train": [123, 121], "val": [70, 83]}


def test_cats_vs_dogs_gets_its_val_from_train(real: Callable[[str], str], build: Build) -> None:
    data = build(real("cats_vs_dogs"))
    assert data.classes == ("cats", "dogs")
    assert counts(data) == {"train": [80, 80], "val": [20, 20], "test": [50, 50]}
    assert all(name.startswith("train/") for name in data.splits["val"].names)


def test_cifar10_subset(real: Callable[[str], str], build: Build) -> None:
    data = build(real("cifar10_subset"), val_fraction=0.1)
    assert len(data.classes) == 10
    assert data.kind == "multiclass"
    assert counts(data) == {"train": [90] * 10, "val": [10] * 10, "test": [50] * 10}


def test_pneumoniamnist_and_its_known_repeats(
    real: Callable[[str], str], build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    data = build(real("pneumoniamnist"), name="npz", preprocessing=Preprocessing(None, None, (0.5,), (0.5,)))
    assert counts(data) == {"train": [1214, 3494], "val": [135, 389], "test": [234, 390]}
    assert data.splits["train"][SampleKey(0, 0)][0].shape == (1, 28, 28)
    assert "8 samples are in two splits with the same content" in caplog.text


def test_digits_keep_classes_in_the_order_asked_for(build: Build) -> None:
    data = build(name="digits", classes=["4", "0"])
    assert data.classes == ("4", "0")
    everything = build(name="digits")
    assert sum(len(split) for split in everything.splits.values()) == 1797
    assert sum(counts(data)["train"]) + sum(counts(data)["val"]) == 178 + 181
    name = data.splits["train"].names[0]
    found = [
        int(target)
        for split in everything.splits.values()
        for each, target in zip(split.names, split.targets, strict=True)
        if each == name
    ]
    assert data.classes[int(data.splits["train"].targets[0])] == str(found[0])


def test_an_unsplit_folder_is_split_by_seed(folder: Callable[..., Path], build: Build) -> None:
    root = folder({"cat": 10, "dog": 20})
    data = build(root, val_fraction=0.2, test_fraction=0.5)
    assert counts(data) == {"train": [4, 8], "val": [1, 2], "test": [5, 10]}
    assert data.splits["val"].names != build(root, split_seed=1).splits["val"].names


def test_other_names_of_the_val_folder_are_understood(folder: Callable[..., Path], build: Build) -> None:
    assert counts(build(folder({"cat": 2, "dog": 3}, ["train", "valid"]))) == {"train": [2, 3], "val": [2, 3]}


def test_nothing_is_written_into_the_data_folder(folder: Callable[..., Path], build: Build) -> None:
    root = folder({"cat": 4, "dog": 4})
    before = sorted(str(path) for path in root.rglob("*"))
    build(root)
    assert sorted(str(path) for path in root.rglob("*")) == before


def test_csv_with_several_labels(tmp_path: Path, save_image: Callable[..., Path], build: Build) -> None:
    lines = ["image,label,split"]
    for number, label in enumerate(["red;blue", "blue", "", "red", "red;blue", "blue"]):
        save_image(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{label},{'train' if number < 4 else 'val'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    data = build(tmp_path, name="image_csv", split_column="split")
    assert data.kind == "multilabel"
    assert data.classes == ("blue", "red")
    assert data.splits["train"].targets.tolist() == [[1, 1], [1, 0], [0, 0], [0, 1]]
    assert data.splits["train"].targets.dtype == torch.float32
    assert build(tmp_path, name="image_csv", classes=["red"]).classes == ("red",)


def test_csv_sorts_numbers_as_numbers(tmp_path: Path, save_image: Callable[..., Path], build: Build) -> None:
    for number in range(6):
        save_image(tmp_path / f"{number}.png")
    rows = [f"{number}.png,{[2, 10, 9][number % 3]}" for number in range(6)]
    (tmp_path / "labels.csv").write_text("\ufeffimage,label\n" + "\n".join(rows), encoding="utf-8")
    assert build(tmp_path, name="image_csv").classes == ("2", "9", "10")


def test_npz_with_several_labels_and_class_names(tmp_path: Path, build: Build) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 9, 9, 3)).astype(np.uint8)
    labels = np.array([[1, 0], [0, 1], [1, 1]] * 2)
    np.savez(
        tmp_path / "x.npz",
        train_images=images,
        train_labels=labels,
        val_images=images[:3] + 1,
        val_labels=labels[:3],
        classes=np.array(["a", "b"]),
    )
    data = build(tmp_path / "x.npz", name="npz")
    assert data.kind == "multilabel"
    assert data.classes == ("a", "b")
    assert data.splits["val"].targets.tolist() == labels[:3].tolist()
    assert torch.equal(data.splits["train"].raw(1), torch.from_numpy(images[1]).permute(2, 0, 1))


def test_torchvision_without_splits(build: Build) -> None:
    options = {"size": 40, "image_size": (3, 16, 16), "num_classes": 2}
    data = build(name="torchvision", dataset="FakeData", options=options)
    assert list(data.splits) == ["train", "val"]
    assert sum(len(split) for split in data.splits.values()) == 40


def test_torchvision_with_train_argument_reads_the_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Build
) -> None:
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 3072)).astype(np.uint8)

    def write(name: str, content: object) -> tuple[str, str]:
        (base / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((base / name).read_bytes()).hexdigest()

    parts = [write(f"part{i}", {"data": pixels[i], "labels": [0, 1] * 10}) for i in range(2)]
    name, md5 = write("meta", {"label_names": ["cat", "dog"]})
    monkeypatch.setattr(CIFAR10, "train_list", [parts[0]])
    monkeypatch.setattr(CIFAR10, "test_list", [parts[1]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    data = build(tmp_path, name="torchvision", dataset="CIFAR10", val_fraction=0.2)
    assert counts(data) == {"train": [8, 8], "val": [2, 2], "test": [10, 10]}
    assert data.classes == ("cat", "dog")
    assert torch.equal(data.splits["test"].raw(3), torch.from_numpy(pixels[1, 3].reshape(3, 32, 32)))


def test_a_source_of_ones_own_by_dotted_path(monkeypatch: pytest.MonkeyPatch, build: Build) -> None:
    def source(size: int) -> Table:
        images = ArrayImages(np.arange(size * 64, dtype=np.uint32).astype(np.uint8).reshape(size, 8, 8))
        return Table("mine", ("a", "b"), torch.arange(size) % 2, [str(i) for i in range(size)], images)

    module = ModuleType("my_sources")
    module.source = source  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_sources", module)
    data = build(name="my_sources.source", options={"size": 10})
    assert data.name == "mine"
    assert counts(data) == {"train": [4, 4], "val": [1, 1]}


@pytest.mark.parametrize("channels", [1, 3])
def test_images_follow_the_backbones_channels(folder: Callable[..., Path], build: Build, channels: int) -> None:
    wanted = Preprocessing(8, 10, (0.5,) * channels, (0.5,) * channels)
    for data in (
        build(folder({"a": 3, "b": 3}), preprocessing=wanted),
        build(name="digits", preprocessing=wanted),
    ):
        image, _, _ = data.splits["train"][SampleKey(0, 0)]
        assert image.shape == (channels, 8, 8)
        assert data.splits["train"].raw(0).dtype == torch.uint8
        assert data.splits["train"].raw(0).shape[0] == channels


def test_unreadable_images_are_skipped_and_counted(folder: Callable[..., Path], build: Build) -> None:
    root = folder({"cat": 6, "dog": 6})
    (root / "cat" / "cat1.png").write_bytes(b"")
    path = root / "dog" / "dog2.png"
    path.write_bytes(path.read_bytes()[:60])
    data = build(root, on_error="skip")
    assert set(data.skipped) == {"cat/cat1.png", "dog/dog2.png"}
    assert "0 bytes" in data.skipped["cat/cat1.png"]
    assert sum(len(split) for split in data.splits.values()) == 10
    assert not set(data.skipped) & set(data.fingerprint.files)


def test_a_file_that_breaks_later_is_named(folder: Callable[..., Path], build: Build) -> None:
    from tlresearch.base.errors import DataError

    root = folder({"cat": 4, "dog": 4})
    split = build(root).splits["train"]
    (root / split.names[2]).unlink()
    with pytest.raises(DataError, match=split.names[2]):
        split[SampleKey(2, 0)]
