"""HTML: nothing that was recorded is markup, nothing is loaded from elsewhere, and a notebook's part has no frame."""

from __future__ import annotations

import re

from tlresearch.show import html
from tlresearch.show.elements import (
    Badge,
    Cell,
    Column,
    Command,
    Facts,
    Figure,
    Listing,
    Note,
    Number,
    Section,
    Table,
    Text,
)
from tlresearch.show.page import Page

EVIL = "<img src=x onerror=alert(1)>"
OUTSIDE = re.compile(r"(?:src|href)=[\"'](?!data:|#)|url\(|@import|<script|<link", re.IGNORECASE)


def evil() -> Page:
    table = Table((Column(EVIL, unit=EVIL),), ((Cell(EVIL, note=EVIL),),), title=EVIL, note=EVIL)
    elements = (table, Facts(((EVIL, EVIL),)), Listing(EVIL, EVIL), Note(EVIL), Text(EVIL), Command(EVIL, EVIL))
    section = Section(EVIL, (*elements, Figure(EVIL)))
    return Page(EVIL, (section,), EVIL, EVIL, (Badge(EVIL),), (Number(EVIL, EVIL, EVIL),), EVIL)


def test_nothing_that_was_recorded_is_markup() -> None:
    document = html.document(evil())
    assert "<img" not in document
    assert document.count("&lt;img") >= 20


def test_a_figure_is_inside_the_page() -> None:
    document = html.document(Page("p", (Section("", (Figure("what", b"\x89PNG"),)),)))
    assert 'src="data:image/png;base64,iVBORw=="' in document
    assert not OUTSIDE.findall(document)


def test_a_notebook_gets_a_part_and_the_browser_a_document() -> None:
    page = Page("p", (Section("", (Text("words"),)),))
    fragment = page._repr_html_()
    assert "<html" not in fragment
    assert "<body" not in fragment
    assert "words" in fragment
    assert html.document(page).startswith("<!doctype html>")


def test_cells_are_typed() -> None:
    columns = (Column("run"), Column("val/loss", ".3f", unit="nats", better="lower"), Column("key", code=True))
    table = Table(columns, (("a", Cell(0.5, 0.125, "0.1 to 0.9", starred=True), "k"),))
    document = html.fragment(Page("p", (Section("", (table,)),)))
    assert "val/loss (nats)\u00a0↓" in document
    assert "★ 0.500 ± 0.125<small>0.1 to 0.9</small>" in document
    assert "<code>k</code>" in document
