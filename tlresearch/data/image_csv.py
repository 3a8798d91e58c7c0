"""Source `image_csv`: a folder of images and a table of their labels."""

from __future__ import annotations

from pathlib import Path

from tlresearch.config.schema import DataConfig
from tlresearch.data.files import PICTURES, FileImages, sliced
from tlresearch.data.folders import find_listed
from tlresearch.data.rows import read_rows
from tlresearch.data.table import Table
from tlresearch.data.targets import Learning
from tlresearch.data.volumes import read_reading


def read_image_csv(root: Path, config: DataConfig) -> Table:
    """Reads a table of images: paths relative to `root`, labels (joined by ';') or numbers, perhaps splits and groups.

    Args:
        root: Folder of the table and the images.
        config: Names the table, its columns, delimiter and encoding; see `read_rows`.

    Raises:
        DataError: If the table or a column is missing, or a row is incomplete.
    """
    path = root / config.table
    learning = Learning(config.label_column, config.targets)
    columns = [config.image_column, *learning.columns]
    columns += [column for column in (config.split_column, config.group_column) if column]
    rows = read_rows(path, columns, delimiter=config.delimiter, encoding=config.encoding)
    files = find_listed(root, rows.texts(config.image_column), PICTURES, str(path))
    rows.refuse_repeated(files.names, "images", "Keep one row per image; several labels of one image are joined by ';'")
    learning.add(rows)
    table = Table(
        name=root.name,
        names=files.names,
        images=FileImages(root, files.names),
        splits=rows.splits(config.split_column) if config.split_column else None,
        groups=rows.texts(config.group_column) if config.group_column else None,
        passed=files.passed + rows.passed,
        **learning.learnt(),
    )
    return sliced(table, root, read_reading(config.options, config.orientation))
