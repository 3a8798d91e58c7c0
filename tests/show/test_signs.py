"""Output on a terminal that is not UTF-8: signs become ASCII, and nothing ends with a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
from tlresearch.show.signs import survive_encodings

survive_encodings()
print("0.5 ± 0.1 → ★ … ✂ 日本 café")
"""


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "0.5 +- 0.1 -> * ... ? ?? caf?"),
        ("latin-1", "0.5 ± 0.1 -> * ... ? ?? café"),
        ("utf-8", "0.5 ± 0.1 → ★ … ✂ 日本 café"),
    ],
)
def test_what_an_encoding_lacks_is_written_in_ascii(encoding: str, shown: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=True)
    assert done.stdout.decode(encoding).strip() == shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_commands_print_without_utf8(encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "80"}
    command = [sys.executable, "-m", "tlresearch", "inspect", "small_cnn"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(encoding)
    assert b"stages at stage granularity" in done.stdout
