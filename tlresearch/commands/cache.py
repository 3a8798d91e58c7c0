"""`tlresearch cache`."""

from __future__ import annotations

import argparse

from tlresearch.commands.shared import console_of_leader

EXAMPLE = "tlresearch cache ls\ntlresearch cache rm 3f2a9c1b\ntlresearch cache verify"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("action", choices=["ls", "rm", "verify"], help="list, remove, or check the hashes")
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help="beginnings of keys (default: all entries)")


def command(options: argparse.Namespace) -> int:
    """Lists, checks or removes stored activations."""
    import shutil

    from tlresearch.activations.listing import as_table, find_entries
    from tlresearch.activations.store import default_store

    store = default_store()
    console = console_of_leader()
    entries = find_entries(store, options.entries)
    if options.action == "rm":
        for entry in entries:
            shutil.rmtree(entry.path, ignore_errors=True)
        console.print(f"removed {len(entries)} entries, {sum(entry.size for entry in entries) / 1e9:.2f} GB")
        return 0
    if options.action == "verify":
        damaged = [entry.key for entry in entries if not store.verify(entry)]
        console.print(f"{len(entries) - len(damaged)} entries are sound, {len(damaged)} were damaged and removed")
        return 1 if damaged else 0
    console.print(as_table(store))
    return 0
