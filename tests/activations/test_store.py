"""Entries on disk: found by key, never trusted when damaged or half written, bounded, shared by processes."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from tlresearch.activations import entry as entries
from tlresearch.activations import store as stores
from tlresearch.activations.entry import Stored
from tlresearch.activations.store import ActivationStore
from tlresearch.modality.values import Value

SAMPLES = 4


def ones() -> Iterator[Sequence[Value]]:
    """Two batches of two samples."""
    yield [torch.ones(3), torch.ones(3)]
    yield [torch.ones(3), torch.ones(3)]


def refuse() -> Iterator[Sequence[Value]]:
    raise AssertionError("the entry was computed although it is stored")
    yield []


def total(stored: Stored | None) -> float:
    assert stored is not None
    batch = stored.batch(range(len(stored)))
    assert isinstance(batch, torch.Tensor)
    return float(batch.sum())


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return ActivationStore(tmp_path / "cache", max_bytes=10_000)


def test_an_entry_is_computed_once(store: ActivationStore) -> None:
    first = store.get({"a": 1}, SAMPLES, ones)
    second = store.get({"a": 1}, SAMPLES, refuse)
    assert total(first) == total(second) == 12.0
    assert (store.computed, store.reused) == (1, 1)
    assert store.get({"a": 2}, SAMPLES, ones) is not None
    assert store.computed == 2


def test_a_damaged_entry_is_computed_again(store: ActivationStore, caplog: pytest.LogCaptureFixture) -> None:
    store.get({"a": 1}, SAMPLES, ones)
    file = store.entries()[0].path / "data.bin"
    file.write_bytes(b"\x00" * file.stat().st_size)
    again = store.get({"a": 1}, SAMPLES, ones)
    assert total(again) == 12.0
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "no meta", "meta is no JSON"])
def test_half_an_entry_is_none(damage: str, store: ActivationStore) -> None:
    store.get({"a": 1}, SAMPLES, ones)
    path = store.entries()[0].path
    stores._verified.clear()
    if damage == "cut":
        (path / "data.bin").write_bytes(b"\x00" * 8)
    elif damage == "no meta":
        (path / "meta.json").unlink()
    else:
        (path / "meta.json").write_text("{")
    store.get({"a": 1}, SAMPLES, ones)
    assert store.computed == 2


def test_any_changed_byte_of_any_file_is_noticed(store: ActivationStore) -> None:
    def various() -> Iterator[Sequence[Value]]:
        yield [torch.ones(length) for length in (2, 5, 3, 4)]

    store.get({"a": 1}, SAMPLES, various)
    path = store.entries()[0].path
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    assert len(files) == 3  # description, values, shapes
    changed = 0
    for name, sound in files.items():
        for place in range(0, len(sound), 5):
            for other in files:
                (path / other).write_bytes(files[other])
            (path / name).write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
            try:
                entries.check(path, entries.read_meta(path))
            except ValueError:
                changed += 1
    assert changed == sum(len(range(0, len(sound), 5)) for sound in files.values())


def test_verify_removes_what_has_changed(store: ActivationStore) -> None:
    store.get({"a": 1}, SAMPLES, ones)
    entry = store.entries()[0]
    assert store.verify(entry)
    with (entry.path / "data.bin").open("r+b") as file:
        file.write(b"\x07")
    assert not store.verify(entry)
    assert store.entries() == []


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    def large() -> Iterator[Sequence[Value]]:
        yield [torch.ones(100)] * SAMPLES  # 1600 bytes and some for the description

    store = ActivationStore(tmp_path, max_bytes=4500)
    for number in (1, 2):
        store.get({"number": number}, SAMPLES, large)
        os.utime(store.entries()[-1].path, (number, number))
    store.get({"number": 1}, SAMPLES, refuse)  # used again: now the newest
    store.get({"number": 3}, SAMPLES, large)
    assert {entry.key["number"] for entry in store.entries()} == {1, 3}


def test_what_is_too_large_is_not_kept(store: ActivationStore, caplog: pytest.LogCaptureFixture) -> None:
    computed = []

    def endless() -> Iterator[Sequence[Value]]:
        for number in range(10_000):
            computed.append(number)
            yield [torch.ones(10)]

    assert store.get({"a": 1}, 10_000, endless) is None
    assert "going on without" in caplog.text
    assert len(computed) == 1  # foretold by the first batch
    assert list(store.root.iterdir()) == [store.root / ".locks"]


def test_an_unusable_folder_means_going_on_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert ActivationStore(tmp_path / "file", 1000).get({"a": 1}, SAMPLES, ones) is None
    assert "going on without" in caplog.text


def test_a_full_disk_means_going_on_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ActivationStore(tmp_path, 1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # the system refuses every write, as on a full disk
    try:
        assert store.get({"a": 1}, SAMPLES, ones) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "going on without" in caplog.text
    assert store.entries() == []


def test_a_failing_computation_leaves_nothing(store: ActivationStore) -> None:
    def fail() -> Iterator[Sequence[Value]]:
        yield [torch.ones(3)]
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.get({"a": 1}, SAMPLES, fail)
    assert store.entries() == []


def test_a_process_killed_while_writing_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    code = (
        "import sys, time, torch\nfrom pathlib import Path\nfrom tlresearch.activations.store import ActivationStore\n"
        "def slow():\n    yield [torch.ones(3)] * 2\n    print('writing', flush=True)\n    time.sleep(60)\n"
        "ActivationStore(Path(sys.argv[1]), 10_000).get({'a': 1}, 4, slow)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = ActivationStore(tmp_path, 10_000)
    assert store.entries() == []
    again = store.get({"a": 1}, SAMPLES, ones)
    assert total(again) == 12.0


def _worker(root: str, counter: str) -> None:
    def slow() -> Iterator[Sequence[Value]]:
        with open(counter, "a") as file:
            file.write("computed\n")
        time.sleep(0.3)
        yield from ones()

    assert total(ActivationStore(Path(root), 10_000).get({"a": 1}, SAMPLES, slow)) == 12.0


def test_of_several_processes_one_computes_and_the_others_wait(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(str(tmp_path / "cache"), str(counter))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert counter.read_text() == "computed\n"


def test_named_sequences_of_any_length_come_back_padded(store: ActivationStore) -> None:
    def compute() -> Iterator[Sequence[Value]]:
        for length in (2, 5, 3):
            yield [
                {
                    "states": torch.full((length, 4), float(length), dtype=torch.bfloat16),
                    "mask": torch.ones(length, dtype=torch.bool),
                    "kind": torch.tensor([length]),
                }
            ]

    stored = store.get({"a": 1}, 3, compute)
    assert stored is not None
    batch = stored.batch([2, 0])
    assert isinstance(batch, dict)
    assert batch["states"].shape == (2, 3, 4)
    assert batch["states"].dtype == torch.bfloat16
    assert batch["mask"].tolist() == [[True, True, True], [True, True, False]]
    assert batch["states"][1].float().tolist() == [[2.0] * 4, [2.0] * 4, [0.0] * 4]
    assert batch["kind"].tolist() == [[3], [2]]
    one = stored[1]
    assert isinstance(one, dict)
    assert one["states"].shape == (5, 4)


def test_what_a_reader_writes_does_not_reach_the_file(store: ActivationStore) -> None:
    stored = store.get({"a": 1}, SAMPLES, ones)
    assert stored is not None
    sample = stored[0]
    assert isinstance(sample, torch.Tensor)
    sample.zero_()
    assert store.verify(store.entries()[0])
    assert total(store.get({"a": 1}, SAMPLES, refuse)) == 12.0
