"""A page as HTML: a file that needs nothing else, or a part of a notebook."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from tlresearch.show.elements import Contents, as_cell


def document(page: Contents) -> str:
    """One HTML file with its figures in it; whatever names and descriptions hold, it is text to the browser."""
    return str(_template().render(page=page, whole=True, as_cell=as_cell))


def fragment(page: Contents) -> str:
    """The page without a frame, for a notebook."""
    return str(_template().render(page=page, whole=False, as_cell=as_cell))


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    text = files("tlresearch.show").joinpath("page.html.jinja").read_text(encoding="utf-8")
    surroundings = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return surroundings.from_string(text)
