"""DICOM files as pictures, through windows of intensities; needs the extra `medical`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlresearch.base.errors import MissingExtraError, one_line

Window = tuple[float, float]
"""Centre and width of the range of intensities that is shown, in the image's unit, such as Hounsfield units."""


def is_dicom(content: bytes) -> bool:
    """Whether a file is DICOM: the mark ``DICM`` stands behind a preamble of 128 bytes."""
    return content[128:132] == b"DICM"


def read_dicom(content: bytes, windows: Sequence[Window] = ()) -> NDArray[np.uint8]:
    """Decodes a DICOM file of one frame to uint8 ``(H, W, 1 or 3)``.

    Stored values of up to 32 bits are rescaled by slope and intercept, then shown through a window, and only then
    reduced to 8 bits. ``MONOCHROME1``, where low values are white, is inverted. Colours need no window.

    Args:
        content: The bytes of the file.
        windows: One window, or three for three channels. Without any, the file's own window is used, or the range of
            its values if it has none.

    Raises:
        ValueError: If it cannot be decoded; the text says why.
        MissingExtraError: If pydicom is not installed.
    """
    pydicom = _pydicom()
    try:
        dataset = pydicom.dcmread(io.BytesIO(content))
        frames = int(dataset.get("NumberOfFrames") or 1)
    except Exception as error:  # for a damaged file pydicom raises errors of any class
        raise _damaged(error) from None
    if "PixelData" not in dataset:
        raise ValueError("a DICOM file without an image")
    if frames > 1:
        raise ValueError(f"it has {frames} frames; save the ones you need as single images")
    try:
        return _shown(dataset, windows)
    except Exception as error:
        raise _damaged(error) from None


def _damaged(error: Exception) -> ValueError:
    return ValueError(f"a DICOM file that cannot be read: {one_line(error, 200)}")


def _shown(dataset: Any, windows: Sequence[Window]) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    pixels = pixel_array(dataset)
    kind = str(dataset.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        return _to_bytes(pixels, 0, np.iinfo(pixels.dtype).max)
    values = apply_modality_lut(pixels, dataset)
    shown = np.stack([show(values, window) for window in windows] or [_own_window(values, dataset)], axis=-1)
    return 255 - shown if kind == "MONOCHROME1" else shown


def show(values: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Scales the values within a window to 0 … 255 and clips the others (DICOM PS3.3 C.11.2.1.3, linear exact)."""
    centre, width = window
    return _to_bytes(values, centre - width / 2, centre + width / 2)


def _own_window(values: NDArray[Any], dataset: Any) -> NDArray[np.uint8]:
    """Shows an image through the first window or table of its file, else from its smallest to its largest value."""
    from pydicom.pixels.processing import apply_voi_lut

    # A table has whole numbers as keys.
    values = np.rint(values).astype(np.int64) if dataset.get("VOILUTSequence") else values.astype(np.float64)
    shown = apply_voi_lut(values, dataset)
    if shown is values:  # the file has neither window nor table
        return _to_bytes(values, float(values.min()), float(values.max()))
    with np.errstate(over="ignore"):
        # The output range of the window or table depends on the file; extreme values map to its ends.
        low, high = apply_voi_lut(np.array([-(10**9), 10**9], dtype=values.dtype), dataset)
    return _to_bytes(shown, float(low), float(high))


def _to_bytes(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (values.astype(np.float64) - low) * (255 / max(high - low, 1e-9))
    levels: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return levels


def _pydicom() -> ModuleType:
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("pydicom", "medical") from None
    return pydicom
