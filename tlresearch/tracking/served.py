"""Models from code: MLflow runs this file to rebuild a stored model. It holds no weights and no pickle."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame
    from torch import Tensor

SETTINGS = "served.json"
_LONGEST_PATH = 1000  # longer text is a whole image


class Predictor(Protocol):
    """A trained network with its preprocessing."""

    def predict(self, images: Sequence[Tensor]) -> tuple[Any, Any]:
        """Returns class numbers ``(n,)`` and probabilities ``(n, classes)`` of uint8 images ``(C, H, W)``."""
        ...


class ServedModel(PythonModel):
    """Predicts class names and probabilities from raw images."""

    # MLflow would warn that the input has no type it can check; `to_images` checks it.
    _skip_type_hint_validation = True

    def __init__(self) -> None:
        self._predictor: Predictor | None = None
        self._classes: list[str] = []

    def load_context(self, context: Any) -> None:
        """Rebuilds the network from the stored folder; MLflow calls this once."""
        folder = Path(context.artifacts["model"])
        settings = json.loads((folder / SETTINGS).read_text())
        self._classes = list(settings["classes"])
        self._predictor = find_loader(settings["loader"])(folder)

    def predict(self, context: Any, model_input: Any, params: Any = None) -> DataFrame:
        """One row per image: ``class``, ``probability``, and one column ``p(<class>)`` for each class.

        A predictor that has a `table` of its own, such as for masks or boxes, says its columns itself.

        Args:
            context: Unused; MLflow's signature.
            model_input: A data frame with the column ``image`` (paths, or encoded bytes such as a JPEG
                file's), or uint8 arrays ``(N, H, W, C)``, ``(H, W, C)`` or a list of them.
            params: Unused; MLflow's signature.
        """
        import numpy as np
        from pandas import DataFrame

        if self._predictor is None:
            raise RuntimeError("the model is not loaded; use mlflow.pyfunc.load_model")
        samples = getattr(self._predictor, "read", to_images)(model_input)
        table_of = getattr(self._predictor, "table", None)
        if table_of is not None:  # masks and boxes are no class with probabilities
            return DataFrame(table_of(samples))
        numbers, probabilities = self._predictor.predict(samples)
        numbers, probabilities = np.asarray(numbers).astype(int), np.asarray(probabilities, dtype=float)
        table: dict[str, Any] = {
            "class": [self._classes[number] for number in numbers],
            "probability": probabilities[np.arange(len(numbers)), numbers],
        }
        table |= {f"p({name})": probabilities[:, index] for index, name in enumerate(self._classes)}
        return DataFrame(table)


def find_loader(path: str) -> Callable[[Path], Predictor]:
    """Imports the function that rebuilds the network.

    Raises:
        ValueError: If it is not one of tlresearch's: a stored model must not name code of its choice.
    """
    import os

    allowed = ["tlresearch", *filter(None, os.environ.get("TLRESEARCH_TRUSTED_LOADERS", "").split(","))]
    module, _, name = path.rpartition(".")
    if module.split(".")[0] not in allowed:
        raise ValueError(
            f"the model's loader must be in {' or '.join(allowed)} but is '{path}'; if you trust it, add its "
            "package to TLRESEARCH_TRUSTED_LOADERS"
        )
    loader: Callable[[Path], Predictor] = getattr(importlib.import_module(module), name)
    return loader


def to_images(model_input: Any) -> list[Tensor]:
    """Turns what a user passes into uint8 tensors ``(C, H, W)``."""
    import numpy as np
    import torch

    if hasattr(model_input, "columns"):
        if "image" not in model_input.columns:
            known = ", ".join(map(str, model_input.columns))
            raise ValueError(f"the data frame needs a column 'image' but has: {known}")
        arrays = [_decode(value) for value in model_input["image"]]
    elif isinstance(model_input, np.ndarray) and model_input.dtype != object:
        arrays = list(model_input) if model_input.ndim == 4 else [model_input]
    else:
        arrays = [_decode(value) for value in model_input]
    return [torch.from_numpy(np.ascontiguousarray(_checked(array).transpose(2, 0, 1))) for array in arrays]


def _decode(value: Any) -> NDArray[Any]:
    import base64

    import numpy as np
    from PIL import Image, ImageOps

    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, str) and (len(value) > _LONGEST_PATH or not Path(value).is_file()):
        # A server hands bytes over as base64 text.
        try:
            value = base64.b64decode(value, validate=True)
        except ValueError:
            raise FileNotFoundError(f"there is no image file {value[:200]}") from None
    with Image.open(io.BytesIO(value) if isinstance(value, (bytes, bytearray)) else value) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _checked(array: NDArray[Any]) -> NDArray[Any]:
    if str(array.dtype) != "uint8" or array.ndim not in (2, 3):
        raise ValueError(f"images must be uint8 (height, width, channels) but got {array.dtype} {array.shape}")
    return array[:, :, None] if array.ndim == 2 else array


set_model(ServedModel())
