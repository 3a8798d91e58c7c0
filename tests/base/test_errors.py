"""An error in one line: what it says, whatever library it comes from, and none of its secrets."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError

from tlresearch.base.errors import ConfigError, first_line, nearest, one_line


def test_all_lines_become_one() -> None:
    assert one_line("a\n   b\n\n c ") == "a b c"
    assert one_line(ValueError()) == "ValueError"
    assert one_line("x" * 50, 10) == f"{'x' * 10}…"


def test_a_config_error_gives_its_problems() -> None:
    assert one_line(ConfigError(["optimizer.lr: is 0", "data.root: is missing"], "a.yaml")) == (
        "optimizer.lr: is 0; data.root: is missing"
    )


def test_a_database_error_gives_neither_its_statement_nor_advice() -> None:
    error = OperationalError("INSERT INTO runs VALUES (?)", (1,), Exception("database is locked"))
    error.add_detail("raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block")
    assert first_line(error) == "(builtins.Exception) database is locked"
    assert "raised as a result" not in first_line(ValueError("(raised as a result of x)\nreally\nmore"))
    assert first_line(ValueError("(raised as a result of x)\nreally\nmore")) == "really"


def test_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "correct-horse")
    for line in (one_line("it said correct-horse"), first_line(ValueError("it said correct-horse\nmore"))):
        assert line == "it said ***"


@pytest.mark.parametrize(("word", "meant"), [("AdamW", "adamw"), ("adam_w", "adamw"), ("Adam", "adam")])
def test_the_nearest_word_is_the_one_in_other_letters(word: str, meant: str) -> None:
    assert nearest(word, ["sgd", "adam", "adamw"]) == f" (did you mean '{meant}'?)"
