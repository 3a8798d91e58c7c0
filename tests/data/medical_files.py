"""Small DICOM files and NIfTI volumes, written by pydicom and nibabel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def save_dicom(path: Path, pixels: np.ndarray, **fields: Any) -> Path:
    """Writes unsigned or signed 16-bit pixels ``(H, W)``, or frames ``(N, H, W)``; `fields` are DICOM keywords."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype(f"<{pixels.dtype.kind}2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def save_volume(path: Path, values: np.ndarray, directions: tuple[int, int, int] = (1, 1, 1)) -> Path:
    """Writes a volume whose axes run to right, front and top, or the other way where `directions` are -1."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*directions, 1]).astype(float)), path)
    return path
