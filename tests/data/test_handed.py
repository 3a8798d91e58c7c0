"""Data sets of somebody else's code: torch's, Hugging Face's and LightningDataModules, in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, random_split

from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.errors import ConfigError, DataError
from tlresearch.config.load import load_text
from tlresearch.config.parts import check_own
from tlresearch.data.base import Data, SampleKey
from tlresearch.data.build import build_data
from tlresearch.modality.image import Preprocessing
from tlresearch.run.fit import fit

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
MINE = "tests.data.test_handed"
GREY = Preprocessing(crop=8, resize=8, mean=(0.5,), std=(0.5,))
SIZE = 48


def _pixels(index: int, channels: int = 1) -> np.ndarray:
    """Bright on the left or on the right, by whether the index is odd."""
    image = np.random.default_rng(index).integers(0, 120, (8, 8, channels)).astype(np.uint8)
    image[:, 4 * (index % 2) : 4 * (index % 2) + 4] += 120
    return image


class Squares(Dataset[Any]):
    """A map-style data set; `form` says what a sample looks like."""

    classes = ("left", "right")

    def __init__(self, form: str = "pil", size: int = SIZE, start: int = 0) -> None:
        self.form, self.size, self.start = form, size, start

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        if index >= self.size:
            raise IndexError(index)
        number = self.start + index
        pixels = _pixels(number)
        image, label = Image.fromarray(pixels[..., 0]), number % 2
        samples: dict[str, Any] = {
            "pil": (image, label),
            "array": (pixels, np.int64(label)),
            "floats": (torch.from_numpy(pixels).permute(2, 0, 1) / 255, torch.tensor(label)),
            "columns": {"image": image, "label": self.classes[label]},
            "several": (image, torch.tensor([label, 1])),
            "numbers": (image, float(pixels.mean())),
            "masks": (image, Image.fromarray((pixels[..., 0] > 119).astype(np.uint8))),
            "normalised": (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - 0.5, label),
            "random": (torch.rand(1, 8, 8), label),
            "three": (image, label, number),
            "vectors": (torch.rand(8), label),
            "words": ("a text", label),
            "objects": (image, {"boxes": []}),
            "other columns": {"picture": image, "label": label},
            "small masks": (image, Image.fromarray(np.zeros((4, 4), np.uint8))),
        }
        if self.form == "raises":
            raise OSError("the disk is gone")
        return samples[self.form]


class Stream(IterableDataset[Any]):
    """Has no length."""

    def __iter__(self) -> Any:
        return iter([])


class Module(L.LightningDataModule):
    """Three loaders over two data sets."""

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        self.train, self.val = random_split(Squares(), [40, 8], torch.Generator().manual_seed(0))
        self.test = Squares("array", 16, SIZE)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test, self.batch_size)


def build(name: str, **options: Any) -> Data:
    fraction = 0.0 if name == "builtins.dict" else 0.2
    config = load_text(toy_text(data=f"{{name: {name}, test_fraction: {fraction}}}"), {"data.options": options}).config
    check_own(config, "here")
    return build_data(config.data, preprocessing=GREY, seed=0)


@pytest.mark.parametrize("form", ["pil", "array", "floats", "columns"])
def test_samples_may_look_as_data_sets_give_them(form: str) -> None:
    data = build(f"{MINE}.Squares", form=form)
    assert (data.kind, data.classes) == ("binary", ("left", "right"))
    assert sum(len(split) for split in data.splits.values()) == SIZE
    for index, name in enumerate(data.splits["train"].names):
        number = int(name.rpartition("/")[2])
        assert int(data.splits["train"].targets[index]) == number % 2
        assert torch.equal(data.splits["train"].raw(index)[0], torch.from_numpy(_pixels(number)[..., 0]))
    assert data.fingerprint.digest == build(f"{MINE}.Squares", form=form).fingerprint.digest


def test_labels_may_be_several_numbers_or_masks() -> None:
    assert build(f"{MINE}.Squares", form="several").kind == "multilabel"
    numbers = build(f"{MINE}.Squares", form="numbers")
    assert (numbers.kind, numbers.classes) == ("numbers", ("label",))
    masks = build(f"{MINE}.Squares", form="masks")
    assert masks.kind == "masks"
    batch = masks.splits["val"].__getitems__([SampleKey(0, 0)])
    assert batch.targets.shape == (1, 8, 8)
    assert set(batch.targets.unique().tolist()) == {0, 1}


def test_splits_by_name_from_yaml_alone() -> None:
    parts = {"name": f"{MINE}.Squares"}
    data = build("builtins.dict", train={**parts, "size": 30}, validation={**parts, "size": 10, "start": 30})
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 30, "val": 10}


SOURCES: dict[str, str] = {
    "a Dataset of torchvision": (
        "{name: torchvision.datasets.FakeData, size: 40, num_classes: 2, options: {image_size: [3, 12, 12]}}"
    ),
    "a Dataset of one's own": f"{{name: {MINE}.Squares, form: array, test_fraction: 0.2}}",
    "a LightningDataModule": f"{{name: {MINE}.Module, batch_size: 16}}",
}


@pytest.mark.parametrize("source", SOURCES)
def test_any_data_set_is_trained_on(source: str) -> None:
    text = SOURCES[source]
    backbone = f"{{name: small_cnn, weights: null, options: {{in_channels: {3 if 'Fake' in text else 1}, width: 4}}}}"
    result = fit(load_text(toy_text(data=text, backbone=backbone)))
    assert result.history[-1]["train/loss"] < result.history[0]["train/loss"] * 1.2
    if "Fake" not in text:
        assert "test/accuracy" in result.metrics


def test_a_data_set_of_hugging_face_from_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra text is not installed")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["left", "right"])})
    rows = {"image": [Image.fromarray(_pixels(i)[..., 0]) for i in range(SIZE)], "label": [i % 2 for i in range(SIZE)]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.train_test_split(0.25, seed=0).save_to_disk(tmp_path / "saved")
    data = build("datasets.load_from_disk", dataset_path=str(tmp_path / "saved"))
    assert data.classes == ("left", "right")
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 29, "val": 7, "test": 12}


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no data set": ("torch.nn.Identity", {}, "must give a torch Dataset with len(), a mapping"),
    "a stream": (f"{MINE}.Stream", {}, "but gave Stream"),
    "a batch of three": (f"{MINE}.Squares", {"form": "three"}, "a mapping of columns, but sample/0 is a tuple of 3"),
    "vectors": (f"{MINE}.Squares", {"form": "vectors"}, "but sample/0 is Tensor float32 (8,)"),
    "texts": (f"{MINE}.Squares", {"form": "words"}, "must give images: Pillow's, arrays (H, W[, C])"),
    "normalised": (f"{MINE}.Squares", {"form": "normalised"}, "leave its normalisation out"),
    "random": (f"{MINE}.Squares", {"form": "random"}, "gives another image each time"),
    "objects": (f"{MINE}.Squares", {"form": "objects"}, "data.name: labels of tests.data"),
    "other columns": (f"{MINE}.Squares", {"form": "other columns"}, "data.image_column: samples of"),
    "other masks": (f"{MINE}.Squares", {"form": "small masks"}, "mask of sample/0 is 4x4 pixels, but its image 8x8"),
    "raises": (f"{MINE}.Squares", {"form": "raises"}, "cannot give sample sample/0: OSError: the disk is gone"),
    "empty": (f"{MINE}.Squares", {"size": 0}, "gives no samples"),
    "a wrong argument": (f"{MINE}.Squares", {"fomr": "pil"}, "data.fomr: tests.data.test_handed.Squares has no"),
    "no train split": ("builtins.dict", {"test": {"name": f"{MINE}.Squares"}}, "gives no train split; it gives test"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_data_set_of_the_wrong_shape_is_one_line(case: str) -> None:
    name, options, expected = BAD[case]
    with pytest.raises((ConfigError, DataError)) as caught:
        build(name, **options)
    assert expected in str(caught.value)
    assert "data." in str(caught.value)


def test_tensors_are_a_data_set_too() -> None:
    data = build(f"{MINE}.tensors")
    assert (data.kind, data.classes) == ("multiclass", ("0", "1", "2"))


def tensors() -> TensorDataset:
    """Tensors of three classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (30, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return TensorDataset(images, torch.arange(30) % 3)
