"""Damaged tables, manifests and annotations: read, or refused in one line that names the file or key."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.conftest import cases
from tests.fuzz.mutations import mutated, mutated_text, readable, table_or_error
from tlresearch.base.errors import UserError
from tlresearch.config.schema import DataConfig
from tlresearch.data.annotations import Annotations, read_coco, read_instance_masks, read_voc, to_boxes
from tlresearch.data.audio_tables import list_folder, list_manifest
from tlresearch.data.base import SampleKey
from tlresearch.data.build import build_data
from tlresearch.data.folders import list_files
from tlresearch.data.image_csv import read_image_csv
from tlresearch.data.rows import numbered, read_rows
from tlresearch.data.table import Table
from tlresearch.data.text_files import read_conll, read_text_lines, read_text_table
from tlresearch.modality.image import Preprocessing

PIECES = [
    *(
        ",",
        ";",
        "\t",
        "\n",
        "\r",
        "\r\n",
        '"',
        "'",
        '""',
        '","',
        " ",
        "\x00",
        "\ufeff",
        "\x85",
        "\u2028",
        "\x1c",
        "é",
        "💥",
        "\ud800",
    ),
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        "null",
        "true",
        "NaN",
        "Infinity",
        "1e400",
        "-1",
        "0",
        "9" * 30,
        "9" * 5000,
        "\\ud800",
        "\\u0000",
    ),
    *(
        "[" * 3000,
        '{"a":' * 3000,
        "../",
        "/",
        "/etc/passwd",
        "~",
        "%s",
        "x" * 500,
        "train",
        "val",
        "test",
        "\u0663",
        "²",
    ),
]
CSV = 'text,label,split\n"one, two",a,train\nthree,b,train\nfour,a,val\n"five ""x""",b,val\n'
TSV = "text\tlabel\tsplit\none\ta\ttrain\ntwo\tb\ttrain\nthree\ta\tval\nfour\tb\tval\n"
JSONL = "".join(
    json.dumps({"text": f"text {n}", "label": "ab"[n % 2], "split": ("train", "val")[n // 4]}) + "\n" for n in range(6)
)
CONLL = "-DOCSTART- O\n\nAda B-person\nLovelace I-person\nwrote O\n\nin O\nLondon B-place\n"
TABLES = [("t.csv", CSV), ("t.tsv", TSV), ("t.txt", TSV), ("t.jsonl", JSONL)]


def used(table: Table | None) -> None:
    """A table that was read can be checked, and what is in order of it loaded."""
    if table is None:
        return
    assert len(table.names) == len(table.labels)
    rows = range(len(table.names))
    for row, checked in zip(rows, table.images.check(rows), strict=True):
        if checked.problem is None:
            table.images.load(row, 3)
        else:
            readable(checked.problem)


@given(data=st.data(), split=st.sampled_from([None, "split"]))
def test_tables_of_texts(data: st.DataObject, split: str | None, tmp_path: Path) -> None:
    name, text = data.draw(st.sampled_from(TABLES))
    path = tmp_path / name
    path.write_bytes(data.draw(mutated_text(text, PIECES)))
    used(
        table_or_error(
            lambda: read_text_table(path, {}, text_columns=["text"], label_column="label", split_column=split)
        )
    )


LETTERS = "ab1. ,;\t|\"'\n\r\u00a0\u2028\ufeffé\U0001f4a5"
CELLS = st.lists(
    st.text(alphabet=st.sampled_from("ab01. ,;\t|\"'\n\r\u00a0\u2028\ufeffé\U0001f4a5"), max_size=8),
    min_size=2,
    max_size=4,
)


@given(
    rows=st.lists(CELLS, min_size=1, max_size=6),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_tables_written_by_others_are_read_as_they_were_written(
    rows: list[list[str]], delimiter: str, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    pairs = [(row[0] + "x", row[1] + "y") for row in rows]
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([("text", "label"), *pairs])
    given = read_rows(path, ["text", "label"], delimiter=delimiter).columns
    assert [*zip(given["text"], given["label"], strict=True)] == [
        (text.replace("\r\n", "\n"), label.replace("\r\n", "\n")) for text, label in pairs
    ]


@given(
    content=mutated_text("image;label;note\n0;a;x\n1;b;y\n", PIECES),
    encoding=st.sampled_from([None, "utf-16", "utf-16-le", "cp1252", "latin-1", "rot13", "x" * 50]),
    delimiter=st.sampled_from([None, ";", ",", "", "::", "\n", '"']),
)
def test_named_encodings_and_delimiters(
    content: bytes, encoding: str | None, delimiter: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    rows = table_or_error(lambda: read_rows(path, ["image", "label"], encoding=encoding, delimiter=delimiter))
    if rows is not None:
        table_or_error(lambda: numbered(rows.labels("label")))
        assert len(rows.lines) == len(rows.columns["image"])


NAMES_OF_FILES = st.lists(
    st.lists(
        st.sampled_from(
            [
                *(
                    "a.png",
                    "b.JPG",
                    ".c.png",
                    "._a.png",
                    "d.heic",
                    "e",
                    "f.png.",
                    "Train",
                    "TEST",
                    "trainval",
                    "val",
                    "cat",
                )
            ]
        ),
        min_size=1,
        max_size=4,
    ),
    max_size=8,
)


@given(trees=NAMES_OF_FILES, link=st.booleans())
def test_folders_of_any_files(trees: list[list[str]], link: bool, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for parts in trees:
        path = root.joinpath(*parts)
        with contextlib.suppress(OSError):  # a file where a folder should be, or the other way round
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(path, "PNG")
    if link:
        (root / "up").symlink_to(root, target_is_directory=True)
    files = list_files(root, (".png", ".jpg"))
    every = [path for path in root.rglob("*") if path.is_file()]
    hidden = [path for path in every if any(part.startswith(".") for part in path.relative_to(root).parts)]
    assert len(files.names) + sum(files.passed.values()) <= len(every) + link + len(hidden)
    assert not any(part.startswith(".") for name in files.names for part in name.split("/"))
    table_or_error(lambda: build_data(DataConfig(root=str(root)), preprocessing=SMALL, seed=0))


@given(content=mutated_text("one\ntwo\nthree\n", PIECES))
def test_lines(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt").write_text("x\ny\n")
    used(table_or_error(lambda: read_text_lines(tmp_path, {"a": "a.txt", "b": "b.txt"})))


@given(content=mutated_text(CONLL, PIECES))
def test_columns_of_words(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.conll").write_bytes(content)
    used(table_or_error(lambda: read_conll(tmp_path / "c.conll", {})))


IMAGES = "image,label,split,who\n0.png,a,train,x\n1.png,b;a,train,y\n2.png,a,val,z\nsub/3.png,b,test,w\n"


@given(
    content=mutated_text(IMAGES, PIECES), split=st.sampled_from([None, "split"]), group=st.sampled_from([None, "who"])
)
def test_tables_of_images(content: bytes, split: str | None, group: str | None, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    Image.new("RGB", (3, 4)).save(tmp_path / "0.png")
    used(
        table_or_error(
            lambda: read_image_csv(tmp_path, DataConfig(table="labels.csv", split_column=split, group_column=group))
        )
    )


MANIFESTS = [
    ("m.csv", "path,label,split\na.wav,x,train\nb.wav,y,train\nc.wav,x,val\n"),
    ("m.tsv", "path\tlabel\tsplit\na.wav\tx\ttrain\nb.wav\ty\ttrain\nc.wav\tx\tval\n"),
    ("m.jsonl", '{"path": "a.wav", "label": "x", "split": "train"}\n{"path": "b.wav", "label": "y", "split": "val"}\n'),
]


@given(data=st.data(), split=st.sampled_from([None, "split"]))
def test_manifests(data: st.DataObject, split: str | None, tmp_path: Path) -> None:
    name, text = data.draw(st.sampled_from(MANIFESTS))
    (tmp_path / name).write_bytes(data.draw(mutated_text(text, PIECES)))
    found = table_or_error(
        lambda: list_manifest(tmp_path, name, path_column="path", text_column="label", split_column=split)
    )
    if found is not None:
        assert len(found.names) == len(found.texts)


COCO: dict[str, Any] = {
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "images": [
        {"id": 1, "file_name": "0.png", "height": 8, "width": 8},
        {"id": 2, "file_name": "1.png", "height": 8, "width": 8},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 4], "segmentation": [[1, 1, 4, 1, 4, 5]]},
        {
            "id": 2,
            "image_id": 2,
            "category_id": 2,
            "bbox": [0, 0, 8, 8],
            "segmentation": {"size": [8, 8], "counts": [3, 61]},
        },
        {"id": 3, "image_id": 2, "category_id": 2, "bbox": [0, 0, 8, 8], "iscrowd": 1, "segmentation": {}},
    ],
}
ODD = st.sampled_from(
    [None, True, 0, -1, 3, 0.5, float("nan"), float("inf"), 10**400, "", "a", "\x00", "1", [], [1], [[]], {}, {"a": 1}]
)


def paths(tree: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is a value in nested lists and mappings."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [before, *(path for key, value in items for path in paths(value, (*before, key)))]


def replaced(tree: Any, path: Sequence[Any], value: Any) -> Any:
    if not path:
        return value
    whole = json.loads(json.dumps(tree))
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return whole


def annotated(found: Annotations | None) -> None:
    """What was read can be made boxes of, and its masks drawn."""
    if found is None:
        return
    assert len(found.names) == len(found.objects)
    for number, objects in enumerate(found.objects):
        boxes, _ = to_boxes(objects, found.classes)
        assert boxes.isfinite().all()
        if found.instances is not None:
            try:
                found.instances.planes(number)
            except ValueError as error:
                readable(str(error))
            found.instances.digest(number)
    for problem in found.problems.values():
        readable(problem)


@given(path=st.sampled_from(paths(COCO)), value=ODD | st.just(...))
def test_values_of_coco(path: tuple[Any, ...], value: Any, tmp_path: Path) -> None:
    if value is ... and not path:
        return
    (tmp_path / "a.json").write_text(json.dumps(replaced(COCO, path, value)))
    annotated(table_or_error(lambda: read_coco(tmp_path, "a.json")))


@given(content=mutated_text(json.dumps(COCO), PIECES))
def test_text_of_coco(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    annotated(table_or_error(lambda: read_coco(tmp_path, "a.json")))


VOC = """<annotation><filename>0.jpg</filename><size><width>8</width><height>8</height></size><object>
<difficult>1</difficult><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin>
<xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>"""
XML = [
    *PIECES,
    "<",
    ">",
    "</",
    "/>",
    "&",
    "&lt;",
    "&#0;",
    "&x;",
    "<!--",
    "<![CDATA[",
    "nan",
    "inf",
    "1_0",
    "<object>",
    "<!DOCTYPE a>",
]


def voc(root: Path, content: bytes) -> Path:
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir(exist_ok=True)
    (root / "Annotations" / "0.xml").write_bytes(content)
    return root


@given(content=mutated_text(VOC, XML))
def test_text_of_voc(content: bytes, tmp_path: Path) -> None:
    annotated(table_or_error(lambda: read_voc(voc(tmp_path, content))))


def test_entities_of_xml_neither_explode_nor_read_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("canary")
    lines = ['<!ENTITY l0 "lol">', *(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 30))]
    laughs = f"<!DOCTYPE a [{''.join(lines)}]>{VOC.replace('cat', '&l29;')}"
    outside = f'<!DOCTYPE a [<!ENTITY x SYSTEM "{(tmp_path / "secret").as_uri()}">]>{VOC.replace("cat", "&x;")}'
    for text in (laughs, outside):
        found = read_voc(voc(tmp_path, text.encode()))
        assert list(found.problems) == ["JPEGImages/0.jpg"]
        annotated(found)
        assert "canary" not in repr(found)


@given(
    numbers=st.lists(st.integers(0, 65535), min_size=4, max_size=4),
    mode=st.sampled_from(["L", "I;16", "RGB", "P", "1"]),
)
def test_masks_of_objects(numbers: list[int], mode: str, tmp_path: Path) -> None:
    for folder in ("PNGImages", "PedMasks"):
        (tmp_path / folder).mkdir(exist_ok=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "PNGImages" / "0.png")
    grey = Image.fromarray(np.array(numbers, dtype=np.uint16).reshape(2, 2))
    (grey if mode == "I;16" else grey.convert("L").convert(mode)).save(tmp_path / "PedMasks" / "0_mask.png")
    annotated(table_or_error(lambda: read_instance_masks(tmp_path)))


def test_a_photo_as_mask_of_objects_does_not_take_all_memory(tmp_path: Path) -> None:
    for folder in ("PNGImages", "PedMasks"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (256, 256)).save(tmp_path / "PNGImages" / "0.png")
    Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256)).save(tmp_path / "PedMasks" / "0_mask.png")
    found = read_instance_masks(tmp_path)
    assert "different numbers" in found.problems["PNGImages/0.png"]


LEGENDS = ['["a", "b"]', '{"a": 0, "b": 255}', '{"a": [0, 0, 0], "b": [255, 0, 0]}']


def masks_of(root: Path) -> Path:
    """A folder of images with masks."""
    if (root / "images").exists():
        return root
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for number in range(6):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / "images" / f"{number}.png")
        Image.fromarray(np.eye(8, dtype=np.uint8) * (number % 2)).save(root / "masks" / f"{number}.png")
    return root


SMALL = Preprocessing(crop=8, resize=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@given(data=st.data())
def test_legends(data: st.DataObject, tmp_path: Path) -> None:
    root = masks_of(tmp_path)
    (root / "classes.json").write_bytes(data.draw(mutated_text(data.draw(st.sampled_from(LEGENDS)), PIECES)))
    table_or_error(lambda: build_data(DataConfig(name="masks", root=str(root)), preprocessing=SMALL, seed=0))


NAMES = [
    "images",
    "masks",
    "mask_suffix",
    "classes",
    "ignore",
    "fit",
    "window",
    "axis",
    "slices",
    "annotations",
    "targets",
    "name",
    "pair_pattern",
    "difficult",
]
VALUES = st.recursive(
    ODD | st.sampled_from(["images", "masks", "boxes", "letterbox", 255, 256]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "train", "val", 1]), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(
    source=st.sampled_from(["masks", "image_folder", "coco", "voc", "instance_masks"]),
    options=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=2),
)
@example(source="masks", options={"images": "../" * 40 + "etc"})
def test_options_of_sources(source: str, options: dict[str, Any], tmp_path: Path) -> None:
    config = DataConfig(name=source, root=str(masks_of(tmp_path)), options=options)
    table_or_error(lambda: build_data(config, preprocessing=SMALL, seed=0))


@given(
    options=st.dictionaries(
        st.sampled_from(["pattern", "test", "val"]),
        VALUES | st.sampled_from(["(", "(?P<label>a)", "(?P<label>(a+)+$)"]),
        max_size=3,
    )
)
def test_options_of_sounds(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x").mkdir(exist_ok=True)
    (tmp_path / "x" / "a.wav").write_bytes(b"")
    table_or_error(lambda: list_folder(tmp_path, **options))


def broken(root: Path) -> Callable[..., Any]:
    """Builds a folder of images with a broken one."""
    for cls in ("cat", "dog"):
        for number in range(4):
            (root / cls).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, len(cls), ord(cls[0]))).save(root / cls / f"{number}.png")
    (root / "cat" / "bad.png").write_bytes((root / "cat" / "0.png").read_bytes()[:40])
    (root / "cat" / "wrong.jpg").write_text("no image")
    return lambda **fields: build_data(DataConfig(root=str(root), **fields), preprocessing=SMALL, seed=0)


def test_what_is_skipped_is_counted_and_nothing_is_left_behind(tmp_path: Path, home: Path) -> None:
    build = broken(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"unreadable images \(2\): cat/bad\.png.*cat/wrong\.jpg"):
        build()
    data = build(on_error="skip")
    assert sorted(data.skipped) == ["cat/bad.png", "cat/wrong.jpg"]
    assert sum(map(len, data.splits.values())) == 8
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path not in before]
    assert all(path.is_relative_to(home / "cache") and path.suffix == ".json" for path in left)


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")  # of PIL
@cases(10)
@given(content=mutated(picture()))
def test_a_folder_with_a_damaged_image(content: bytes, tmp_path: Path) -> None:
    build = broken(tmp_path / "data")
    (tmp_path / "data" / "dog" / "0.png").write_bytes(content)
    data = build(on_error="skip")
    assert {"cat/bad.png", "cat/wrong.jpg"} <= set(data.skipped) <= {"cat/bad.png", "cat/wrong.jpg", "dog/0.png"}
    assert sum(map(len, data.splits.values())) == 10 - len(data.skipped)
    for split in data.splits.values():
        for index in range(len(split)):
            assert split[SampleKey(index, 0)][0].shape == (3, 8, 8)


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "1e999", '"\\ud800"'])
def test_json_that_is_deep_or_odd(deep: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(f'{{"text": {deep}, "path": {deep}, "label": "a"}}\n')
    (tmp_path / "a.json").write_text(deep)
    path = tmp_path / "m.jsonl"
    used(
        table_or_error(
            lambda: read_text_table(path, {}, text_columns=["text"], label_column="label", split_column=None)
        )
    )
    table_or_error(
        lambda: list_manifest(tmp_path, "m.jsonl", path_column="path", text_column="label", split_column=None)
    )
    annotated(table_or_error(lambda: read_coco(tmp_path, "a.json")))
    (masks_of(tmp_path) / "classes.json").write_text(deep)
    table_or_error(lambda: build_data(DataConfig(name="masks", root=str(tmp_path)), preprocessing=SMALL, seed=0))
