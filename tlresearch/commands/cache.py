"""`tlresearch cache`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tlresearch.base.errors import UserError
from tlresearch.commands.shared import console_of_leader

if TYPE_CHECKING:
    from tlresearch.activations.store import ActivationStore, Entry
    from tlresearch.show.page import Page

EXAMPLE = "tlresearch cache ls\ntlresearch cache rm 3f2a9c1b\ntlresearch cache verify"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("action", choices=["ls", "rm", "verify"], help="list, remove, or check the hashes")
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help="beginnings of entry names (default: all entries)")


def command(options: argparse.Namespace) -> int:
    """Lists, checks or removes stored activations."""
    import shutil

    from tlresearch.activations.store import default_store
    from tlresearch.show.terminal import show

    store = default_store()
    console = console_of_leader()
    entries = _entries(store, options.entries)
    if options.action == "rm":
        for entry in entries:
            shutil.rmtree(entry.path, ignore_errors=True)
        console.print(f"removed {len(entries)} entries, {sum(entry.size for entry in entries) / 1e9:.2f} GB")
        return 0
    if options.action == "verify":
        damaged = [entry.name for entry in entries if not store.verify(entry)]
        console.print(f"{len(entries) - len(damaged)} entries are sound, {len(damaged)} were damaged and removed")
        return 1 if damaged else 0
    show(console, _page(store, entries))
    return 0


def _entries(store: ActivationStore, beginnings: Sequence[str]) -> list[Entry]:
    """Returns the entries whose names have these beginnings, least recently used first; without any, all entries."""
    entries = store.entries()
    missing = [text for text in beginnings if not any(entry.name.startswith(text) for entry in entries)]
    if missing:
        raise UserError(f"cache: no entry begins with {', '.join(missing)}; `tlresearch cache ls` shows all")
    return [entry for entry in entries if not beginnings or entry.name.startswith(tuple(beginnings))]


def _page(store: ActivationStore, entries: Sequence[Entry]) -> Page:
    from datetime import datetime

    from tlresearch.show.elements import Column, Table
    from tlresearch.show.page import page_of

    rows = []
    for entry in entries:
        facts = entry.key
        stages = facts["stages"]
        content = f"boundary {facts['boundary']}: {stages[0]} … {stages[-1]}" if stages else "decoded inputs"
        view = f", view {facts['view']}" if "view" in facts else ""
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        precision, size = facts.get("precision", ""), entry.size / 1e6
        rows.append((entry.name[:8], size, facts["split"], content + view, precision, facts["data"][:8], used))
    columns = (
        Column("entry"),
        Column("size", ".1f", unit="MB"),
        Column("split"),
        Column("content"),
        Column("precision"),
        Column("data"),
        Column("last used"),
    )
    total = sum(entry.size for entry in entries) / 1e9
    return page_of("", Table(columns, tuple(rows), title=f"{store.root}: {len(entries)} entries, {total:.2f} GB"))
