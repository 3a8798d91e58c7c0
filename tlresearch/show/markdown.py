"""A page as Markdown, for MLflow's artifacts, the documentation and notebooks without HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tlresearch.show.elements import (
    Command,
    Contents,
    Element,
    Facts,
    Figure,
    Listing,
    Note,
    Section,
    Table,
    Text,
    as_cell,
)

_CODE_OR_TAG = re.compile(r"(?P<code>```.*?```|`[^`]*`|<br>)|<(?=[A-Za-z/!?])", re.DOTALL)


def render(page: Contents, *, level: int = 1) -> str:
    """Returns the page as Markdown.

    Args:
        page: The page.
        level: Level of its heading; 0 omits title and description, for a part of another document.
    """
    blocks: list[str] = []
    if level:
        head = [f"{'#' * level} {page.title}"] if page.title else []
        badges = ", ".join(badge.text for badge in page.badges)
        blocks += [*head, *filter(None, (badges, page.description))]
    if page.numbers:
        blocks.append("\n".join(f"- {n.name}: {n.value}{f' ({n.note})' if n.note else ''}" for n in page.numbers))
    for part in page.shown:
        blocks += section(part, level=level + 1)
    blocks += [page.footer] if page.footer else []
    return "\n\n".join(_escape_tags(block) for block in blocks) + "\n"


def section(part: Section, *, level: int) -> list[str]:
    """Returns the blocks of a section, its title first."""
    blocks = [f"{'#' * level} {part.title}"] if part.title else []
    items: list[str] = []
    for element in part.elements:
        if isinstance(element, Note | Facts | Command):  # successive elements of these kinds become one list
            items += _items(element)
            continue
        blocks += ["\n".join(items)] if items else []
        items = []
        blocks += _blocks(element)
    return [*blocks, "\n".join(items)] if items else blocks


def table(element: Table) -> str:
    """Returns a table alone: head, line of alignment, and rows."""
    return "\n".join(_table(element))


def _items(element: Note | Facts | Command) -> list[str]:
    if isinstance(element, Note):
        return [f"- {element.text}"]
    if isinstance(element, Command):
        return [f"- {element.purpose}: `{element.command}`"]
    return [f"- {name.strip()}: {value}" for name, value in element.pairs]


def _blocks(element: Element) -> Iterator[str]:
    if isinstance(element, Text):
        yield element.text
    elif isinstance(element, Table):
        if element.title:
            yield f"{element.title[0].upper()}{element.title[1:]}:"
        yield table(element)
        if element.note:
            yield element.note
    elif isinstance(element, Figure):
        yield f"![{element.caption}]({element.file or element.source})"
    elif isinstance(element, Listing):
        yield f"{element.name}:\n\n```\n{element.text.rstrip()}\n```"


def _table(element: Table) -> Iterator[str]:
    yield _row([column.head for column in element.columns])
    yield _row([{"left": "---", "right": "---:"}[column.side] for column in element.columns])
    for number, row in enumerate(element.rows):
        texts = []
        for position, entry in enumerate(row):
            cell, text = as_cell(entry), element.text(number, position)
            text = f"`{text}`" if element.columns[position].code and text else text
            text = f"{text} ({cell.note})" if cell.note and text else text or cell.note
            text = f"★ {text}" if cell.starred else text
            texts.append(f"**{text}**" if number == element.marked and text else text)
        yield _row(texts)


def _row(texts: list[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", "<br>") for text in texts) + " |"


def _escape_tags(block: str) -> str:
    """Escapes HTML tags in recorded names and descriptions; code, and the line breaks that we put in cells, stay."""
    return _CODE_OR_TAG.sub(lambda match: match["code"] or "&lt;", block)
