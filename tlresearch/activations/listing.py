"""What the activation store holds, for `tlresearch cache`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.table import Table

from tlresearch.activations.store import ActivationStore, Entry
from tlresearch.base.errors import UserError


def find_entries(store: ActivationStore, beginnings: Sequence[str]) -> list[Entry]:
    """Returns the entries whose keys begin so; all of them if nothing is named.

    Raises:
        UserError: If no entry begins so.
    """
    entries = store.entries()
    missing = [text for text in beginnings if not any(entry.key.startswith(text) for entry in entries)]
    if missing:
        raise UserError(f"cache: no entry begins with {', '.join(missing)}; `tlresearch cache ls` shows all")
    return [entry for entry in entries if not beginnings or entry.key.startswith(tuple(beginnings))]


def as_table(store: ActivationStore) -> Table:
    """Returns the entries as a table, least recently used first."""
    entries = store.entries()
    total = sum(entry.size for entry in entries) / 1e9
    title = f"{store.root}: {len(entries)} entries, {total:.2f} GB"
    table = Table("entry", "data", "split", "holds", "precision", "MB", "last used", title=title, title_justify="left")
    for entry in entries:
        about = entry.about
        stages = about["stages"]
        holds = f"boundary {about['boundary']}: {stages[0]} … {stages[-1]}" if stages else "decoded inputs"
        view = f", view {about['view']}" if "view" in about else ""
        table.add_row(
            entry.key[:8],
            about["data"][:8],
            about["split"],
            holds + view,
            about.get("precision", ""),
            f"{entry.size / 1e6:.1f}",
            datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M"),
        )
    return table
