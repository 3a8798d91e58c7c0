"""Where everything is written to, whatever the folder is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlresearch.base.errors import UserError
from tlresearch.base.paths import home
from tlresearch.cli import main


@pytest.mark.parametrize("name", ["my home", "run#3", "100%", "ü家", "a%b"])
def test_a_home_may_have_any_name_that_an_address_can_hold(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", str(tmp_path / name))
    assert home() == tmp_path / name


@pytest.mark.parametrize(("name", "odd"), [("what?", "?"), ("a%20b", "%20"), ("%E4", "%E4")])
def test_a_home_that_an_address_would_read_otherwise_is_refused(
    name: str, odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", str(tmp_path / name))
    with pytest.raises(UserError, match="TLRESEARCH_HOME") as caught:
        home()
    assert f"holds '{odd}'" in str(caught.value)
    assert main(["run", "digits/transfer"]) == 2
    assert capsys.readouterr().err.startswith("error: TLRESEARCH_HOME: ")
    assert not list(tmp_path.iterdir())
