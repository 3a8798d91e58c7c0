"""Many files at once: in order, here or in threads, and the first error ends it."""

from __future__ import annotations

import threading
import time

import pytest

from tlresearch.data.reading import for_each


def test_what_is_quick_is_done_here_and_what_is_slow_in_threads() -> None:
    where: set[str] = set()

    def work(item: int) -> int:
        where.add(threading.current_thread().name)
        if item >= 20:
            time.sleep(0.01)
        return item**2

    assert for_each(work, range(10)) == [item**2 for item in range(10)]
    assert where == {threading.current_thread().name}
    assert for_each(work, range(100)) == [item**2 for item in range(100)]
    assert len(where) > 1
    assert for_each(work, []) == []


@pytest.mark.parametrize("bad", [0, 40])
def test_an_error_is_raised(bad: int) -> None:
    def work(item: int) -> float:
        time.sleep(0.001)
        return 1 / (item - bad)

    with pytest.raises(ZeroDivisionError):
        for_each(work, range(50))
