"""A page: the result of a command as a value that a terminal, a notebook, Markdown and HTML can show.

Results (`RunResult`, `Comparison`, …) are `Shown`: they have a page, and a notebook shows that page for them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from rich.console import RenderableType

from tlresearch.show import html, markdown, terminal
from tlresearch.show.elements import Contents, Element, Section


class Shown(ABC):
    """Something with a page. Notebooks, `print` and rich show the page."""

    @property
    @abstractmethod
    def page(self) -> Page:
        """The page about it."""

    @property
    def exit_code(self) -> int:
        """Exit code of the command that has found it."""
        return 0

    def __rich__(self) -> RenderableType:
        """The page for rich's `Console.print`."""
        return terminal.Sheet(self.page)

    def __str__(self) -> str:
        """The page as plain text, as in a log."""
        return terminal.plain_text(self.page)

    def _repr_html_(self) -> str:
        """The page for a notebook."""
        return html.fragment(self.page)

    def _repr_markdown_(self) -> str:
        """The page for a notebook that shows no HTML."""
        return markdown.render(self.page)


@dataclass(frozen=True)
class Page(Contents, Shown):
    """The contents of a page (see `Contents`) with the methods that show it."""

    @property
    def page(self) -> Page:
        """Itself."""
        return self


def page_of(title: str, *elements: Element) -> Page:
    """Makes a page with one section."""
    return Page(title, (Section("", elements),))
