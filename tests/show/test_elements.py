"""The elements of a page are plain values; the commands among them are those that their reader can type."""

from __future__ import annotations

import pytest

from tlresearch.show.elements import typed


def test_under_make_a_command_is_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKELEVEL", "1")
    assert typed("compare", "photos/rates") == "make compare SWEEP=photos/rates"
    assert typed("ui") == "make ui"


def test_elsewhere_a_command_is_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAKELEVEL", raising=False)
    assert typed("run", "best.yaml") == "tlresearch run best.yaml"
    assert typed("compare", "photos/rates") == "tlresearch compare --sweep photos/rates"
    assert typed("ui") == "tlresearch ui"
