"""Files that are almost right: stretches overwritten, cut out, repeated or cut off, most often in the header."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tlresearch.base.errors import UserError

_BYTES = [b"", b"\x00", b"\xff", b"\x7f", b"\x80", b"\x01", b"\x00" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x00" * 64]
_CHANGE = st.tuples(
    st.sampled_from(["put", "put", "put", "insert", "cut", "end", "repeat"]),
    st.one_of(st.integers(0, 64), st.integers(0, 400), st.integers(0, 100_000)),
    st.one_of(st.sampled_from(_BYTES), st.binary(min_size=1, max_size=4)),
)


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """The content of a file with up to six changes."""
    return st.lists(_CHANGE, min_size=1, max_size=6).map(lambda changes: _apply(content, changes))


def mutated_text(content: str, pieces: list[str]) -> st.SearchStrategy[bytes]:
    """A text in UTF-8 with pieces put in somewhere, in front of changes to its bytes."""
    piece = st.tuples(st.integers(0, 10_000), st.integers(0, 8), st.sampled_from(pieces))

    def put(changes: list[tuple[int, int, str]]) -> bytes:
        whole = content
        for start, length, new in changes:
            at = start % (len(whole) + 1)
            whole = whole[:at] + new + whole[at + length :]
        return whole.encode("utf-8", "surrogatepass")

    return st.lists(piece, min_size=1, max_size=5).map(put).flatmap(lambda text: st.just(text) | mutated(text))


def _apply(content: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, start, new in changes:
        at = start % (len(content) + 1)
        length = len(new) or 8
        if kind == "end":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + new + content[at:]
        elif kind == "cut":
            content = content[:at] + content[at + length :]
        elif kind == "repeat":
            content = content[: at + length] + content[at:]
        else:
            content = content[:at] + new + content[at + len(new) :]
    return content


def readable(text: str) -> None:
    """What is said of a bad file must be one line of readable length."""
    assert text
    assert len(text.splitlines()) == 1, text
    assert len(text) < 3000, text[:200]


def value_or(kind: type[Exception], read: Callable[[], Any]) -> Any:
    """What is read, or ``None`` where it was refused in one line by an error of this kind."""
    try:
        return read()
    except kind as error:
        readable(str(error))
        return None


def table_or_error(read: Callable[[], Any]) -> Any:
    """What is read, or ``None`` where it was refused as a mistake of the user's."""
    return value_or(UserError, read)
