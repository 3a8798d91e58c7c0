"""`make chaos`: causes every fault for real, and prints what became of it; exit code 1 unless nothing came of any."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from random import Random

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.outcome import Outcome, Row, table
from tests.chaos.surroundings import Surroundings, empty_tables
from tests.nursery import Nursery


def main(arguments: list[str] | None = None) -> int:
    """Runs the faults that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--moments", type=int, default=50, help="how often processes are killed; others in proportion")
    parser.add_argument("--only", nargs="*", default=list(FAULTS), metavar="NAME", help=", ".join(FAULTS))
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the random moments; printed")
    parser.add_argument("--write", type=Path, help="a page with the table between its marks: docs/faults.md")
    parser.add_argument("--keep", type=Path, help="a folder in which all projects stay")
    options = parser.parse_args(arguments)
    unknown = set(options.only) - set(FAULTS)
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(FAULTS)}")
    warnings.simplefilter("ignore")
    print(f"seed {options.seed}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["TLRESEARCH_HOME"] = str(folder / "none")
        tables = empty_tables(Path(temporary) / "tables.db")
        with Nursery() as nursery:
            for name in options.only:
                fault = FAULTS[name]
                around = Surroundings(folder / name, tables, nursery, Random(f"{options.seed} {name}"))
                began = time.monotonic()
                try:
                    found = fault.cause(around, max(1, round(options.moments * fault.share)))
                except pytest.skip.Exception as reason:
                    print(f"skipped   {name}: {reason}", flush=True)
                    continue
                except Exception as error:
                    found = Outcome(lost=1, notes=(f"the fault could not be caused: {type(error).__name__}: {error}",))
                rows.append(Row(fault.title, found, time.monotonic() - began))
                state = "harmless" if found.harmless else "HARM"
                print(f"{state:8}  {name}  {rows[-1].seconds:.0f} s", *found.notes, sep="\n          ", flush=True)
    print(f"\n{table(rows)}\n\n{sum(row.seconds for row in rows) / 60:.1f} minutes")
    if options.write:
        _write(options.write, table(rows))
    return int(not all(row.outcome.harmless for row in rows))


def _write(page: Path, text: str) -> None:
    before, mark, rest = page.read_text().partition("<!-- chaos -->")
    after = rest.partition("<!-- /chaos -->")[2]
    page.write_text(f"{before}{mark}\n\n{text}\n\n<!-- /chaos -->{after}")


if __name__ == "__main__":
    sys.exit(main())
