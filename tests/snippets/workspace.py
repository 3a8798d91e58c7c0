"""A reader's folder: the repository's experiments and sweeps, shortened, and a small part of the real data."""

from __future__ import annotations

import os
import re
import shutil
import struct
import sys
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tests.conftest import REPOSITORY

PROGRAMS = Path(__file__).parent / "programs"
SIDE = 64  # pixels
TRIALS = 2
PHOTOS = 8  # of each class in the folder that a page begins with
LABELS = 3  # per class


class Workspace:
    """A folder in which a page's commands run, with its data, weights and home.

    Args:
        folder: Where; it must not exist.
        data: The real data sets.
        tables: An MLflow database without runs, which is copied.
    """

    def __init__(self, folder: Path, data: Path, tables: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.servers = folder / "servers"
        for place in (self.home, self.servers, folder / "bin", folder / ".venv" / "bin", folder / "requirements"):
            place.mkdir(parents=True)
        shutil.copy(tables, self.home / "mlflow.db")
        for name in ("Makefile", "pyproject.toml", "requirements/lock.txt"):
            shutil.copy(REPOSITORY / name, folder / name)
        (folder / ".venv" / ".done").touch()  # newer than the lock: nothing is installed
        shutil.copytree(REPOSITORY / "docs", folder / "docs", ignore=shutil.ignore_patterns("images", "assets"))
        for program in PROGRAMS.iterdir():
            # No site packages where none are needed: the program that asks for a fork starts in no time.
            flags = "-IS" if program.name == "tlresearch" else "-I"
            script = folder / "bin" / program.name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {flags} "{program}" "$@"\n')
            script.chmod(0o755)
        script = folder / "bin" / "python"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        script.chmod(0o755)
        (folder / ".venv" / "bin" / "tlresearch").symlink_to(folder / "bin" / "tlresearch")
        for kind in ("experiments", "sweeps"):
            for file in sorted((REPOSITORY / kind).rglob("*.yaml")):
                self.write(str(file.relative_to(REPOSITORY)), file.read_text())
        for name, take in DATA.items():
            take(data / name, folder / "data" / name)
        one = next(path for path in sorted(data.joinpath("hymenoptera_data/val/bees").iterdir()))
        for name in ("bee.jpg", "one.jpg", "photo.jpg", "another.png"):
            Image.open(one).save(folder / name)
        for kind in ("ants", "bees"):
            (folder / "photos" / kind).mkdir(parents=True)
            for photo in sorted(data.joinpath("hymenoptera_data/train", kind).glob("*.jpg"))[:PHOTOS]:
                with Image.open(photo) as picture:
                    picture.resize((SIDE, SIDE)).save(folder / "photos" / kind / photo.name)
        shutil.copy(data / "free_spoken_digit" / "recordings" / "7_george_0.wav", folder / "digit.wav")
        shutil.copytree(folder / "data" / "isbi2012_em" / "image", folder / "scans")
        (folder / "input.txt").write_text("A touching film.\nFar too long.\n")

    def write(self, name: str, text: str) -> None:
        """Writes an experiment or a sweep of a page, shortened."""
        content = yaml.safe_load(text)
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(shortened_sweep(content) if "experiment" in content else shortened(content)))

    def environment(self, nursery: str, **more: str) -> dict[str, str]:
        """The variables that commands get."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        own = {
            "PATH": path,
            "TLRESEARCH_HOME": str(self.home),
            "TLRESEARCH_NURSERY": nursery,
            "TLRESEARCH_SERVERS": str(self.servers),
            "COLUMNS": "200",
            "PYTHONWARNINGS": "ignore",
        }
        # What a make that runs the tests hands on is not for the reader's make.
        without = ("TLRESEARCH_DATA", "MLFLOW_TRACKING_URI", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS", "CI")
        return {key: value for key, value in os.environ.items() if key not in without} | own | more


def shortened(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment, or a variant of one, with an epoch or two over small images, and one seed."""
    short: dict[str, Any] = dict(experiment)
    if "data" in short and ("image_size" in short["data"] or short["data"].get("name") in IMAGES):
        short["data"] = {**short["data"], "image_size": SIDE}
        short["data"].pop("resize", None)
    if "labels_per_class" in short.get("data", {}):
        short["data"] = {**short["data"], "labels_per_class": min(LABELS, short["data"]["labels_per_class"])}
    if "freeze" in short:
        short["freeze"] = dict(short["freeze"])
        if "probe_epochs" in short["freeze"]:
            short["freeze"]["probe_epochs"] = 1
        phases = [
            {key: value for key, value in phase.items() if key not in LENGTHS} | {"epochs": 1}
            for phase in short["freeze"].get("phases", [])
        ]
        if phases:
            short["freeze"] |= {"phases": phases, "epochs": len(phases)}
        elif "epochs" in short["freeze"] and short["freeze"].get("schedule") != "gradual":
            short["freeze"]["epochs"] = min(2, short["freeze"]["epochs"])
        short["scheduler"] = {key: value for key, value in short.get("scheduler", {}).items() if key not in LENGTHS}
    if "backbone" in short:  # an experiment, not a variant of one
        short["tracking"] = {**short.get("tracking", {}), "figures": False, "system_metrics": False}
    if "seeds" in short:
        short["seeds"] = [0]
    if "variants" in short:
        short["variants"] = {name: shortened(variant) for name, variant in short["variants"].items()}
    return short


def shortened_sweep(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep of a few trials."""
    short: dict[str, Any] = {**sweep, "trials": TRIALS}
    if "data.labels_per_class" in short.get("overrides", {}):
        short["overrides"] = {**short["overrides"], "data.labels_per_class": LABELS}
    if "baselines" in short:
        short["baselines"] = dict([*short["baselines"].items()][:1])
    if "confirm" in short:
        short["confirm"] = {**short["confirm"], "top": 1, "seeds": 2}
    return short


LENGTHS = ("fraction", "until", "warmup_epochs")
"""What a schedule of single epochs has no room for."""
IMAGES = ("image_folder", "image_csv", "npz", "voc", "coco", "masks", "instance_masks")


def _tree(count: int) -> Callable[[Path, Path], None]:
    """The first files of each folder below the source."""

    def take(source: Path, to: Path) -> None:
        for folder in [source, *sorted(path for path in source.rglob("*") if path.is_dir())]:
            there = to / folder.relative_to(source)
            there.mkdir(parents=True)
            for file in islice((path for path in sorted(folder.iterdir()) if path.is_file()), count):
                shutil.copy(file, there)

    return take


def _lines(count: int) -> Callable[[Path, Path], None]:
    """The first lines, or paragraphs, of each text file."""

    def take(source: Path, to: Path) -> None:
        to.mkdir(parents=True)
        for file in (path for path in sorted(source.iterdir()) if path.is_file()):
            pieces = re.split(r"(?<=\n)\s*\n" if source.name == "wnut17" else r"\n", file.read_text(encoding="utf-8"))
            (to / file.name).write_text("\n".join(pieces[:count]) + "\n")

    return take


def _speech(source: Path, to: Path) -> None:
    """The five takes for testing and two to learn from, of each digit and speaker."""
    (to / "recordings").mkdir(parents=True)
    for file in sorted(source.glob("recordings/*.wav")):
        if file.stem.rsplit("_", 1)[1] in ("0", "1", "2", "3", "4", "5", "6"):
            shutil.copy(file, to / "recordings")


def _cells(source: Path, to: Path) -> None:
    """Some of the images with their boxes, in all three splits."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (to / part).mkdir(parents=True)
    for split in ("train", "val", "test"):
        names = (source / "ImageSets" / "Main" / f"{split}.txt").read_text().split()[:6]
        (to / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            shutil.copy(source / "JPEGImages" / f"{name}.jpg", to / "JPEGImages")
            shutil.copy(source / "Annotations" / f"{name}.xml", to / "Annotations")


def _sections(source: Path, to: Path) -> None:
    """Ten of the thirty sections with their masks."""
    for part in ("image", "label"):
        (to / part).mkdir(parents=True)
        for number in range(10):
            shutil.copy(source / part / f"{number}.png", to / part)


def _xrays(source: Path, to: Path) -> None:
    """Some dozens of the images of each split."""
    to.mkdir(parents=True)
    arrays = np.load(source / "pneumoniamnist.npz")
    np.savez(to / "pneumoniamnist.npz", **{name: arrays[name][:60] for name in arrays.files})


def _photos(source: Path, to: Path) -> None:
    """The photos of `docs/first_day.md`: a folder per class, without splits."""
    for kind in ("cats", "dogs"):
        (to / kind).mkdir(parents=True)
        for number, file in enumerate(islice(sorted((source.parent / "cats_vs_dogs/train" / kind).iterdir()), 16), 1):
            shutil.copy(file, to / kind / f"{number:04}.jpg")


def _pedestrians(source: Path, to: Path) -> None:
    """Rectangles in the form of Penn-Fudan, which is not among the real data here."""
    noise = np.random.default_rng(0)
    for part in ("PNGImages", "PedMasks"):
        (to / part).mkdir(parents=True)
    for number in range(10):
        pixels = noise.integers(0, 60, (80, 100, 3)).astype(np.uint8)
        masks = np.zeros((80, 100), np.uint8)
        for person in (1, 2):
            top, left = noise.integers(0, 30), 50 * (person - 1) + noise.integers(0, 20)
            masks[top : top + 45, left : left + 20] = person
        pixels[masks > 0] += 150
        Image.fromarray(pixels).save(to / "PNGImages" / f"FudanPed{number:05}.png")
        Image.fromarray(masks).save(to / "PedMasks" / f"FudanPed{number:05}_mask.png")


def _mnist(source: Path, to: Path) -> None:
    """Noise in the form of MNIST's files, which are not among the real data here."""
    noise = np.random.default_rng(0)
    (to / "raw").mkdir(parents=True)
    for split, count in (("train", 400), ("t10k", 100)):
        images = noise.integers(0, 255, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        head = struct.pack(">IIII", 2051, count, 28, 28), struct.pack(">II", 2049, count)
        (to / "raw" / f"{split}-images-idx3-ubyte").write_bytes(head[0] + images.tobytes())
        (to / "raw" / f"{split}-labels-idx1-ubyte").write_bytes(head[1] + labels.tobytes())


DATA: Mapping[str, Callable[[Path, Path], None]] = {
    "hymenoptera_data": _tree(12),
    "cats_vs_dogs": _tree(12),
    "office_caltech10": _tree(8),
    "sst2": _lines(80),
    "wnut17": _lines(40),
    "free_spoken_digit": _speech,
    "bccd": _cells,
    "isbi2012_em": _sections,
    "pneumoniamnist": _xrays,
    "photos": _photos,
    "PennFudanPed": _pedestrians,
    "MNIST": _mnist,
}
"""What is taken of each data set: enough for every class in every split."""
