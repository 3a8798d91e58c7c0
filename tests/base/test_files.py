"""One lock, one write in one step, one hash, with real processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlresearch.base.files import locked, replacing, sha256, take_lock, write

HOLDER = """
import os, sys, time
from pathlib import Path
from tlresearch.base.files import take_lock

lock = take_lock(Path(sys.argv[1]))
if sys.argv[2] == "alone" or os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def holding(path: Path, way: str) -> Iterator[str]:
    """Has a process hold the lock of a file and gives what it says; it is killed at the end."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, path, way], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def test_a_lock_is_held_by_one_process_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.lock"
    with holding(path, "alone"):
        assert take_lock(path, 0) is None
        with locked(path, 0.05) as held:
            assert not held
    with locked(path, 0) as held:
        assert held


def test_a_forked_process_does_not_hold_the_lock_of_its_parent(tmp_path: Path) -> None:
    with holding(tmp_path / "a.lock", "forks") as child:
        pass
    try:
        os.kill(int(child), 0)  # it lives on, as a data loader's process does for a while
        with locked(tmp_path / "a.lock", 0) as held:
            assert held
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_another_thread_waits_and_may_release(tmp_path: Path) -> None:
    lock = take_lock(tmp_path / "a.lock")
    assert lock is not None
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(take_lock(tmp_path / "a.lock", 0)))
    thread.start()
    thread.join()
    assert answers == [None]
    releasing = threading.Thread(target=lock.release)
    releasing.start()
    releasing.join()
    with locked(tmp_path / "a.lock", 0) as held:
        assert held


def test_a_thread_that_would_wait_for_itself_is_told(tmp_path: Path) -> None:
    with locked(tmp_path / "a.lock"), pytest.raises(RuntimeError, match="Deadlock"):
        take_lock(tmp_path / "a.lock")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "ä.txt"
    write(path, "größer\n", b"\xff", memoryview(b"end"))
    assert path.read_bytes() == "größer\n".encode() + b"\xffend"

    def stop_halfway() -> None:
        with replacing(path) as file:
            file.write(b"half")
            file.flush()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_halfway()
    assert path.read_bytes().endswith(b"end")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write(tmp_path / "folder", b"a file")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_threads_that_write_the_same_file_leave_one_whole(tmp_path: Path) -> None:
    contents = [bytes([65 + number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=write, args=(tmp_path / "a", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert len(list(tmp_path.iterdir())) == 1


def test_the_hash_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
