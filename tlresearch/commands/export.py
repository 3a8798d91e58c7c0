"""`tlresearch export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tlresearch.commands.shared import Outcome, store_argument

EXAMPLE = "tlresearch export 3f2a9c1b --to onnx --int8 static\ntlresearch export 3f2a9c1b --to onnx pt2 --half fp16"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("run", help="run id, unique beginning of it, or run name")
    formats = ("onnx", "pt2", "safetensors")
    parser.add_argument("--to", nargs="+", choices=formats, default=["onnx"], help="formats (default onnx)")
    parser.add_argument("--int8", nargs="+", choices=("dynamic", "static"), default=[], help="ONNX in int8 too")
    parser.add_argument(
        "--half", nargs="+", choices=("fp16", "bf16"), default=[], help="each format in 16 bit too (bf16: all but onnx)"
    )
    parser.add_argument("--out", type=Path, help="folder to write to (default exports/NAME-ID)")
    tolerated = "that is tolerated; a form beyond it is refused and removed (default by number format)"
    parser.add_argument("--tolerance", type=float, help=f"largest difference of a probability {tolerated}")
    parser.add_argument("--changed", type=float, help=f"largest share of changed answers {tolerated}")
    parser.add_argument("--samples", type=int, help="measure on so many samples of the split (default all; 100 masks)")
    store_argument(parser)


def command(options: argparse.Namespace) -> Outcome:
    """Writes a run's model as ONNX, pt2 or safetensors, if it answers as the original does."""
    from tlresearch.export.shipping import export_run, forms_of

    return export_run(
        options.run,
        forms_of(options.to, options.int8, options.half),
        out=options.out,
        tolerance=options.tolerance,
        changed=options.changed,
        samples=options.samples,
    )
