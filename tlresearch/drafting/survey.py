"""What lies in a folder: which source reads it, for which task. `drafting.columns` looks into its tables.

A layout is only proposed here. The source itself then reads the folder, so that what is said of the samples is what a
run will see, and what is wrong is said in that source's words.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tlresearch.base.errors import DataError, UserError
from tlresearch.config.schema import DataConfig
from tlresearch.data.build import SOURCES
from tlresearch.data.files import PICTURES
from tlresearch.data.folders import list_files, summary
from tlresearch.data.rows import ENDINGS as TABLES
from tlresearch.data.rows import read_text
from tlresearch.data.table import SPLITS, Table, split_of
from tlresearch.drafting.columns import Learnt, Sheet, read_sheet
from tlresearch.modality.sound import EXTENSIONS as SOUNDS
from tlresearch.modality.sound import AudioPreprocessing

Kind = Literal["image", "text", "sound"]
Task = Literal["classification", "regression", "tokens", "segmentation", "detection", "instances"]

ARRAYS, TAGGED = (".npz",), (".conll", ".iob", ".bio", ".annotated")
_IMAGES = ("images", "image", "imgs", "img", "jpegimages", "pngimages", "photos", "scans")
_MASKS = ("masks", "mask", "labels", "label", "segmentation", "segmentations", "annotations", "gt", "groundtruth")
_TAG = re.compile(r"O|[BIESLU]-\S+")
_LINES = 10  # texts that make a file one of texts
_LOOKED_AT = 16  # samples whose size is measured


@dataclass(frozen=True)
class Layout:
    """Which source reads a folder.

    Attributes:
        kind: What the samples are.
        task: What is learnt from them.
        data: The `data` section without its root.
        below: Place below the folder, or beside it, that is the root; empty is the folder itself.
    """

    kind: Kind
    task: Task
    data: Mapping[str, Any]
    below: str = ""


@dataclass(frozen=True)
class Survey:
    """A folder that was looked at.

    Attributes:
        root: What `data.root` names.
        layout: Which source reads it.
        table: Its samples as that source reads them.
        sizes: Height and width of some of them; rate and length of sounds.
    """

    root: Path
    layout: Layout
    table: Table
    sizes: Sequence[tuple[int, int]] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each class; empty where a sample has no class of its own."""
        if self.table.kind != "multiclass" or self.table.targets is not None:
            return {}
        if self.table.multilabel:
            return dict(zip(self.table.classes, map(int, self.table.labels.sum(dim=0)), strict=True))
        numbers = Counter(self.table.labels.tolist())
        return {name: numbers[number] for number, name in enumerate(self.table.classes)}

    @property
    def splits(self) -> Counter[str]:
        """Samples of each split that the folder gives, in the order of the splits."""
        counts = Counter(self.table.splits or ())
        return Counter({split: counts[split] for split in SPLITS if counts[split]})

    @property
    def to_learn_from(self) -> int:
        """Samples that are not set apart for validation or test by the folder itself."""
        return self.splits["train"] or len(self.table.names)

    def described(self) -> str:
        """One line: samples, classes, splits, and what was passed over."""
        counts = self.counts
        several = "several of " if self.table.multilabel else ""
        listed = ", ".join(f"{name} {count}" if count else name for name, count in list(counts.items())[:6])
        classes = self.table.classes
        if not counts:
            listed = ", ".join(classes[:6])
        more = f", and {len(classes) - 6} more" if len(classes) > 6 else ""
        what = f"{several}{len(classes)} classes ({listed}{more})"
        if self.layout.task == "regression":
            what = f"numbers: {', '.join(classes)}"
        text = f"{len(self.table.names)} {self.table.samples}, {what}"
        splits = ", ".join(f"{split} {count}" for split, count in self.splits.items())
        text += f"; splits as given: {splits}" if splits else "; no splits are given"
        return f"{text}; {summary(self.table.passed)}" if self.table.passed else text


@dataclass(frozen=True)
class _Contents:
    """The files below a folder by what they can be, as paths relative to it; `single` where one file was named."""

    root: Path
    pictures: list[str]
    sounds: list[str]
    tables: list[str]
    others: dict[str, list[str]]
    single: bool
    passed: Counter[str] = field(default_factory=Counter)

    def folders(self, names: Sequence[str]) -> list[str]:
        """Folders that hold some of the files directly, sorted."""
        return sorted({name.rpartition("/")[0] for name in names})


def look(place: Path) -> Survey:
    """Looks at a folder, or at one table or file of arrays.

    Raises:
        UserError: If nothing there can be learnt from; the text says what is there and what is expected.
    """
    contents = _contents(place)
    ways = (_listed_files, _tagged, _texts, _arrays) if contents.single else WAYS
    layout = next((layout for way in ways if (layout := way(contents)) is not None), None)
    if layout is None:
        raise DataError(_nothing(place, contents))
    root = (contents.root / layout.below).resolve() if layout.below else contents.root
    source = SOURCES[str(layout.data["name"])]
    table = source.read(DataConfig(root=str(root), **layout.data), AudioPreprocessing())
    assert isinstance(table, Table)  # only code of the user's own may give anything else
    if layout.task in ("classification", "tokens") and len(table.classes) < 2:
        one = table.classes[0] if table.classes else "none"
        raise DataError(f"{place}: two classes are needed, but all {len(table.names)} {table.samples} are '{one}'")
    step = max(1, len(table.names) // _LOOKED_AT)
    rows = range(0, len(table.names), step) if layout.kind != "text" else range(0)
    sizes = [(seen.height, seen.width) for seen in table.images.check(rows) if seen.problem is None]
    return Survey(root, layout, table, sizes)


def _contents(place: Path) -> _Contents:
    """Sorts the files of a folder; a single file is looked at in its folder, without the other tables."""
    if not place.exists():
        raise UserError(f"there is no folder or file {place}")
    root = place if place.is_dir() else place.parent
    others = (*ARRAYS, *TAGGED, ".json", ".xml")
    listed = list_files(root, (*PICTURES, *SOUNDS, *TABLES, *others))
    names = sorted(listed.names)
    if place.is_file():
        if not place.name.lower().endswith((*TABLES, *ARRAYS, *TAGGED)):
            raise UserError(f"{place}: is no folder, no table ({' '.join(TABLES)}) and no file of arrays (.npz)")
        names = [n for n in names if n == place.name or not n.lower().endswith((*TABLES, *others))]

    def ending(*endings: str) -> list[str]:
        return [name for name in names if name.lower().endswith(endings)]

    kinds = {kind: ending(*((kind,) if isinstance(kind, str) else kind)) for kind in (*others,)}
    return _Contents(root, ending(*PICTURES), ending(*SOUNDS), ending(*TABLES), kinds, place.is_file(), listed.passed)


def _nothing(place: Path, contents: _Contents) -> str:
    """Why there is no layout, in one line."""
    forms = (
        "one folder of images or sounds per class, a table of texts or of files with a label each, images with masks, "
        "or images with boxes (VOC, COCO)"
    )
    if (place / "experiments").is_dir() or any(name.endswith(".yaml") for name in contents.passed):
        yaml = sorted(path.name for path in place.glob("*.yaml"))
        if yaml:
            return f"{place}: holds experiments or sweeps ({', '.join(yaml[:3])}, …), not data: name one of them"
    count = len(contents.pictures) + len(contents.sounds) + len(contents.tables)
    if not count and not contents.passed:
        return f"{place}: is empty; expected {forms}"
    if contents.pictures or contents.sounds:
        what = "images" if contents.pictures else "sounds"
        many = len(contents.pictures or contents.sounds)
        return f"{place}: {many} {what} but no labels: put them into one folder per class, or add a table"
    if contents.tables:
        return (
            f"{place}: {', '.join(contents.tables[:5])}: no table with a column of texts, or of files that are here, "
            "and one of labels; one of several tables is named by its path"
        )
    passed = f" ({summary(contents.passed)})" if contents.passed else ""
    return f"{place}: nothing to learn from{passed}; expected {forms}"


def _voc(contents: _Contents) -> Layout | None:
    folders = {Path(name).parent.name: name for name in contents.others[".xml"] if name.count("/") == 1}
    pictures = [folder for folder in contents.folders(contents.pictures) if folder and "/" not in folder]
    if len(folders) != 1 or not pictures:
        return None
    options = {"annotations": next(iter(folders)), "images": max(pictures, key=_count(contents.pictures))}
    usual = {"annotations": "Annotations", "images": "JPEGImages"}
    options = {key: value for key, value in options.items() if value != usual[key]}
    return Layout("image", "detection", {"name": "voc", **({"options": options} if options else {})})


def _coco(contents: _Contents) -> Layout | None:
    """COCO's JSON, one file or one per split."""
    files = {}
    for name in contents.others[".json"]:
        try:
            content = json.loads(read_text(contents.root / name))
        except (ValueError, DataError, RecursionError):
            continue
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            files[name] = [str(entry.get("file_name")) for entry in content["images"][:5] if isinstance(entry, dict)]
    if not files:
        return None
    if all(Path(name).name == "_annotations.coco.json" for name in files):
        return Layout("image", "detection", {"name": "coco"})
    by_split = {_split_in(name): name for name in files}
    if len(by_split) < len(files):
        raise DataError(
            f"{contents.root}: {len(files)} files of COCO ({', '.join(sorted(files)[:4])}), and which is train, val or "
            "test isn't in their names: leave one, or write data.options.annotations"
        )
    images = {split: _folder_of(contents.pictures, files[name]) for split, name in by_split.items()}
    single = len(by_split) == 1
    options: dict[str, Any] = {
        "annotations": next(iter(by_split.values())) if single else by_split,
        "images": next(iter(images.values())) if single else images,
    }
    return Layout("image", "detection", {"name": "coco", "options": options})


def _folder_of(pictures: Sequence[str], names: Sequence[str]) -> str:
    """The folder from which the first of some names leads to a picture."""
    for picture in pictures:
        for name in names:
            if picture == name or picture.endswith(f"/{name}"):
                return picture[: len(picture) - len(name)].rstrip("/") or "."
    return "."


def _split_in(name: str) -> str:
    """The split that a word of a file's name, or its folder, means; ``train`` if none does."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((str(split) for word in words if (split := split_of(word)) is not None), "train")


def _instances(contents: _Contents) -> Layout | None:
    if {"PNGImages", "PedMasks"} <= set(contents.folders(contents.pictures)):
        return Layout("image", "instances", {"name": "instance_masks", "options": {"targets": "masks"}})
    return None


def _segmentation(contents: _Contents) -> Layout | None:
    """Two folders side by side whose names say images and masks, also below train, val and test."""
    above: dict[str, set[str]] = {}
    for folder in contents.folders(contents.pictures):
        for depth, part in enumerate(parts := folder.split("/")):
            above.setdefault("/".join(parts[:depth]), set()).add(part)
    for beside in above.values():
        images = [name for name in sorted(beside) if name.lower() in _IMAGES]
        masks = [name for name in sorted(beside) if name.lower() in _MASKS]
        if len(images) == len(masks) == 1:
            options: dict[str, Any] = {"images": images[0], "masks": masks[0], **_suffix(contents, images[0], masks[0])}
            return Layout("image", "segmentation", {"name": "masks", "options": options})
    return None


def _suffix(contents: _Contents, images: str, masks: str) -> dict[str, str]:
    """What all masks have behind the names of their images, if it is the same."""
    stems = [Path(name).stem for name in contents.pictures if images in Path(name).parts]
    drawn = sorted(Path(name).stem for name in contents.pictures if masks in Path(name).parts)
    behind = {mask.removeprefix(stem) for stem in stems[:50] for mask in drawn if mask.startswith(stem)}
    common = [suffix for suffix in behind if suffix and all(f"{stem}{suffix}" in drawn for stem in stems)]
    return {"mask_suffix": common[0]} if common and not set(stems) <= set(drawn) else {}


def _listed_files(contents: _Contents) -> Layout | None:
    """A table with a column of pictures or sounds that are here, and one of labels."""
    sheets = [sheet for name in contents.tables if (sheet := read_sheet(contents.root / name)) is not None]
    for sheet in sheets:
        ways: tuple[tuple[list[str], Kind], ...] = ((contents.pictures, "image"), (contents.sounds, "sound"))
        for files, kind in ways:
            for folder in ["", *contents.folders(files)]:
                column = sheet.column_of_files({name for name in files if name.startswith(folder)}, folder)
                learnt = sheet.learnt(column) if column else None
                if column and learnt:
                    return _manifest(contents, sheet, kind, folder, column, learnt)
    return None


def _manifest(contents: _Contents, sheet: Sheet, kind: Kind, folder: str, column: str, learnt: Learnt) -> Layout:
    place = sheet.path.relative_to(contents.root).as_posix()
    upward = "/".join([".."] * (folder.count("/") + 1)) if folder else ""
    data: dict[str, Any] = {"table": f"{upward}/{place}".lstrip("/"), **learnt.data}
    if (split := sheet.split_column()) is not None:
        data["split_column"] = split
    if kind == "sound":
        data |= {"name": "audio_manifest", "options": {"path_column": column}}
    else:
        data |= {"name": "image_csv", "image_column": column}
        data |= {"group_column": group} if (group := sheet.group_column()) is not None else {}
    return Layout(kind, learnt.task, data, folder)


def _texts(contents: _Contents) -> Layout | None:
    """Tables of texts: one, or one for each split."""
    if (contents.pictures or contents.sounds) and not contents.single:
        return None
    tables = [name for name in contents.tables if "/" not in name]
    by_split = {split: name for name in tables if (split := split_of(Path(name).stem)) is not None}
    names = [by_split["train"]] if "train" in by_split else tables
    sheets = [sheet for name in names if (sheet := read_sheet(contents.root / name)) is not None]
    fitting = [
        (sheet, text, learnt) for sheet in sheets if (text := sheet.text_column()) and (learnt := sheet.learnt(text))
    ]
    if len(fitting) != 1:
        return None
    sheet, text, learnt = fitting[0]
    data: dict[str, Any] = {"name": "text_table", "text_column": text, **learnt.data, **sheet.reading}
    if "train" not in by_split and (split_column := sheet.split_column()) is not None:
        data["split_column"] = split_column
    return Layout("text", learnt.task, data, "" if "train" in by_split else sheet.path.name)


def _lines(contents: _Contents) -> Layout | None:
    """Plain texts, one a line, in a file per class: ``pos.txt`` and ``neg.txt``."""
    files = {Path(name).stem: name for name in contents.tables if name.endswith(".txt") and "/" not in name}
    texts = {label: read_text(contents.root / name).split("\n") for label, name in files.items()}
    if len(files) < 2 or contents.pictures or contents.sounds or any(split_of(label) for label in files):
        return None
    if any(len(lines) < _LINES or read_sheet(contents.root / files[label]) for label, lines in texts.items()):
        return None
    return Layout("text", "classification", {"name": "text_lines", "files": files})


def _tagged(contents: _Contents) -> Layout | None:
    """Words with a tag each, one a line."""
    files: dict[str, str] = {}
    for name in [*(n for kind in TAGGED for n in contents.others[kind]), *contents.tables]:
        lines = [line for line in read_text(contents.root / name).split("\n")[:200] if line.strip()]
        rows = [line.split("\t") if "\t" in line else line.split() for line in lines]
        rows = [row for row in rows if row[0] != "-DOCSTART-"]
        if "/" not in name and rows and all(len(row) > 1 and _TAG.fullmatch(row[-1].strip()) for row in rows):
            files.setdefault(_split_in(name), name)
    if not files:
        return None
    if len(files) == 1:
        return Layout("text", "tokens", {"name": "conll"}, next(iter(files.values())))
    return Layout("text", "tokens", {"name": "conll", "files": dict(sorted(files.items(), reverse=True))})


def _arrays(contents: _Contents) -> Layout | None:
    files = contents.others[".npz"]
    return Layout("image", "classification", {"name": "npz"}, files[0]) if len(files) == 1 else None


def _by_class(contents: _Contents) -> Layout | None:
    """Images or sounds, whichever are more, in a folder per class."""
    if contents.pictures and len(contents.pictures) >= len(contents.sounds):
        # Without any folder the reader has less to say than `_nothing`.
        return (
            Layout("image", "classification", {"name": "image_folder"})
            if contents.folders(contents.pictures)[-1]
            else None
        )
    if not contents.sounds:
        return None
    classes = {name.split("/")[-2] for name in contents.sounds if "/" in name and split_of(name.split("/")[-2]) is None}
    if len(classes) > 1:
        return Layout("sound", "classification", {"name": "audio_folder"})
    return _by_name(contents.sounds)


def _by_name(names: Sequence[str]) -> Layout | None:
    """Sounds whose names begin with their label: ``7_george_0.wav``."""
    for mark in ("_", "-"):
        parts = [Path(name).stem.split(mark) for name in names]
        labels = {part[0] for part in parts}
        if all(len(part) > 1 for part in parts) and 2 <= len(labels) <= len(names) / 4:
            pattern = f"(?:^|/)(?P<label>[^/{mark}]+){mark}[^/]*$"
            return Layout("sound", "classification", {"name": "audio_folder", "options": {"pattern": pattern}})
    return None


def _count(names: Sequence[str]) -> Callable[[str], int]:
    return lambda folder: sum(name.startswith(f"{folder}/") for name in names)


WAYS: tuple[Callable[[_Contents], Layout | None], ...] = (
    _voc,
    _coco,
    _instances,
    _segmentation,
    _listed_files,
    _tagged,
    _texts,
    _lines,
    _by_class,
    _arrays,
)
"""Layouts in the order in which they are tried: the more a layout asks of a folder, the earlier."""
