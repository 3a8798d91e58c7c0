"""What medical files need of every source of images: endings, options, and volumes in the place of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torchvision.datasets.folder import IMG_EXTENSIONS

from tlresearch.base.errors import DataError, nearest
from tlresearch.data.files import FileImages
from tlresearch.data.table import Table
from tlresearch.data.volumes import OPTIONS, VOLUMES, Reading, all_slices, read_reading

PICTURES = (*IMG_EXTENSIONS, ".dcm", ".dicom", *VOLUMES)
"""Endings of files that are read as images."""


def with_medical(table: Table, options: Mapping[str, Any]) -> Table:
    """Reads the options of medical images, and replaces volumes by their slices; see `sliced`.

    Raises:
        DataError: If an option is wrong or unknown, or a volume cannot be read.
    """
    for name in options:
        if name not in OPTIONS:
            raise DataError(
                f"data.options: images have no option '{name}'{nearest(name, OPTIONS)}; they have {', '.join(OPTIONS)}"
            )
    return sliced(table, read_reading(options))


def sliced(table: Table, reading: Reading) -> Table:
    """Replaces the volumes of a table of files by their slices, each with the volume's label, split and group.

    Raises:
        DataError: If a volume cannot be read.
    """
    assert isinstance(table.images, FileImages)
    root = table.images.root
    found = all_slices(root, table.names, reading)
    rows = [row for row, names in enumerate(found) for _ in names]
    names = [name for names in found for name in names]
    given = table.groups or (table.names if len(names) > len(table.names) else None)
    return replace(
        table,
        names=names,
        labels=table.labels[rows],
        splits=[table.splits[row] for row in rows] if table.splits is not None else None,
        groups=[given[row] for row in rows] if given is not None else None,
        images=FileImages(root, names, reading.windows),
    )
