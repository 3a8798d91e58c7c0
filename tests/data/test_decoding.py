from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tlresearch.data.decoding import decode

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


def test_exif_rotation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(Image.fromarray(PIXELS), "JPEG", exif=exif.tobytes()), 3).shape == (3, 9, 11)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert torch.equal(decode(content, 3), decode(encode(frames[0], "GIF"), 3))


def test_float_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="mode F"):
        decode(encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), 3)
