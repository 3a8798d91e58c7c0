"""Pictures from DICOM files and windows of intensities, with the extra `medical`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlresearch.base.errors import MissingExtraError, one_line

Window = tuple[float, float]
"""Centre and width of the intensities that are told apart, in the image's unit, such as Hounsfield units."""


def is_dicom(content: bytes) -> bool:
    """Whether a file is DICOM, by its mark behind the preamble."""
    return content[128:132] == b"DICM"


def read_dicom(content: bytes, windows: Sequence[Window] = ()) -> NDArray[np.uint8]:
    """Decodes a DICOM file of one frame, uint8 ``(H, W, 1 or 3)``.

    Stored values, of up to 32 bits, are rescaled by slope and intercept, then shown through a window and only then
    brought to 8 bits. ``MONOCHROME1``, where low is white, is inverted. Colours need no window.

    Args:
        content: The bytes of the file.
        windows: One window, or three that make three channels; none takes the file's own, and where there is none,
            the range of its values.

    Raises:
        ValueError: If it cannot be decoded; the text says why.
        MissingExtraError: If pydicom is not installed.
    """
    pydicom = _pydicom()
    try:
        dataset = pydicom.dcmread(io.BytesIO(content))
        frames = int(dataset.get("NumberOfFrames") or 1)
    except Exception as error:  # of a damaged file pydicom raises whatever its broken part leads to
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
    shown = np.stack([show(values, window) for window in windows] or [_shown_as_said(values, dataset)], axis=-1)
    return 255 - shown if kind == "MONOCHROME1" else shown


def show(values: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Brings what lies within a window to 0 to 255; what lies outside is cut (DICOM PS3.3 C.11.2.1.3, linear exact)."""
    centre, width = window
    return _to_bytes(values, centre - width / 2, centre + width / 2)


def _shown_as_said(values: NDArray[Any], dataset: Any) -> NDArray[np.uint8]:
    """Shows an image through the first window or table of its file, else from its smallest to its largest value."""
    from pydicom.pixels.processing import apply_voi_lut

    # A table is looked up by whole numbers.
    values = np.rint(values).astype(np.int64) if dataset.get("VOILUTSequence") else values.astype(np.float64)
    shown = apply_voi_lut(values, dataset)
    if shown is values:
        return _to_bytes(values, float(values.min()), float(values.max()))
    with np.errstate(over="ignore"):
        # What the darkest and the brightest value become says which range the file's window has.
        low, high = apply_voi_lut(np.array([-(10**9), 10**9], dtype=values.dtype), dataset)
    return _to_bytes(shown, float(low), float(high))


def _to_bytes(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (values.astype(np.float64) - low) * (255 / max(high - low, 1e-9))
    found: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return found


def _pydicom() -> ModuleType:
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("pydicom", "medical") from None
    return pydicom
