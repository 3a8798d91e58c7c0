from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tlresearch.modality.decoding import decode, measure

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 11, 3)).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


HOLDS = {
    "PNG": ("RGB", "L", "P", "1", "RGBA", "LA"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("RGB", "L", "P", "1"),
    "BMP": ("RGB", "L", "P", "1"),
    "TIFF": ("RGB", "L", "P", "1", "CMYK", "RGBA", "LA"),
    "PPM": ("RGB", "L", "1"),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in HOLDS.items() for mode in modes])
def test_every_mode_decodes_as_pil_converts_it(kind: str, mode: str) -> None:
    content = encode(Image.fromarray(PIXELS).convert(mode), kind)
    with Image.open(io.BytesIO(content)) as stored:
        expected = np.array(stored.convert("RGB"))
    found = decode(content, 3)
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(expected).permute(2, 0, 1))
    assert decode(content, 1).shape == (1, 9, 11)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_upper_eight(kind: str) -> None:
    values = np.arange(99, dtype=np.uint16).reshape(9, 11) * 660
    content = encode(Image.fromarray(values), kind)
    assert torch.equal(decode(content, 1)[0], torch.from_numpy((values >> 8).astype(np.uint8)))
    assert decode(content, 3).shape == (3, 9, 11)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_pictures_are_seen_as_viewers_show_them(turn: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    content = encode(Image.fromarray(PIXELS), kind, exif=exif.tobytes(), lossless=True)
    shown = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    assert torch.equal(decode(content, 3), torch.from_numpy(shown).permute(2, 0, 1))
    stored = decode(content, 3, orientation="stored")
    assert torch.equal(stored, torch.from_numpy(PIXELS).permute(2, 0, 1))
    assert measure(content).size("exif") == shown.shape[:2]
    assert measure(content).size("stored") == PIXELS.shape[:2]


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"\xff" * 40])
def test_damaged_exif_turns_nothing(exif: bytes) -> None:
    content = encode(Image.fromarray(PIXELS), "PNG", exif=exif)
    assert decode(content, 3).shape == (3, *PIXELS.shape[:2])


def test_sixteen_bits_are_shown_by_what_the_file_says() -> None:
    values = (np.arange(99, dtype=np.uint16).reshape(9, 11) * 40).astype(np.uint16)  # 12 bits
    assert decode(encode(Image.fromarray(values), "PNG"), 1).max() == 15
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", tiffinfo={281: 4095})
    assert torch.equal(decode(buffer.getvalue(), 1)[0], torch.from_numpy((values >> 4).astype(np.uint8)))
    plain = encode(Image.fromarray(values), "PNG")
    chunk = b"sBIT\x0c"
    said = plain[:33] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + plain[33:]
    assert torch.equal(decode(said, 1)[0], torch.from_numpy((values >> 4).astype(np.uint8)))


def test_a_window_shows_what_lies_in_it() -> None:
    values = np.array([[0, 100, 200, 60000]], dtype=np.uint16)
    content = encode(Image.fromarray(values), "PNG")
    assert decode(content, 1, [(100, 200)])[0].tolist() == [[0, 127, 255, 255]]
    assert decode(content, 3, [(100, 200), (50, 100), (300, 600)]).shape == (3, 1, 4)
    assert measure(content).low == 0
    assert not measure(content).is_flat([])
    dim = measure(encode(Image.fromarray(np.array([[3, 90]], dtype=np.uint16)), "PNG"))
    assert dim.is_flat([])
    assert not dim.is_flat([(50, 100)])
    assert dim.is_flat([(5000, 100)])


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert torch.equal(decode(content, 3), decode(encode(frames[0], "GIF"), 3))


def test_float_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"32 bit.*data\.options\.window"):
        decode(encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), 3)


def test_a_pointer_of_git_lfs_is_named_as_such() -> None:
    with pytest.raises(ValueError, match="not an image: it is a pointer of Git LFS"):
        decode(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", 3)
