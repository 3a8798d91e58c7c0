"""A data split as MLflow shows it among the inputs of a run: name, digest and numbers, no samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tlresearch.base.redact import redact

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

SAMPLES_OF = "samples of "
"""Begins the keys of a profile that count the samples of a class."""
_DIGEST_LENGTH = 36  # MLflow refuses longer ones


def dataset_input(
    name: str,
    digest: str,
    source: str,
    context: str,
    schema: Mapping[str, str] | None,
    profile: Mapping[str, Any] | None,
) -> DatasetInput:
    """Builds the input; the profile holds the whole digest, as MLflow's own field is too short for it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    columns = [{"type": kind, "name": column, "required": True} for column, kind in (schema or {}).items()]
    dataset = Dataset(
        name=name[:500],
        digest=digest[:_DIGEST_LENGTH],
        source_type="external",
        source=json.dumps({"uri": redact(source)}),
        schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
        profile=json.dumps({**(profile or {}), "digest": digest}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
