from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tlresearch.base.errors import DataError
from tlresearch.data import files
from tlresearch.data.base import Data
from tlresearch.modality import decoding

Build = Callable[..., Data]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every decoded file."""
    calls: list[int] = []
    measure = decoding.measure

    def counting(content: bytes) -> object:
        calls.append(len(content))
        return measure(content)

    monkeypatch.setattr(files, "measure", counting)
    return calls


@pytest.fixture
def settled(folder: Callable[..., Path]) -> Path:
    """A data folder old enough for its files to be remembered."""
    root = folder({"cat": 3, "dog": 3})
    time.sleep(0.05)
    return root


def test_unchanged_files_are_verified_once(settled: Path, build: Build, decoded: list[int]) -> None:
    first = build(settled)
    assert len(decoded) == 6
    assert build(settled).fingerprint == first.fingerprint
    assert len(decoded) == 6


def test_a_changed_file_is_read_again_even_if_its_time_is_set_back(
    settled: Path, build: Build, decoded: list[int]
) -> None:
    build(settled)
    path = settled / "cat" / "cat1.png"
    stat = path.stat()
    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DataError, match=r"cat/cat1\.png"):
        build(settled)
    assert len(decoded) == 7


def test_an_unreadable_file_is_never_remembered(settled: Path, build: Build) -> None:
    (settled / "cat" / "cat1.png").write_bytes(b"x")
    time.sleep(0.05)
    for _ in range(2):
        assert set(build(settled, on_error="skip").skipped) == {"cat/cat1.png"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1, "files": 3}', '{"version": 99, "files": {}}'])
def test_a_broken_cache_is_ignored(settled: Path, build: Build, home: Path, content: str, decoded: list[int]) -> None:
    first = build(settled)
    (cache,) = (home / "cache" / "images").iterdir()
    cache.write_text(content)
    assert build(settled).fingerprint == first.fingerprint
    assert len(decoded) == 12
    assert json.loads(cache.read_text())["version"] == 2


def test_a_broken_entry_is_ignored(settled: Path, build: Build, home: Path) -> None:
    first = build(settled)
    (cache,) = (home / "cache" / "images").iterdir()
    content = json.loads(cache.read_text())
    content["files"] = {name: [*entry[:3], "no hash", 1, 1, 1, 0, 0, 8] for name, entry in content["files"].items()}
    cache.write_text(json.dumps(content))
    assert build(settled).fingerprint == first.fingerprint


def test_a_cache_that_cannot_be_written_does_not_matter(
    settled: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blocked").touch()
    monkeypatch.setenv("TLRESEARCH_HOME", str(tmp_path / "blocked"))
    assert len(build(settled).splits["train"]) == 4
