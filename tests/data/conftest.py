from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlresearch.config.schema import DataConfig
from tlresearch.data.base import Data
from tlresearch.data.build import build_data
from tlresearch.modality.image import Preprocessing

SMALL = Preprocessing(crop=8, resize=10, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything written goes to a folder of the test."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("TLRESEARCH_HOME", str(folder))
    return folder


@pytest.fixture
def real() -> Callable[[str], str]:
    """Path of a real data set, or the test is skipped."""

    def find(name: str) -> str:
        path = Path(os.environ.get("TLRESEARCH_DATA", "data"), name)
        if not path.exists():
            pytest.skip(f"{name} is not in TLRESEARCH_DATA")
        return str(path.absolute())

    return find


@pytest.fixture
def save_image() -> Callable[..., Path]:
    """Writes an image whose pixels follow from its path."""

    def save(path: Path, size: tuple[int, int] = (12, 14), seed: int | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        number = sum(map(ord, path.name + path.parent.name)) if seed is None else seed
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return save


@pytest.fixture
def folder(tmp_path: Path, save_image: Callable[..., Path]) -> Callable[..., Path]:
    """Makes a data folder: counts per class, below each split folder if splits are named."""

    def make(counts: Mapping[str, int], splits: Sequence[str] = (), suffix: str = "png") -> Path:
        root = tmp_path / "pets"
        for split in splits or [""]:
            for cls, count in counts.items():
                for number in range(count):
                    save_image(root / split / cls / f"{cls}{number}{split}.{suffix}")
        return root

    return make


@pytest.fixture
def build() -> Callable[..., Data]:
    """`build_data` with small images and the config's fields as arguments."""

    def make(
        root: Path | str | None = None, *, preprocessing: Preprocessing = SMALL, seed: int = 0, **fields: Any
    ) -> Data:
        config = DataConfig(root=None if root is None else str(root), **fields)
        return build_data(config, preprocessing=preprocessing, seed=seed)

    return make
