"""Names and values in the form that MLflow accepts: allowed characters, limited lengths, no secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import yaml

from tlresearch.base.redact import HIDDEN, is_secret, redact, redact_assignments, redactor

LONGEST_PARAM = 6000  # characters; MLflow truncates longer values silently
LONGEST_TAG = 8000
_SHOWN_OF_LONG = 200
_REFERENCE = re.compile(r"\$\{oc\.env:[^{}]+\}")  # names the variable that holds a secret, so it may be recorded


def metric_key(name: str) -> str:
    """Returns a metric's name in the characters MLflow accepts: ``precision@5`` becomes ``precision_at_5``."""
    return key(name.replace("@", "_at_"))


def key(name: str) -> str:
    """Returns the name of a param, tag or metric in the characters and length that MLflow accepts."""
    return re.sub(r"[^\w ./:-]", "_", name)[:250]


def text(value: object) -> str:
    """Returns a param's value as text that YAML and JSON can read back."""
    if isinstance(value, str):
        return value
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, (bool, Mapping, Sequence)):
        return json.dumps(value, default=str, ensure_ascii=False)
    return str(value)


def clean(name: str, value: object) -> Any:
    """Removes secrets from a value, also within lists and mappings; `name` is the key of the value."""
    return _clean(name, value, redactor())


def _clean(name: str, value: object, hide: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {str(inner): _clean(str(inner), item, hide) for inner, item in value.items()}
    if value not in (None, "") and is_secret(name):
        return value if _REFERENCE.fullmatch(str(value)) else HIDDEN
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, (list, tuple)):
        return [_clean(name, item, hide) for item in value]
    return value


def clean_yaml(text: str) -> str:
    """Removes secrets from the text of a YAML file; a file without secrets keeps its comments and layout."""
    plain = redact(text)
    if redact_assignments(plain) == plain:
        return plain
    return yaml.safe_dump(clean("", yaml.safe_load(text)), sort_keys=False, allow_unicode=True)


def params(values: Mapping[str, object]) -> tuple[dict[str, str], dict[str, str]]:
    """Turns values into params, and shortens those that are too long for MLflow.

    Returns:
        All params, long ones shortened with a note, and the long ones in full.
    """
    short: dict[str, str] = {}
    long: dict[str, str] = {}
    for name, value in clean("", values).items():
        shown = text(value)
        if len(shown) > LONGEST_PARAM:
            long[key(name)] = shown
            shown = f"<{len(shown)} characters, whole in config/long_params.json> {shown[:_SHOWN_OF_LONG]}…"
        short[key(name)] = shown
    return short, long


def tags(values: Mapping[str, str]) -> dict[str, str]:
    """Returns tags with names and lengths that MLflow accepts, without secrets."""
    cleaned = {key(name): str(value) for name, value in clean("", values).items()}
    return {
        name: value if len(value) <= LONGEST_TAG else value[: LONGEST_TAG - 1] + "…" for name, value in cleaned.items()
    }
