"""What is written to a stream whose encoding lacks a sign: the nearest in ASCII, never a traceback."""

from __future__ import annotations

import codecs
import io
import sys

_SIGNS = {
    "+-": "±",
    "...": "…",
    "->": "→",
    "<-": "←",
    "^": "↑",
    "v": "↓",
    "*": "★•",
    "-": "–—─━╺╸",
    "|": "│┃",
    "x": "×✓",
    "'": "‘’",
    '"': "“”",
    ".": "·",
    " ": "\u00a0\u202f",
}
_ASCII = str.maketrans({sign: text for text, signs in _SIGNS.items() for sign in signs})


def in_ascii(text: str) -> str:
    """A text with the signs that tlresearch uses replaced by the nearest in ASCII; letters of others are kept."""
    return text.translate(_ASCII)


def survive_encodings() -> None:
    """Lets the standard streams write in ASCII what their encoding lacks, whichever library writes it."""
    codecs.register_error("tlresearch.ascii", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="tlresearch.ascii")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = in_ascii(error.object[error.start : error.end])
    return text.encode("ascii", "replace").decode(), error.end
