"""NIfTI volumes as slices, with the extra `medical`: names of slices, their pictures and their masks."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tlresearch.base.errors import DataError, MissingExtraError, one_line
from tlresearch.base.files import sha256
from tlresearch.data.table import refuse
from tlresearch.modality.decoding import Orientation
from tlresearch.modality.dicom import Window, show

VOLUMES = (".nii", ".nii.gz")
OPTIONS = ("window", "axis", "slices")

_SLICE = re.compile(r"^(?P<file>.+\.nii(?:\.gz)?)\[(?P<place>[:,\d]+)\]$", re.IGNORECASE)
_OUTLIERS = (0.5, 99.5)  # percentiles of a volume's values that become black and white where no window is given
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Reading:
    """How files become pictures.

    Attributes:
        windows: None for the image's own range, one for a grey picture, three for three channels; of DICOM files,
            volumes, and pictures with more than 8 bits.
        axis: Axis across which a volume is sliced, once it lies left to right, back to front, bottom to top: 0
            sagittal, 1 coronal, 2 axial.
        slices: First slice, and the one behind the last, as in Python; ``None`` from or to the end.
    """

    windows: tuple[Window, ...] = ()
    axis: int = 2
    slices: tuple[int | None, int | None] = (None, None)
    orientation: Orientation = "exif"


def read_reading(options: Mapping[str, Any], orientation: Orientation = "exif") -> Reading:
    """Reads ``window`` (centre and width, or three of them), ``axis`` and ``slices`` of a config.

    Raises:
        DataError: If one is wrong; the text names the key and what it takes.
    """
    window, axis, slices = options.get("window"), options.get("axis", 2), options.get("slices", (None, None))
    pairs = [] if window is None else list(window) if _several(window) else [window]
    if len(pairs) not in (0, 1, 3) or not all(_numbers(pair) and pair[1] > 0 for pair in pairs):
        raise DataError(
            f"data.options.window: takes [centre, width], such as [40, 400], or three of them, but got {window!r}"
        )
    if axis not in (0, 1, 2):
        raise DataError(f"data.options.axis: takes 0 (sagittal), 1 (coronal) or 2 (axial), but got {axis!r}")
    if not isinstance(slices, Sequence) or len(slices) != 2 or not all(s is None or type(s) is int for s in slices):
        raise DataError(f"data.options.slices: takes [first, end] as in Python, such as [20, -20], but got {slices!r}")
    windows = tuple((float(c), float(w)) for c, w in pairs)
    return Reading(windows, int(axis), (slices[0], slices[1]), orientation)


def is_volume(name: str) -> bool:
    """Whether a file is a volume, by its name."""
    return name.lower().endswith(VOLUMES)


def file_of(name: str) -> str:
    """Name of the file that a sample lies in: a slice's volume, else the sample's own."""
    found = _SLICE.match(name)
    return found["file"] if found else name


def slices_of(root: Path, name: str, reading: Reading) -> list[str]:
    """Names of a volume's slices, such as ``a.nii.gz[:,:,12]``; of any other file, its own.

    Raises:
        ValueError: If the volume cannot be read, or has no slice in the range.
    """
    if not is_volume(name):
        return [name]
    shape = _load(root / name).shape
    wanted = range(shape[reading.axis])[slice(*reading.slices)]
    if not wanted:
        raise ValueError(f"it has {shape[reading.axis]} slices, none of them in {list(reading.slices)}")
    before, behind = ":," * reading.axis, ",:" * (2 - reading.axis)
    return [f"{name}[{before}{number}{behind}]" for number in wanted]


def all_slices(root: Path, names: Sequence[str], reading: Reading) -> list[list[str]]:
    """Slices of each file; see `slices_of`.

    Raises:
        DataError: If volumes cannot be read.
    """
    found, problems = [], []
    for name in names:
        try:
            found.append(slices_of(root, name, reading))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    refuse(problems, what=f"{root}: volumes that cannot be used", cure="Replace or remove them, or see docs/medical.md")
    return found


class Slice(NamedTuple):
    """A slice of a volume.

    Attributes:
        values: Its values ``(H, W)`` in the volume's unit.
        digest: SHA-256 of file and place.
        window: Window that shows all of the volume but its outliers.
    """

    values: NDArray[Any]
    digest: str
    window: Window


def read_slice(root: Path, name: str) -> Slice | None:
    """Reads a slice by its name; ``None`` if the name is that of a file.

    Raises:
        ValueError: If the volume cannot be read; the text says why.
    """
    found = _SLICE.match(name)
    if found is None:
        return None
    volume = _volume(root / found["file"])
    place = tuple(slice(None) if part == ":" else int(part) for part in found["place"].split(","))
    digest = hashlib.sha256(f"{volume.digest} {found['place']}".encode()).hexdigest()
    # Rows from top to bottom: the second axis that is left goes upwards.
    return Slice(np.rot90(volume.values[place]), digest, volume.window)


def picture(values: NDArray[Any], windows: Sequence[Window], own: Window) -> NDArray[np.uint8]:
    """Shows a slice, uint8 ``(H, W, channels)``, through windows or, without any, through its volume's own."""
    return np.stack([show(values, window) for window in windows or (own,)], axis=-1)


@dataclass(frozen=True)
class _Volume:
    values: NDArray[Any]
    digest: str
    window: Window


def _volume(path: Path) -> _Volume:
    try:
        stat = path.stat()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    with _LOCK:  # threads that want slices of one volume wait for the first
        return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)  # samples are read in order: image and mask of two subjects
def _read(path: Path, *_: int) -> _Volume:
    image = _load(path)
    try:
        values = np.asanyarray(image.dataobj)
    except Exception as error:  # a damaged file raises whatever its broken part leads to
        raise ValueError(f"a NIfTI volume that cannot be read: {one_line(error)}") from None
    if values.dtype.kind == "f":
        values = np.nan_to_num(values.astype(np.float32))
    low, high = np.percentile(values, _OUTLIERS)
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return _Volume(values, sha256(path), ((low + high) / 2, max(high - low, 1e-6)))


def _load(path: Path) -> Any:
    """Opens a volume, its axes turned to left to right, back to front, bottom to top, as far as it says."""
    nibabel = _nibabel()
    try:
        image = nibabel.load(path)
        if len(image.shape) != 3:
            raise ValueError(f"it has {len(image.shape)} dimensions; take one volume of three")
        return nibabel.as_closest_canonical(image)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"a NIfTI volume that cannot be read: {one_line(error)}") from None


def _nibabel() -> ModuleType:
    try:
        import nibabel
    except ImportError:
        raise MissingExtraError("nibabel", "medical") from None
    return nibabel


def _several(window: Any) -> bool:
    return isinstance(window, Sequence) and len(window) > 0 and isinstance(window[0], Sequence)


def _numbers(pair: Any) -> bool:
    return isinstance(pair, Sequence) and len(pair) == 2 and all(type(v) in (int, float) for v in pair)
