"""`tlresearch register`."""

from __future__ import annotations

import argparse

from tlresearch.commands.shared import console_of_leader, store_argument

EXAMPLE = "tlresearch register 3f2a9c1b ants_bees --alias champion"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("run", help="run id, unique beginning of it, or run name")
    parser.add_argument("name", help="name in the registry; it is made if it is new")
    parser.add_argument("--alias", help="alias that stands for this version from now on, such as champion")
    store_argument(parser)


def command(options: argparse.Namespace) -> int:
    """Registers the model of a run by a name, with its lineage: run, data, weights, code."""
    from tlresearch.tracking.records import Runs
    from tlresearch.tracking.registry import register

    console = console_of_leader()
    done = register(Runs(), options.run, options.name, options.alias)
    state = "registered" if done.new else "was registered already"
    console.print(f"{done.name} version {done.version} {state}", highlight=False, markup=False)
    for key, value in sorted(done.tags.items()):
        console.print(f"  {key}: {value}", highlight=False, markup=False, soft_wrap=True)
    address = f"models:/{done.name}@{options.alias}" if options.alias else f"models:/{done.name}/{done.version}"
    console.print(f"use it as {address}", highlight=False, markup=False, soft_wrap=True)
    return 0
