"""Raw samples are read from paths, bytes, base64 text and arrays; what cannot be read says why."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pandas import DataFrame
from PIL import Image

from tlresearch.modality.image import Preprocessing, RawImages
from tlresearch.modality.text import RawTexts


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    return tmp_path / "x.png"


def test_every_form_of_an_image_is_the_same_sample(picture: Path, tmp_path: Path) -> None:
    array = np.asarray(Image.open(picture))
    np.save(tmp_path / "x.npy", array)
    wanted = torch.from_numpy(array.transpose(2, 0, 1).copy())
    encoded = base64.b64encode(picture.read_bytes()).decode()
    raw = RawImages(3)
    for given in (
        str(picture),
        picture,
        picture.read_bytes(),
        encoded,
        array,
        wanted,
        [array],
        array[None],
        DataFrame({"image": [encoded]}),
        tmp_path / "x.npy",
    ):
        (found,) = raw.read(given)
        assert torch.equal(found, wanted)
    assert RawImages(1).read(picture)[0].shape == (1, 40, 30)
    assert RawImages(3).read(array[..., 0])[0].shape == (3, 40, 30)


def test_a_damaged_image_says_why(picture: Path) -> None:
    raw = RawImages(3)
    with pytest.raises(ValueError, match="not an image"):
        raw.read(b"no image")
    with pytest.raises(ValueError, match="truncated"):
        raw.read(picture.read_bytes()[:2000])
    with pytest.raises(ValueError, match="neither base64 text"):
        raw.read("a" * 2000)
    with pytest.raises(FileNotFoundError, match="there is no image file nowhere"):
        raw.read("nowhere")
    with pytest.raises(ValueError, match="uint8"):
        raw.read(np.zeros((6, 5, 3), np.float32))
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        raw.read(objects.getvalue())


def test_a_text_is_itself_and_a_file_is_one_text(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a good\nfilm\n")
    raw = RawTexts()
    assert raw.open(tmp_path / "x.txt") == "a good\nfilm"
    assert raw.read(str(tmp_path / "x.txt")) == [str(tmp_path / "x.txt")]  # never a path
    with pytest.raises(ValueError, match="UTF-8"):
        raw.open(picture)
    with pytest.raises(ValueError, match="takes texts"):
        raw.read([3])


def test_files_are_turned_and_shown_as_in_training() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "PNG", exif=exif)
    assert RawImages(3).decode(buffer.getvalue()).shape == (3, 40, 30)
    assert RawImages(3, orientation="stored").decode(buffer.getvalue()).shape == (3, 30, 40)
    deep = io.BytesIO()
    Image.fromarray(np.array([[0, 10]], dtype=np.uint16)).save(deep, "PNG")
    assert RawImages(1).decode(deep.getvalue()).tolist() == [[[0, 0]]]
    assert RawImages(1, windows=[(5, 10)]).decode(deep.getvalue()).tolist() == [[[0, 255]]]
    windowed = Preprocessing(8, 9, windows=((5.0, 10.0),))
    assert Preprocessing(8, 9).restored(json.loads(json.dumps(windowed.description()))) == windowed
