"""Signs that the encoding of a stream lacks are written as the nearest ASCII text, without a traceback."""

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
    """Replaces the signs that tlresearch uses by the nearest ASCII text; letters of any language are kept."""
    return text.translate(_ASCII)


def survive_encodings() -> None:
    """Makes the standard streams replace what their encoding lacks, for any library that writes to them."""
    codecs.register_error("tlresearch.ascii", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="tlresearch.ascii")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = in_ascii(error.object[error.start : error.end])
    return text.encode("ascii", "replace").decode(), error.end
