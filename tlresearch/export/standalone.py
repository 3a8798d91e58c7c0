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
    """Prints a line for each sample: its answer with probability, or numbers; writes a mask next to its image."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    classes = json.loads(metadata["classes"])
    if metadata["reads"] == "pair":
        samples = tuple(zip(samples[::2], samples[1::2], strict=True))
    for sample in samples:
        row, answer = predict(session, sample)
        if metadata["kind"] == "numbers":
            line = ", ".join(f"{name} {value:.6g}" for name, value in zip(classes, row, strict=True))
        elif metadata["kind"] == "masks":
            shares = np.bincount(answer.ravel(), minlength=len(classes)) / answer.size
            line = ", ".join(f"{name} {share:.1%}" for name, share in zip(classes, shares, strict=True))
            line += f" -> {save_mask(answer, sample)}"
        else:
            chosen = np.flatnonzero(answer) if metadata["kind"] == "multilabel" else [int(answer)]
            line = ", ".join(f"{classes[number]} {row[number]:.4f}" for number in chosen)
        print(f"{sample if isinstance(sample, str) else ' / '.join(sample)}\t{line or 'no label'}")


def predict(session: Any, sample: Any) -> tuple[Any, Any]:
    """Returns the probabilities of a sample, in the order of the metadata's ``classes``, and its answer.

    For numbers, both are the numbers, or the answer is their intervals ``(classes, 2)``.
    """
    metadata = session.get_modelmeta().custom_metadata_map
    read: Any = {"image": read_image, "text": read_text, "pair": read_pair, "sound": read_sound}[metadata["reads"]]
    arrays = read(sample, session, metadata)
    names = [argument.name for argument in session.get_inputs()]
    outputs = session.run(None, dict(zip(names, arrays, strict=True)))
    return outputs[0][0], outputs[-1][0]


def read_image(file: str, session: Any, metadata: Any) -> tuple[Any, ...]:
    """Returns the pixels of an image file, ``(1, height, width, channels)``, turned as in training."""
    from PIL import Image, ImageOps

    channels = session.get_inputs()[0].shape[3]
    with Image.open(file) as stored:
        turned = json.loads(metadata["preprocessing"])["orientation"] == "exif"
        image = ImageOps.exif_transpose(stored) if turned else stored
        if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"):
            raise ValueError(
                f"{file} has more than 8 bits ({image.mode}): bring it to 8 as training did, see model.json"
            )
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return (pixels.reshape(1, *pixels.shape[:2], -1),)


def read_text(text: str, session: Any, metadata: Any) -> tuple[Any, ...]:
    """Returns token numbers and mask of a text, ``(1, tokens)``; the tokenizer cuts it to the maximal length."""
    from tokenizers import Tokenizer

    encoding = Tokenizer.from_str(metadata["tokenizer"]).encode(text)
    ids = np.array([encoding.ids or [int(metadata["unknown"])]], np.int64)
    return ids, np.ones(ids.shape, bool)


def read_pair(pair: tuple[str, str], session: Any, metadata: Any) -> tuple[Any, ...]:
    """Returns tokens, mask and types of a pair ``(1, tokens)``, or of both texts ``(1, 2, tokens)``."""
    from tokenizers import Tokenizer

    tokenizer, shape = Tokenizer.from_str(metadata["tokenizer"]), session.get_inputs()[0].shape
    rows = tokenizer.encode_batch(list(pair) if len(shape) == 3 else [pair])
    arrays = [np.array([getattr(row, name) for row in rows]) for name in ("ids", "attention_mask", "type_ids")]
    arrays = [arrays[0].astype(np.int64), arrays[1].astype(bool), arrays[2].astype(np.int64)]
    arrays = [array[None] for array in arrays] if len(shape) == 3 else arrays
    return tuple(arrays[: len(session.get_inputs())])


def read_sound(file: str, session: Any, metadata: Any) -> tuple[Any, ...]:
    """Returns the waveform of a sound file, ``(1, samples)``: mono, at the model's rate."""
    import soundfile
    from scipy.signal import resample_poly

    clip, own = soundfile.read(file, dtype="float32", always_2d=True)
    clip, rate = clip.mean(axis=1), int(metadata["rate"])
    if own != rate:
        common = math.gcd(own, rate)
        clip = resample_poly(clip, rate // common, own // common)
    return (clip.astype(np.float32)[None],)


def save_mask(mask: Any, file: str) -> str:
    """Writes a mask of class numbers as a grey PNG, from black for class 0 to white for the last."""
    from PIL import Image

    name = f"{file.rpartition('.')[0] or file}.mask.png"
    Image.fromarray((mask * (255 // max(int(mask.max()), 1))).astype(np.uint8)).save(name)
    return name


if __name__ == "__main__":
    main(*sys.argv[1:])
