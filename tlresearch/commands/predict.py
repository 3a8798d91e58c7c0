"""`tlresearch predict`."""

from __future__ import annotations

import argparse
import sys

from tlresearch.commands.shared import Outcome, store_argument

EXAMPLE = (
    "tlresearch predict 3f2a9c1b photos/ --out predictions.csv\n"
    'tlresearch predict linear_probe --text "a film to remember"\n'
    "tlresearch predict models:/cells@champion scan.png --out masks"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("run", help="run id, unique beginning of it, run name, or models:/name@alias")
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="images, sounds or text files, or folders of them; a file is one text, a table one in each row",
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        help="a text to predict, two for a pair; - takes each line of the standard input",
    )
    parser.add_argument("--out", help="file for all columns of the answers, .csv or .jsonl, or a folder for pictures")
    parser.add_argument("--batch", type=int, default=32, help="samples that are read and run at once (default 32)")
    store_argument(parser)


def command(options: argparse.Namespace) -> Outcome:
    """Predicts raw files by the model of a run: classes, entities, transcripts, masks, boxes."""
    from tlresearch.serving.predict import predict
    from tlresearch.tracking.model import load_predictor
    from tlresearch.tracking.records import Runs
    from tlresearch.tracking.registry import find_model

    texts = [line for text in options.text for line in (sys.stdin if text == "-" else [text])]
    texts = [text.strip() for text in texts]
    model = find_model(Runs(), options.run)
    predictor = load_predictor(model.run.store, model.model_id)
    return predict(predictor, options.files, name=model.name, texts=texts, out=options.out, batch=options.batch)
