"""Names and values as MLflow takes them: its characters, its lengths, and no secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import yaml

from tlresearch.base.redact import HIDDEN, is_secret, redact, redact_assignments, redactor

LONGEST_PARAM = 6000  # MLflow cuts what is longer
LONGEST_TAG = 8000
_SHOWN_OF_LONG = 200
_REFERENCE = re.compile(r"\$\{oc\.env:[^{}]+\}")  # says where a secret is, not what it is


def metric_key(name: str) -> str:
    """A metric's name in the characters MLflow takes: ``precision@5`` becomes ``precision_at_5``."""
    return key(name.replace("@", "_at_"))


def key(name: str) -> str:
    """A name of a param, tag or metric in the characters and length MLflow takes."""
    return re.sub(r"[^\w ./:-]", "_", name)[:250]


def text(value: object) -> str:
    """A param's value as text: as in YAML and JSON, so that it can be read back."""
    if isinstance(value, str):
        return value
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, (bool, Mapping, Sequence)):
        return json.dumps(value, default=str, ensure_ascii=False)
    return str(value)


def clean(name: str, value: object) -> Any:
    """A value without secrets, also within lists and mappings; `name` is the key it stands under."""
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
    """A YAML file without secrets; as it stands if nothing in it sounds like one."""
    plain = redact(text)
    if redact_assignments(plain) == plain:
        return plain
    return yaml.safe_dump(clean("", yaml.safe_load(text)), sort_keys=False, allow_unicode=True)


def params(values: Mapping[str, object]) -> tuple[dict[str, str], dict[str, str]]:
    """Splits values into params MLflow can hold and the whole text of those it cannot.

    Returns:
        All params, where a long one says that it is shortened, and the long ones whole.
    """
    short: dict[str, str] = {}
    whole: dict[str, str] = {}
    for name, value in clean("", values).items():
        shown = text(value)
        if len(shown) > LONGEST_PARAM:
            whole[key(name)] = shown
            shown = f"<{len(shown)} characters, whole in config/long_params.json> {shown[:_SHOWN_OF_LONG]}…"
        short[key(name)] = shown
    return short, whole


def tags(values: Mapping[str, str]) -> dict[str, str]:
    """Tags in MLflow's names and length, without secrets."""
    cleaned = {key(name): str(value) for name, value in clean("", values).items()}
    return {
        name: value if len(value) <= LONGEST_TAG else value[: LONGEST_TAG - 1] + "…" for name, value in cleaned.items()
    }
