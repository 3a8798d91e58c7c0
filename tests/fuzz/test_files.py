"""Damaged images, sounds, arrays, scans and weights: read, or refused in one line; never anything else."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as to_safetensors

from tests.fuzz.mutations import mutated, readable, table_or_error, value_or
from tlresearch.backbones import weights
from tlresearch.base.errors import DataError, WeightsError
from tlresearch.data.download import _unpack
from tlresearch.data.mask_files import FileMasks
from tlresearch.data.npz import read_npz
from tlresearch.data.segmentation import _read_arrays
from tlresearch.data.volumes import Reading, read_slice, slices_of
from tlresearch.finetuning import resume
from tlresearch.modality import decoding
from tlresearch.modality.sound import decode as decode_sound

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about what they found in the file

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)


def image(kind: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture = (
        Image.fromarray(PIXELS).convert(mode) if mode != "I;16" else Image.fromarray(PIXELS[..., 0].astype(np.uint16))
    )
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif.tobytes()


IMAGES = [
    image("PNG"),
    image("PNG", "P", transparency=3),
    image("PNG", "I;16"),
    image("PNG", "LA"),
    image("JPEG"),
    image("JPEG", "CMYK", progressive=True),
    image("GIF", "P"),
    image("BMP"),
    image("TIFF", compression="tiff_lzw"),
    image("TIFF", "L", compression="tiff_deflate"),
    image("WEBP"),
    image("PPM"),
    *(image(kind, exif=turned(turn)) for kind, turn in (("JPEG", 6), ("PNG", 3), ("WEBP", 8), ("JPEG", 77))),
    image("TIFF", "I;16", tiffinfo={281: 4095, 274: 5}),
]


@given(content=st.sampled_from(IMAGES).flatmap(mutated), channels=st.sampled_from([1, 3]))
def test_images(content: bytes, channels: int) -> None:
    found = value_or(ValueError, lambda: decoding.decode(content, channels))
    if found is not None:
        assert found.dtype == torch.uint8
        assert found.shape[0] == channels
        assert found.numel()
        measured = decoding.measure(content)
        assert measured.size("exif") == found.shape[1:]
        assert measured.size("stored") == decoding.decode(content, channels, orientation="stored").shape[1:]
        measured.is_flat([])
        shown = decoding.decode(content, 3, [(100.0, 50.0)])
        assert shown.shape[1:] == found.shape[1:]


@given(content=st.sampled_from(IMAGES).flatmap(mutated))
def test_masks(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(content)
    masks = FileMasks(tmp_path, ["mask.png"])
    found = value_or(ValueError, lambda: masks.pixels(0))
    assert found is None or found[0].ndim in (2, 3)


def sound(kind: str, subtype: str | None = None, channels: int = 1) -> bytes:
    soundfile = pytest.importorskip("soundfile", reason="the extra speech is not installed")
    buffer = io.BytesIO()
    clip = RNG.uniform(-0.5, 0.5, (200, channels)).astype(np.float32)
    soundfile.write(buffer, clip, 8000, format=kind, subtype=subtype)
    return buffer.getvalue()


KINDS = [
    ("WAV", None, 1),
    ("WAV", "FLOAT", 2),
    ("WAV", "MS_ADPCM", 1),
    ("FLAC", None, 2),
    ("OGG", None, 1),
    ("AIFF", None, 1),
]


@pytest.fixture(scope="module")
def sounds() -> list[bytes]:
    return [sound(*kind) for kind in KINDS]


@given(data=st.data())
def test_sounds(data: st.DataObject, sounds: list[bytes]) -> None:
    content = data.draw(st.sampled_from(sounds).flatmap(mutated))
    found = value_or(ValueError, lambda: decode_sound(content, 16_000))
    if found is not None:
        assert found[0].dtype == torch.float32
        assert len(found[0])
        assert torch.isfinite(found[0]).all()


def arrays(compressed: bool, **more: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    content = {
        "train_images": PIXELS[None].repeat(4, 0),
        "train_labels": np.array([0, 1, 0, 1]),
        "val_images": PIXELS[None].repeat(2, 0),
        "val_labels": np.array([[0], [1]]),
        "train_masks": PIXELS[None, ..., 0].repeat(4, 0),
        **more,
    }
    (np.savez_compressed if compressed else np.savez)(buffer, **content)
    return buffer.getvalue()


ARRAYS = [arrays(True), arrays(False), arrays(False, classes=np.array(["a", "b"]))]


@given(content=st.sampled_from(ARRAYS).flatmap(mutated))
def test_arrays(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    table = table_or_error(lambda: read_npz(path))
    if table is not None:
        assert len(table.names) == len(table.labels)
    table_or_error(lambda: _read_arrays(path))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    pytest.importorskip("pydicom", reason="the extra medical is not installed")
    from tests.data.medical_files import save_dicom

    folder = tmp_path_factory.mktemp("scans")
    grey = RNG.integers(0, 4000, (6, 5)).astype(np.uint16)
    plain = save_dicom(folder / "a.dcm", grey)
    shown = save_dicom(
        folder / "b.dcm", grey.astype(np.int16), WindowCenter=40, WindowWidth=400, RescaleSlope=2, RescaleIntercept=-5
    )
    return [plain.read_bytes(), shown.read_bytes()]


@given(data=st.data())
def test_scans(data: st.DataObject, scans: list[bytes]) -> None:
    content = data.draw(st.sampled_from(scans).flatmap(mutated))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = value_or(ValueError, lambda: decoding.decode(content, 3))
    assert found is None or (found.dtype == torch.uint8 and found.numel())


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    pytest.importorskip("nibabel", reason="the extra medical is not installed")
    from tests.data.medical_files import save_volume

    folder = tmp_path_factory.mktemp("volumes")
    values = RNG.integers(0, 100, (4, 5, 3)).astype(np.int16)
    return {name: save_volume(folder / name, values).read_bytes() for name in ("a.nii", "a.nii.gz")}


@given(data=st.data())
def test_volumes(data: st.DataObject, volumes: dict[str, bytes], tmp_path: Path) -> None:
    name = data.draw(st.sampled_from(sorted(volumes)))
    (tmp_path / name).write_bytes(data.draw(mutated(volumes[name])))
    names = value_or(ValueError, lambda: slices_of(tmp_path, name, Reading()))
    for one in (names or [])[:2]:
        part = value_or(ValueError, lambda one=one: read_slice(tmp_path, one))
        assert part is None or part.values.ndim == 2


def checkpoint(content: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


TENSORS = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2, dtype=torch.bfloat16), "b": torch.arange(3)}
CHECKPOINTS = [
    ("w.safetensors", to_safetensors(TENSORS, {"made by": "us"})),
    ("w.pth", checkpoint(TENSORS)),
    ("w.pth", checkpoint({"state_dict": TENSORS, "epoch": 3})),
    ("old.pth", checkpoint(TENSORS, zipped=False)),
]


@given(case=st.sampled_from(CHECKPOINTS).flatmap(lambda case: st.tuples(st.just(case[0]), mutated(case[1]))))
def test_weights(case: tuple[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / case[0]
    path.write_bytes(case[1])
    found = value_or(WeightsError, lambda: weights.read(path))
    if found is not None:
        assert all(isinstance(value, torch.Tensor) for value in found.values())
        assert len(weights.digest(found)) == 64


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        3,
        None,
        "text",
        {1: torch.ones(1)},
        {"a": 3},
        {"state_dict": {"model": torch.ones(1)}, "a": torch.ones(1)},
        {"state_dict": None},
        {("a", 1): torch.ones(1)},
        {"a": torch.ones(2).to_sparse()},
        {"a": torch.empty(2, 3, device="meta")},
        {"a": torch.nn.Parameter(torch.ones(2))},
        {"a": torch.ones(2, dtype=torch.complex64)},
        {"a": torch.ones(1).expand(1000, 1000)},
        {"a": torch.empty(0)},
        {"a" * 5000: torch.ones(2)},
        {"a\nb": torch.ones(2)},
    ],
    ids=lambda content: str(content)[:30],
)
def test_state_dicts_of_odd_types(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    stage = torch.nn.Linear(2, 2)
    found = value_or(WeightsError, lambda: weights.read(tmp_path / "w.pth"))
    if found is not None:
        value_or(WeightsError, lambda: weights.load_stages({"only": stage}, tmp_path / "w.pth"))
        value_or(WeightsError, lambda: weights.digest(found))


@given(content=mutated(CHECKPOINTS[1][1]), sealed=st.booleans())
def test_checkpoints_of_a_run(content: bytes, sealed: bool, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content + (hashlib.sha256(content).hexdigest().encode() if sealed else b""))
    found = resume.read_checkpoint(path)
    assert found is None or isinstance(found, dict)


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("a/b/1.txt", "one" * 50)
            zipped.writestr("a/c/2.txt", "two")
    else:
        with tarfile.open(fileobj=buffer, mode=kind) as tarred:
            for name in ("a/b/1.txt", "a/c/2.txt"):
                member = tarfile.TarInfo(name)
                member.size = 3
                tarred.addfile(member, io.BytesIO(b"one"))
    return buffer.getvalue()


ARCHIVES = [
    ("x.zip", archive("zip")),
    ("x.tar", archive("w")),
    ("x.tar.gz", archive("w:gz")),
    ("x.tar.xz", archive("w:xz")),
]


@given(case=st.sampled_from(ARCHIVES).flatmap(lambda case: st.tuples(st.just(case[0]), mutated(case[1]))))
def test_archives(case: tuple[str, bytes], tmp_path: Path) -> None:
    place = tmp_path / "downloads"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / case[0]).write_bytes(case[1])
    before = sorted(tmp_path.iterdir())
    value_or(DataError, lambda: _unpack(place / case[0], place / "target"))
    assert {path.name for path in place.iterdir()} <= {case[0], "target"}
    assert sorted(tmp_path.iterdir()) == before


def png_that_says(width: int, height: int) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def wav_that_says(rate: int, frames: int, channels: int = 1) -> bytes:
    import struct

    samples = b"\1\0" * 100
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * 2 % 2**32, 2 * channels, 16)
    head = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", frames * 2 % 2**32)
    return b"RIFF" + struct.pack("<I", len(head) + len(samples)) + head + samples


@pytest.mark.parametrize("size", [(30_000, 30_000), (2**31 - 1, 1), (100_000, 1), (0, 0), (2**31 - 1, 2**31 - 1)])
def test_images_that_claim_to_be_huge_are_refused(size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        decoding.decode(png_that_says(*size), 3)
    readable(str(caught.value))
    (tmp_path / "a.png").write_bytes(png_that_says(*size))
    with pytest.raises(ValueError, match=r"a\.png"):
        FileMasks(tmp_path, ["a.png"]).pixels(0)


@pytest.mark.parametrize(("rate", "frames"), [(0, 100), (1, 100), (2**31 - 1, 100), (2**32 - 1, 100), (7, 2**31 - 1)])
def test_sounds_with_an_absurd_rate_are_refused(rate: int, frames: int) -> None:
    pytest.importorskip("soundfile", reason="the extra speech is not installed")
    with pytest.raises(ValueError, match=r".") as caught:
        decode_sound(wav_that_says(rate, frames), 16_000)
    readable(str(caught.value))


def test_a_sound_that_claims_to_be_endless_is_refused() -> None:
    content = bytearray(sound("FLAC"))
    # Total samples: the lower 36 bits of bytes 18 to 25 (behind "fLaC" and the header of its first block).
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    with pytest.raises(ValueError, match="samples"):
        decode_sound(bytes(content), 16_000)
