"""Predicts with an exported model, from raw files or texts, without tlresearch.

It needs onnxruntime and numpy; for images also pillow, for texts tokenizers, for sounds soundfile and scipy.

python predict.py model.onnx photo.jpg another.png
python predict.py model.onnx "A text." "Another one."     (of a model of pairs: the two texts of one pair)
python predict.py model.onnx digit.wav
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
import onnxruntime


def main(model: str, *samples: Any) -> None:
    """Prints sample, answer and probability, or numbers, a line each; the mask of an image is written beside it."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    classes = json.loads(about["classes"])
    if about["reads"] == "pair":
        samples = tuple(zip(samples[::2], samples[1::2], strict=True))
    for sample in samples:
        row, answer = predict(session, sample)
        if about["kind"] == "numbers":
            told = ", ".join(f"{name} {value:.6g}" for name, value in zip(classes, row, strict=True))
        elif about["kind"] == "masks":
            shares = np.bincount(answer.ravel(), minlength=len(classes)) / answer.size
            told = ", ".join(f"{name} {share:.1%}" for name, share in zip(classes, shares, strict=True))
            told += f" -> {save_mask(answer, sample)}"
        else:
            chosen = np.flatnonzero(answer) if about["kind"] == "multilabel" else [int(answer)]
            told = ", ".join(f"{classes[number]} {row[number]:.4f}" for number in chosen)
        print(f"{sample if isinstance(sample, str) else ' / '.join(sample)}\t{told or 'no label'}")


def predict(session: Any, sample: Any) -> tuple[Any, Any]:
    """Returns probabilities, classes first in the order of the metadata's ``classes``, and the answer of a sample.

    Of numbers both are the numbers, or the answer is their interval ``(classes, 2)``.
    """
    about = session.get_modelmeta().custom_metadata_map
    read: Any = {"image": read_image, "text": read_text, "pair": read_pair, "sound": read_sound}[about["reads"]]
    arrays = read(sample, session, about)
    names = [given.name for given in session.get_inputs()]
    outputs = session.run(None, dict(zip(names, arrays, strict=True)))
    return outputs[0][0], outputs[-1][0]


def read_image(file: str, session: Any, about: Any) -> tuple[Any, ...]:
    """Returns the pixels of an image file, ``(1, height, width, channels)``, turned as in training."""
    from PIL import Image, ImageOps

    channels = session.get_inputs()[0].shape[3]
    with Image.open(file) as stored:
        turned = json.loads(about["preprocessing"])["orientation"] == "exif"
        image = ImageOps.exif_transpose(stored) if turned else stored
        if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"):
            raise ValueError(
                f"{file} has more than 8 bits ({image.mode}): bring it to 8 as training did, see model.json"
            )
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return (pixels.reshape(1, *pixels.shape[:2], -1),)


def read_text(text: str, session: Any, about: Any) -> tuple[Any, ...]:
    """Returns token numbers and mask of a text, ``(1, tokens)``; the tokenizer cuts at the longest."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(about["tokenizer"]).encode(text)
    ids = np.array([found.ids or [int(about["unknown"])]], np.int64)
    return ids, np.ones(ids.shape, bool)


def read_pair(pair: tuple[str, str], session: Any, about: Any) -> tuple[Any, ...]:
    """Returns tokens, mask and types of a pair ``(1, tokens)``; of a model that reads each text by itself both."""
    from tokenizers import Tokenizer

    tokenizer, shape = Tokenizer.from_str(about["tokenizer"]), session.get_inputs()[0].shape
    rows = tokenizer.encode_batch(list(pair) if len(shape) == 3 else [pair])
    arrays = [np.array([getattr(row, name) for row in rows]) for name in ("ids", "attention_mask", "type_ids")]
    arrays = [arrays[0].astype(np.int64), arrays[1].astype(bool), arrays[2].astype(np.int64)]
    arrays = [array[None] for array in arrays] if len(shape) == 3 else arrays
    return tuple(arrays[: len(session.get_inputs())])


def read_sound(file: str, session: Any, about: Any) -> tuple[Any, ...]:
    """Returns the waveform of a sound file, ``(1, samples)``: mono, at the model's rate."""
    import soundfile
    from scipy.signal import resample_poly

    clip, own = soundfile.read(file, dtype="float32", always_2d=True)
    clip, wanted = clip.mean(axis=1), int(about["rate"])
    if own != wanted:
        common = math.gcd(own, wanted)
        clip = resample_poly(clip, wanted // common, own // common)
    return (clip.astype(np.float32)[None],)


def save_mask(mask: Any, file: str) -> str:
    """Writes a mask of class numbers as a grey PNG, from black for class 0 to white for the last."""
    from PIL import Image

    name = f"{file.rpartition('.')[0] or file}.mask.png"
    Image.fromarray((mask * (255 // max(int(mask.max()), 1))).astype(np.uint8)).save(name)
    return name


if __name__ == "__main__":
    main(*sys.argv[1:])
