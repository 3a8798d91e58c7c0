"""Predicts with an exported classifier; needs onnxruntime, numpy and pillow, and nothing of tlresearch.

python predict.py model.onnx photo.jpg another.png
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image


def main(model: str, *files: str) -> None:
    """Prints file, likeliest class (or every label above one half) and probability, a line each."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    classes, several = json.loads(about["classes"]), about["kind"] == "multilabel"
    for file in files:
        row = probabilities(session, file)
        chosen = np.flatnonzero(row > 0.5) if several else [int(row.argmax())]
        answer = ", ".join(f"{classes[number]} {row[number]:.4f}" for number in chosen)
        print(f"{file}\t{answer or 'no label'}")


def probabilities(session: Any, file: str) -> Any:
    """Returns the probability of each class, in the order of the metadata's ``classes``."""
    channels = session.get_inputs()[0].shape[3]
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    batch = pixels.reshape(1, *pixels.shape[:2], -1)
    return session.run(None, {session.get_inputs()[0].name: batch})[0][0]


if __name__ == "__main__":
    main(*sys.argv[1:])
