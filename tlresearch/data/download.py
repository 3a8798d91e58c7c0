"""A data set from an address: downloaded once, checked by its SHA-256, and unpacked without leaving its folder."""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import torch

from tlresearch.base.errors import DataError, MissingFileError
from tlresearch.base.files import locked, sha256
from tlresearch.base.paths import data_folder, find_data
from tlresearch.config.schema import DataConfig

log = logging.getLogger(__name__)

_ARCHIVE = re.compile(r"\.(zip|tar|tar\.gz|tgz|tar\.bz2|tar\.xz)$")
_GROWTH = 50  # times the archive's size: text shrinks to a tenth, photos hardly; what shrinks to less is no data
_FREE = 10**9  # bytes that anything may unpack to


def ensure_here(config: DataConfig) -> None:
    """Downloads what `data.url` names to `data.root` under the data directory, unless it is here already.

    An archive is unpacked; if it holds a single folder, that becomes `data.root`. Several processes may ask at once.

    Raises:
        DataError: If it cannot be downloaded, has another hash, or is no archive that can be unpacked safely.
    """
    if config.url is None or config.root is None or config.sha256 is None or _is_here(config.root):
        return
    target = data_folder() / config.root
    if not config.download:
        raise DataError(f"data.root: {target} is not there and data.download is off; set it, or put the data there")
    downloads = data_folder() / ".downloads"
    name = f"{config.sha256[:16].lower()}-{Path(urlparse(config.url).path).name}"
    with locked(downloads / f"{name}.lock"):
        if _is_here(config.root):  # another process was faster
            return
        file = _download(config.url, downloads / name, config.sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        if _ARCHIVE.search(file.name):
            _unpack(file, target)
            file.unlink()
        else:
            os.replace(file, target)


def _is_here(root: str) -> bool:
    try:
        find_data(root)
    except MissingFileError:
        return False
    return True


def _download(url: str, path: Path, expected: str) -> Path:
    if not path.exists():
        log.info("downloading %s", url)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise DataError(
                f"data.url: {url} cannot be downloaded ({error}); download it elsewhere and unpack it as data.root"
            ) from None
    actual = sha256(path)
    if actual != expected.lower():
        path.unlink()
        raise DataError(f"data.url: what is at {url} has SHA-256 {actual}, but data.sha256 is {expected.lower()}")
    return path


def _unpack(archive: Path, target: Path) -> None:
    """Unpacks beside the target and gives it its name by one rename, so that a half is never taken for the whole."""
    scratch = target.with_name(f".{target.name}.{os.getpid()}.unpacking")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    most = max(_FREE, _GROWTH * archive.stat().st_size)
    try:
        if archive.suffix == ".zip":
            _unzip(archive, scratch, most)
        else:
            _untar(archive, scratch, most)
        entries = [entry for entry in scratch.iterdir() if entry.name != "__MACOSX" and not entry.name.startswith(".")]
        only = entries[0] if len(entries) == 1 and entries[0].is_dir() else scratch
        os.replace(only, target)
    except DataError:
        raise
    except Exception as error:  # of a damaged archive zipfile and tarfile raise whatever its broken part leads to
        raise DataError(f"data.url: {archive.name} cannot be unpacked: {error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unzip(archive: Path, folder: Path, most: int) -> None:
    with zipfile.ZipFile(archive) as content:
        members = content.infolist()
        for member in members:
            path = PurePosixPath(member.filename.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
                raise DataError(f"data.url: {archive.name} is refused: '{member.filename}' would leave its folder")
        _check_size(archive, sum(member.file_size for member in members), most)
        content.extractall(folder)


def _untar(archive: Path, folder: Path, most: int) -> None:
    with tarfile.open(archive) as content:
        _check_size(archive, sum(member.size for member in content.getmembers()), most)
        try:
            content.extractall(folder, filter="data")
        except tarfile.FilterError as error:
            raise DataError(f"data.url: {archive.name} is refused: {error}") from None


def _check_size(archive: Path, size: int, most: int) -> None:
    if size > most:
        bound = f"more than {most / 1e9:.1f} GB"
        raise DataError(f"data.url: {archive.name} is refused: it would unpack to {size / 1e9:.1f} GB, {bound}")
