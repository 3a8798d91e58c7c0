"""Markdown: what a reader of MLflow's artifacts and the documentation gets."""

from __future__ import annotations

from tlresearch.show import markdown
from tlresearch.show.elements import Cell, Column, Command, Facts, Listing, Note, Section, Table, Text
from tlresearch.show.page import Page


def test_a_page_has_headings_tables_and_lists() -> None:
    table = Table(
        (Column("run"), Column("accuracy", ".3f"), Column("key", code=True)),
        (("a|b", Cell(0.5, 0.1, "0.4 to 0.6"), "x"), ("c", None, "")),
        title="of all",
        note="a note",
    )
    page = Page(
        "Title",
        (Section("", (Text("First."),)), Section("More", (table, Note("n"), Facts((("k", "v"),)), Command("c", "do")))),
    )
    assert markdown.render(page) == (
        "# Title\n\nFirst.\n\n## More\n\nOf all:\n\n"
        "| run | accuracy | key |\n| --- | ---: | --- |\n"
        "| a\\|b | 0.500 ± 0.100 (0.4 to 0.6) | `x` |\n| c | - |  |\n\n"
        "a note\n\n- n\n- k: v\n- do: `c`\n"
    )


def test_recorded_names_are_no_html() -> None:
    text = markdown.render(Page("<script>x</script>", (Section("", (Listing("c", "a < b"), Text("p < 0.5"))),)))
    assert "<script>" not in text
    assert "a < b" in text
    assert "p < 0.5" in text
