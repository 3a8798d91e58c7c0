"""Terminals of every width: no number is cut, no head unreadable, what has no room is turned, split or named."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from tlresearch.show import terminal
from tlresearch.show.elements import Cell, Column, Command, Facts, Note, Section, Table, Text, numbers
from tlresearch.show.page import Page, page_of

METRICS = ("loss", "accuracy", "balanced accuracy", "calibration error", "macro f1", "top 5 accuracy", "auroc")
SPLITS = ("train", "val", "test")


def lines(page: Page, width: int) -> list[str]:
    return terminal.plain_text(page, width).splitlines()


def metrics(count: int, rows: int, note: str = "0.850 to 0.950") -> tuple[Page, list[str]]:
    """A table with so many columns and rows, and the text of each of its numbers."""
    names = [f"{METRICS[at % len(METRICS)]} {at}" for at in range(count)]
    values = [[0.1 + 0.0001 * (row * count + at) for at in range(count)] for row in range(rows)]
    entries = tuple((f"row {row}", *(Cell(value, note=note) for value in values[row])) for row in range(rows))
    table = Table((Column(""), *numbers(names, ".4f")), entries, title="a table", more="`tlresearch report` shows them")
    return page_of("", table), [f"{value:.4f}" for row in values for value in row]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize(("count", "rows"), [(2, 3), (5, 3), (9, 4), (9, 12), (20, 3), (30, 30)])
def test_numbers_are_whole_or_their_column_is_named(width: int, count: int, rows: int) -> None:
    page, values = metrics(count, rows)
    shown = lines(page, width)
    assert max(map(cell_len, shown)) <= width
    text = "\n".join(shown)
    assert "…" not in text
    missing = [value for value in values if value not in text]
    hidden = int(match[1]) if (match := re.search(r"(\d+) more columns: ", text)) else 0
    assert len(missing) == hidden * rows
    if hidden:
        together = " ".join(text.split())
        assert all(f"{METRICS[at % len(METRICS)]} {at}" in together for at in range(count - hidden, count))
        assert "`tlresearch report` shows them" in together


def test_few_rows_with_many_columns_are_turned() -> None:
    page, _ = metrics(9, 3, note="")
    shown = lines(page, 60)
    assert shown[2].split() == ["row", "0", "row", "1", "row", "2"]
    assert shown[4].split() == ["loss", "0", "0.1000", "0.1009", "0.1018"]


def test_a_head_breaks_between_words_and_keeps_its_arrow() -> None:
    columns = (Column("run"), *(Column(f"calibration_error_{n}", ".4f", better="lower") for n in range(3)))
    shown = lines(page_of("", Table(columns, tuple((f"{n}", 0.5, 0.25, 0.125) for n in range(8)))), 45)
    assert [line.rstrip() for line in shown[1:3]] == [
        "     calibration_  calibration_  calibration_",
        "run     error_0\u00a0↓     error_1\u00a0↓     error_2\u00a0↓",
    ]


def test_long_texts_wrap_at_words_and_paths_at_slashes() -> None:
    text = "photos/of/ants/and/bees/somewhere/far/down/below.jpg cannot be read, since it holds no picture at all"
    table = Table((Column("name"), Column("problem"), Column("n", "d")), (("check", text, 12),))
    shown = lines(page_of("", table), 50)
    assert max(map(cell_len, shown)) <= 50
    cells = [line[7:-4].rstrip() for line in shown[3:]]
    assert " ".join(cells).replace("/ ", "/") == text
    assert cells[0].endswith("/")


def test_a_log_gets_wide_lines_rather_than_fewer_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    page, values = metrics(30, 30)
    stream = io.StringIO()
    terminal.show(terminal.open_console(stream), page)
    text = stream.getvalue()
    assert all(value in text for value in values)
    assert "more columns" not in text
    assert "\x1b" not in text
    monkeypatch.setenv("COLUMNS", "80")
    stream = io.StringIO()
    terminal.show(terminal.open_console(stream), page)
    assert max(map(cell_len, stream.getvalue().splitlines())) <= 80


def test_commands_and_paths_are_never_broken() -> None:
    path = "/a" * 60
    page = page_of("", Facts((("figure", path),)), Command(f"make run EXP={path}", "run it"), Note(path))
    assert lines(page, 40) == [f"  figure  {path}", f"  run it  make run EXP={path}", f"  {path}"]


def test_a_terminal_without_utf8_gets_ascii() -> None:
    table = Table((Column("a → b"), Column("x", ".1f", better="higher")), (("…", Cell(0.5, 0.1, starred=True)),))
    page = Page("★", (Section("ü – Größe", (Text("±"), table)),))
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    terminal.show(Console(file=stream, width=60, legacy_windows=False), Page("★", (Section("–", page.elements),)))
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "a -> b" in text
    assert "* 0.5 +- 0.1" in text
    assert "x ^" in text


def test_text_in_brackets_is_no_markup() -> None:
    assert "[red]x[/red] [not a tag" in terminal.plain_text(page_of("", Note("[red]x[/red] [not a tag")))


def test_rich_and_print_show_a_page() -> None:
    page = page_of("title", Table((Column("a"), Column("b", "d")), (("x", 1),)))
    stream = io.StringIO()
    Console(file=stream, width=40).print(page)
    assert "title" in stream.getvalue()
    assert "x  1" in stream.getvalue()
    assert str(page) == stream.getvalue()
