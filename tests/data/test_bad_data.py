"""Every kind of broken data set gives one clear error that names the culprit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlresearch.base.errors import DataError, UserError
from tlresearch.data.base import Data
from tlresearch.modality.image import Preprocessing

Fields = dict[str, Any]
Case = Callable[[Path], Fields]


def save(path: Path, size: tuple[int, int] = (9, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def pets(root: Path, splits: tuple[str, ...] = ("",), count: int = 4) -> Path:
    for split in splits:
        for cls in ("cat", "dog"):
            for number in range(count):
                save(root / split / cls / f"{number}.png")
    return root


def table(root: Path, text: str, images: int = 4) -> Path:
    for number in range(images):
        save(root / f"{number}.png")
    (root / "labels.csv").write_text(text)
    return root


def arrays(root: Path, **changed: Any) -> Fields:
    """An npz file with something changed; `None` leaves a key out."""
    content: dict[str, Any] = {}
    for split in ("train", "val"):
        content[f"{split}_images"] = np.zeros((4, 8, 8), np.uint8)
        content[f"{split}_labels"] = np.array([[0], [1], [0], [1]])
    content.update(changed)
    np.savez(root / "x.npz", **{key: value for key, value in content.items() if value is not None})
    return {"name": "npz", "root": str(root / "x.npz")}


def csv(root: Path, text: str, **fields: Any) -> Fields:
    return {"name": "image_csv", "root": str(table(root, text)), **fields}


def missing_root(root: Path) -> Fields:
    return {"root": str(root / "nowhere")}


def no_root(root: Path) -> Fields:
    return {}


def root_is_a_file(root: Path) -> Fields:
    save(root / "photo.png")
    return {"root": str(root / "photo.png")}


def no_class_folders(root: Path) -> Fields:
    save(root / "photo.png")
    return {"root": str(root)}


def no_class_folders_in_train(root: Path) -> Fields:
    save(root / "train" / "photo.png")
    return {"root": str(root)}


def no_train_folder(root: Path) -> Fields:
    return {"root": str(pets(root, ("val",)))}


def empty_class_folder(root: Path) -> Fields:
    (pets(root) / "mouse").mkdir()
    return {"root": str(root)}


def class_without_known_files(root: Path) -> Fields:
    pets(root, ("train", "val"))
    (root / "train" / "mouse").mkdir()
    (root / "train" / "mouse" / "a.txt").touch()
    save(root / "val" / "mouse" / "a.png")
    return {"root": str(root)}


def class_missing_from_val(root: Path) -> Fields:
    save(pets(root, ("train", "val")) / "train" / "mouse" / "a.png")
    return {"root": str(root)}


def class_missing_from_train(root: Path) -> Fields:
    save(pets(root, ("train", "test")) / "test" / "mouse" / "a.png")
    return {"root": str(root)}


def single_class(root: Path) -> Fields:
    save(root / "cat" / "a.png")
    save(root / "cat" / "b.png")
    return {"root": str(root)}


def single_sample_of_a_class(root: Path) -> Fields:
    save(pets(root) / "mouse" / "a.png")
    return {"root": str(root)}


def too_few_labels_per_class(root: Path) -> Fields:
    return {"root": str(pets(root, ("train", "val"))), "labels_per_class": 5}


def unknown_class(root: Path) -> Fields:
    return {"root": str(pets(root)), "classes": ["cat", "dgo"]}


def class_named_twice(root: Path) -> Fields:
    return {"root": str(pets(root)), "classes": ["cat", "dog", "cat"]}


def unknown_source(root: Path) -> Fields:
    return {"name": "image_foldr", "root": str(root)}


def unknown_dotted_path(root: Path) -> Fields:
    return {"name": "no_such_module.source"}


def zero_byte_image(root: Path) -> Fields:
    (pets(root) / "cat" / "2.png").write_bytes(b"")
    return {"root": str(root)}


def truncated_jpeg(root: Path) -> Fields:
    save(pets(root) / "dog" / "cut.jpg", (64, 64))
    path = root / "dog" / "cut.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    return {"root": str(root)}


def truncated_tiff(root: Path) -> Fields:
    save(pets(root) / "dog" / "cut.tif", (64, 64))
    path = root / "dog" / "cut.tif"
    path.write_bytes(path.read_bytes()[:500])
    return {"root": str(root)}


def text_called_png(root: Path) -> Fields:
    (pets(root) / "dog" / "note.png").write_text("<html>404</html>")
    return {"root": str(root)}


def every_image_broken(root: Path) -> Fields:
    for path in pets(root).rglob("*.png"):
        path.write_bytes(b"x")
    return {"root": str(root), "on_error": "skip"}


def sizes_that_differ(root: Path) -> Fields:
    save(pets(root) / "dog" / "large.png", (20, 30))
    return {"root": str(root), "as_is": True}


def no_table(root: Path) -> Fields:
    return {"name": "image_csv", "root": str(root)}


def empty_table(root: Path) -> Fields:
    return csv(root, "image,label\n")


def no_label_column(root: Path) -> Fields:
    return csv(root, "image,lable\n0.png,a\n")


def no_split_column(root: Path) -> Fields:
    return csv(root, "image,label\n0.png,a\n", split_column="fold")


def table_not_utf8(root: Path) -> Fields:
    fields = csv(root, "")
    (root / "labels.csv").write_bytes(b"image,label\n0.png,caf\xe9\n")
    return fields


def table_with_missing_files(root: Path) -> Fields:
    return csv(root, "image,label\n0.png,a\n1.png,b\n2.png,a\ngone.png,b\n")


def image_listed_twice(root: Path) -> Fields:
    return csv(root, "image,label\n0.png,a\n1.png,b\n0.png,b\n")


def row_without_label(root: Path) -> Fields:
    return csv(root, "image,label\n0.png,a\n1.png,\n")


def unknown_split(root: Path) -> Fields:
    return csv(root, "image,label,split\n0.png,a,train\n1.png,b,holdout\n", split_column="split")


def empty_train_split(root: Path) -> Fields:
    return csv(root, "image,label,split\n0.png,a,val\n1.png,b,val\n", split_column="split")


def npz_without_labels(root: Path) -> Fields:
    return arrays(root, val_labels=None)


def npz_without_train(root: Path) -> Fields:
    np.savez(root / "x.npz", images=np.zeros(3))
    return {"name": "npz", "root": str(root / "x.npz")}


def npz_with_objects(root: Path) -> Fields:
    return arrays(root, train_labels=np.array([0, "1", None, 1], dtype=object))


def npz_lengths_differ(root: Path) -> Fields:
    return arrays(root, train_labels=np.array([0, 1, 0]))


def npz_is_not_one(root: Path) -> Fields:
    (root / "x.npz").write_bytes(b"PK no")
    return {"name": "npz", "root": str(root / "x.npz")}


def npz_negative_label(root: Path) -> Fields:
    return arrays(root, train_labels=np.array([0, 1, -1, 1]))


def npz_fractional_label(root: Path) -> Fields:
    return arrays(root, train_labels=np.array([0, 1, 0.5, 1]))


def npz_label_beyond_its_names(root: Path) -> Fields:
    return arrays(root, train_labels=np.array([0, 1, 7, 1]), classes=np.array(["a", "b"]))


def npz_huge_label(root: Path) -> Fields:
    return arrays(root, train_labels=np.array([0, 1, 10**9, 1]))


def npz_columns_not_01(root: Path) -> Fields:
    return arrays(root, train_labels=np.array([[0, 1], [1, 2], [0, 1], [1, 1]]))


def npz_float_images(root: Path) -> Fields:
    return arrays(root, train_images=np.zeros((4, 8, 8)), val_images=np.zeros((4, 8, 8)))


def npz_sizes_differ(root: Path) -> Fields:
    return arrays(root, val_images=np.zeros((4, 9, 9), np.uint8))


def npz_class_missing_from_val(root: Path) -> Fields:
    return arrays(root, val_labels=np.zeros(4, np.int64))


def npz_folder_is_empty(root: Path) -> Fields:
    return {"name": "npz", "root": str(root)}


def unknown_torchvision(root: Path) -> Fields:
    return {"name": "torchvision", "dataset": "CIFAR-10", "root": str(root)}


def torchvision_unnamed(root: Path) -> Fields:
    return {"name": "torchvision", "root": str(root)}


def torchvision_not_there(root: Path) -> Fields:
    return {"name": "torchvision", "dataset": "CIFAR10", "root": str(root), "download": False}


def torchvision_without_classes(root: Path) -> Fields:
    (root / "frames").mkdir()
    return {"name": "torchvision", "dataset": "ImageNet", "root": str(root), "download": False}


CASES: dict[Case, tuple[str, ...]] = {
    missing_root: ("data.root", "nowhere"),
    no_root: ("data.root is not set",),
    root_is_a_file: ("photo.png is a file",),
    no_class_folders: ("holds no class folders", "<root>/<class>/<image>"),
    no_class_folders_in_train: ("train holds no class folders",),
    no_train_folder: ("holds val but no train folder",),
    empty_class_folder: ("without an image", "mouse"),
    class_without_known_files: ("without an image", "train/mouse", ".png"),
    class_missing_from_val: ("missing from a split", "val has no sample of 'mouse'"),
    class_missing_from_train: ("train has no folder 'mouse'",),
    single_class: ("single class (cat)",),
    single_sample_of_a_class: ("single training sample", "'mouse'"),
    too_few_labels_per_class: ("labels_per_class=5", "'cat' has 4; 'dog' has 4"),
    unknown_class: ("data.classes", "'dgo' (did you mean 'dog'?)", "cat, dog"),
    class_named_twice: ("named twice: cat",),
    unknown_source: ("'image_foldr' (did you mean 'image_folder'?)", "npz"),
    unknown_dotted_path: ("there is no module 'no_such_module'", "PYTHONPATH"),
    zero_byte_image: ("unreadable images (1)", "cat/2.png", "0 bytes", "on_error=skip"),
    truncated_jpeg: ("dog/cut.jpg", "truncated"),
    truncated_tiff: ("dog/cut.tif",),
    text_called_png: ("dog/note.png: not an image",),
    every_image_broken: ("none of 8 images can be read, such as cat/", "not an image"),
    sizes_that_differ: ("differ in size", "dog/large.png is 30x20", "data.image_size"),
    no_table: ("data.table", "labels.csv does not exist"),
    empty_table: ("labels.csv has no rows",),
    no_label_column: ("no column 'label' (did you mean 'lable'?)", "'image', 'lable'"),
    no_split_column: ("no column 'fold'",),
    table_not_utf8: ("labels.csv, line 2: not a text in UTF-8", "data.encoding"),
    table_with_missing_files: ("gone.png: the file does not exist",),
    image_listed_twice: ("listed more than once", "0.png (2 rows: lines 2, 4)", "';'"),
    row_without_label: ("rows with nothing in column 'label'", "line 3"),
    unknown_split: ("unknown splits", "line 3 has 'holdout'", "train, val or test"),
    empty_train_split: ("train split is empty",),
    npz_without_labels: ("x.npz lacks val_labels", "train_images"),
    npz_without_train: ("lacks train_images, train_labels", "it holds images"),
    npz_with_objects: ("x.npz holds object arrays", "integer labels"),
    npz_lengths_differ: ("train_images has 4 samples but train_labels has 3",),
    npz_is_not_one: ("x.npz is not a readable npz file",),
    npz_negative_label: ("outside 0 to 1", "train/2 has -1"),
    npz_fractional_label: ("train_labels: labels that are not integers", "row 2 has 0.5"),
    npz_label_beyond_its_names: ("outside 0 to 1", "train/2 has 7"),
    npz_huge_label: ("largest label is 1000000000",),
    npz_columns_not_01: ("train_labels", "not 0 or 1", "row 1 has [1 2]"),
    npz_float_images: ("images must be uint8", "float64"),
    npz_sizes_differ: ("differ in shape", "val (9, 9)"),
    npz_class_missing_from_val: ("val has no sample of '1'",),
    npz_folder_is_empty: ("holds 0 npz files",),
    unknown_torchvision: ("no 'CIFAR-10' (did you mean 'CIFAR10'?)",),
    torchvision_unnamed: ("data.dataset is not set",),
    torchvision_not_there: ("CIFAR10 is not there", "data.download is off", "by hand"),
    torchvision_without_classes: ("ImageNet", "is not there"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_error_names_the_culprit(case: Case, tmp_path: Path, build: Callable[..., Data]) -> None:
    fields = case(tmp_path)
    if fields.pop("as_is", False):
        fields["preprocessing"] = Preprocessing(crop=None, resize=None)
    with pytest.raises(UserError) as caught:
        build(**fields)
    text = str(caught.value)
    assert all(part in text for part in CASES[case]), text
    assert "\n" not in text


def test_a_failed_download_is_a_clear_error(
    tmp_path: Path, build: Callable[..., Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.error

    from torchvision.datasets import CIFAR10

    def offline(self: CIFAR10) -> None:
        (Path(self.root) / self.base_folder).mkdir(parents=True)  # as torchvision leaves it
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", offline)
    with pytest.raises(DataError, match=r"CIFAR10 could not be downloaded: .*no route to host.*by hand"):
        build(tmp_path, name="torchvision", dataset="CIFAR10")
    assert list(tmp_path.iterdir()) == []


def test_many_problems_are_listed_ten_at_a_time(tmp_path: Path, build: Callable[..., Data]) -> None:
    root = pets(tmp_path, count=8)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"unreadable images \(16\).*and 6 more\."):
        build(root)


def test_a_label_missing_from_val_is_only_a_warning_with_several_labels(
    tmp_path: Path, build: Callable[..., Data], caplog: pytest.LogCaptureFixture
) -> None:
    both = np.array([[0, 1], [1, 0], [0, 1], [1, 1]])
    fields = arrays(tmp_path, train_labels=both, val_labels=both * [1, 0])
    assert build(**fields).kind == "multilabel"
    assert "no sample of the val split has the label '1'" in caplog.text
