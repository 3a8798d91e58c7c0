"""A page as HTML: a single self-contained file, or a fragment for a notebook."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from tlresearch.show.elements import Contents, as_cell


def document(page: Contents) -> str:
    """Returns one HTML file with embedded figures. Everything in names and descriptions is escaped."""
    return str(_template().render(page=page, whole=True, as_cell=as_cell))


def fragment(page: Contents) -> str:
    """Returns the page without the frame of a document, for a notebook."""
    return str(_template().render(page=page, whole=False, as_cell=as_cell))


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    text = files("tlresearch.show").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text)
