"""Where a user lets a command write: a place that cannot be written is a mistake in one line, whatever the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recorded import Recorded
from tlresearch.cli import main


def test_a_place_that_cannot_be_written_is_named(
    recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    lines = (
        (["report", recorded.run, "--out", str(tmp_path)], "Is a directory"),
        (["report", recorded.run, "--out", str(tmp_path / "file" / "x.html")], "File exists"),
        (["export", recorded.run, "--to", "onnx", "--out", str(tmp_path / "file")], "File exists"),
    )
    for line, why in lines:
        assert main(line) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"error: --out: {tmp_path}")
        assert said.endswith(why)
    assert (tmp_path / "file").read_text() == "x"
