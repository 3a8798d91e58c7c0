"""Entries on disk: found by key, never trusted when damaged or half written, bounded, shared by processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tlresearch.activations import store as stores
from tlresearch.activations.store import ActivationStore, Array

SHAPE = (4, 3)


def ones(array: Array) -> None:
    array[:] = 1.0


def refuse(array: Array) -> None:
    raise AssertionError("the entry was computed although it is stored")


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return ActivationStore(tmp_path / "cache", max_bytes=10_000)


def test_an_entry_is_computed_once(store: ActivationStore) -> None:
    first = store.get({"a": 1}, SHAPE, ones)
    second = store.get({"a": 1}, SHAPE, refuse)
    assert first is not None
    assert second is not None
    assert np.array_equal(first, second)
    assert (store.computed, store.reused) == (1, 1)
    assert store.get({"a": 2}, SHAPE, ones) is not None
    assert store.computed == 2


def test_a_damaged_entry_is_computed_again(store: ActivationStore, caplog: pytest.LogCaptureFixture) -> None:
    store.get({"a": 1}, SHAPE, ones)
    file = store.entries()[0].path / "data.bin"
    file.write_bytes(b"\x00" * file.stat().st_size)
    again = store.get({"a": 1}, SHAPE, ones)
    assert again is not None
    assert float(again.sum()) == 12.0
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "no meta", "meta is no JSON"])
def test_half_an_entry_is_none(damage: str, store: ActivationStore) -> None:
    store.get({"a": 1}, SHAPE, ones)
    path = store.entries()[0].path
    stores._verified.clear()
    if damage == "cut":
        (path / "data.bin").write_bytes(b"\x00" * 8)
    elif damage == "no meta":
        (path / "meta.json").unlink()
    else:
        (path / "meta.json").write_text("{")
    store.get({"a": 1}, SHAPE, ones)
    assert store.computed == 2


def test_verify_removes_what_has_changed(store: ActivationStore) -> None:
    store.get({"a": 1}, SHAPE, ones)
    entry = store.entries()[0]
    assert store.verify(entry)
    with (entry.path / "data.bin").open("r+b") as file:
        file.write(b"\x07")
    assert not store.verify(entry)
    assert store.entries() == []


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, max_bytes=1000)
    shape = (50, 2)  # 400 bytes and some for the description
    for number in (1, 2):
        store.get({"number": number}, shape, ones)
        os.utime(store.entries()[-1].path, (number, number))
    store.get({"number": 1}, shape, refuse)  # used again: now the newest
    store.get({"number": 3}, shape, ones)
    assert {entry.about["number"] for entry in store.entries()} == {1, 3}


def test_what_is_too_large_is_not_kept(store: ActivationStore, caplog: pytest.LogCaptureFixture) -> None:
    assert store.get({"a": 1}, (10_000, 10), refuse) is None
    assert "going on without" in caplog.text


def test_an_unusable_folder_means_going_on_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert ActivationStore(tmp_path / "file", 1000).get({"a": 1}, SHAPE, ones) is None
    assert "going on without" in caplog.text


def test_a_full_disk_means_going_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    store = ActivationStore(tmp_path, 1000)
    assert store.get({"a": 1}, SHAPE, ones) is None
    assert store.entries() == []


def test_a_failing_computation_leaves_nothing(store: ActivationStore) -> None:
    def fail(array: Array) -> None:
        array[:] = 1.0
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.get({"a": 1}, SHAPE, fail)
    assert store.entries() == []


def test_a_process_killed_while_writing_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tlresearch.activations.store import ActivationStore\n"
        "def slow(array):\n    array[:2] = 1.0\n    print('writing', flush=True)\n    time.sleep(60)\n"
        "ActivationStore(Path(sys.argv[1]), 10_000).get({'a': 1}, (4, 3), slow)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = ActivationStore(tmp_path, 10_000)
    assert store.entries() == []
    again = store.get({"a": 1}, SHAPE, ones)
    assert again is not None
    assert float(again.sum()) == 12.0


def _worker(root: str, counter: str) -> None:
    def slow(array: Array) -> None:
        with open(counter, "a") as file:
            file.write("computed\n")
        time.sleep(0.3)
        array[:] = 1.0

    found = ActivationStore(Path(root), 10_000).get({"a": 1}, SHAPE, slow)
    assert found is not None
    assert float(found.sum()) == 12.0


def test_of_several_processes_one_computes_and_the_others_wait(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(str(tmp_path / "cache"), str(counter))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert counter.read_text() == "computed\n"
