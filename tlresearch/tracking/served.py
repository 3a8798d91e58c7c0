"""MLflow's "model from code": MLflow runs this file to rebuild a stored model. No weights and no pickle are in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from tlresearch.tracking.loaders import Predictor, rebuild

if TYPE_CHECKING:
    from pandas import DataFrame


class ServedModel(PythonModel):
    """Answers raw samples with a table; its predictor decides which samples it takes and which columns it returns."""

    # Otherwise MLflow warns that the input has no type hint; the predictor checks the input.
    _skip_type_hint_validation = True

    def __init__(self) -> None:
        self.predictor: Predictor | None = None

    def load_context(self, context: Any) -> None:
        """Rebuilds the network from the stored folder; MLflow calls this once."""
        self.predictor = rebuild(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: Any, params: Any = None) -> DataFrame:
        """One row per sample.

        Args:
            context: Unused; MLflow's signature.
            model_input: A data frame with the column ``image``, ``audio`` or ``text``, or a list. A sample is a path,
                the bytes of a file (or these bytes as base64 text), or an array; a text is the string itself.
            params: Unused; MLflow's signature.

        Raises:
            MlflowException: If a sample cannot be read; a server returns its text to the client.
        """
        from pandas import DataFrame

        if self.predictor is None:
            raise RuntimeError("the model is not loaded; use mlflow.pyfunc.load_model")
        try:
            samples = self.predictor.read(model_input)
        except (ValueError, OSError) as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return DataFrame(self.predictor.table(samples))


set_model(ServedModel())
