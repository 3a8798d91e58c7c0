"""What two recorded runs came from, and in what that differs: code, data, weights, packages, hardware. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tlresearch.tracking import records
from tlresearch.tracking.manifest import read_json, read_text
from tlresearch.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

Kind = Literal["data", "weights", "parts", "code", "packages", "hardware", "computation"]
KINDS: tuple[Kind, ...] = ("data", "weights", "parts", "code", "packages", "hardware", "computation")

_MOST_NAMES = 10


@dataclass(frozen=True)
class Difference:
    """One thing in which two runs differ.

    Attributes:
        kind: What it is about.
        text: What differs, with the old and the new value, or the files by name.
    """

    kind: Kind
    text: str


@dataclass(frozen=True)
class Inputs:
    """What a run was computed from.

    Attributes:
        data: Fingerprint of the data.
        files: Content hash of each sample by name.
        weights: Where the weights came from, such as a file's name; ``"random"`` if nothing was loaded.
        sha256: Their hash; empty for random weights.
    """

    data: str
    files: Mapping[str, str]
    weights: str
    sha256: str


@dataclass(frozen=True)
class Record:
    """What a run recorded of its origin; a part it did not record is `None`.

    Attributes:
        inputs: Data and weights.
        environment: Code, packages and hardware as in ``provenance/environment.json``.
        diff: What differed from the commit, by file.
        computation: Threads, precision and the like.
        parts: What the config named by dotted path, by key, as in ``provenance/parts.json``.
    """

    inputs: Inputs | None
    environment: Mapping[str, Any] | None
    diff: Mapping[str, str]
    computation: Mapping[str, Any] | None
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def not_recorded(self) -> list[str]:
        """Names of the parts that are missing: nothing can be said about them."""
        parts = {
            "data and weights": self.inputs,
            "code, packages and hardware": self.environment,
            "threads and precision": self.computation,
        }
        return [name for name, part in parts.items() if part is None]


def read_record(store: Store, run: Run) -> Record:
    """Reads what a run recorded of its origin."""
    run_id, tags = run.info.run_id, run.data.tags
    files = read_json(store, run_id, records.DATA_FILES)
    recorded = run.inputs.dataset_inputs if run.inputs else []
    digest = next((_digest(entry.dataset.profile) for entry in recorded), "")
    inputs = None
    if files is not None and digest and "tlresearch.weights" in tags:
        inputs = Inputs(digest, files, tags["tlresearch.weights"], tags.get("tlresearch.weights_sha256", ""))
    environment = read_json(store, run_id, records.ENVIRONMENT)
    code = (environment or {}).get("code") or {}
    diff = _by_file(read_text(store, run_id, records.DIFF) or "") if code.get("dirty") else {}
    parts = read_json(store, run_id, records.PARTS) or {}
    return Record(inputs, environment, diff, read_json(store, run_id, records.COMPUTATION), parts)


def differences(old: Record, new: Record) -> tuple[Difference, ...]:
    """Says in what two runs differ; parts that one of them did not record are passed over."""
    found: list[Difference] = []
    if old.inputs and new.inputs:
        found += input_differences(old.inputs, new.inputs)
    found += part_differences(old.parts, new.parts)
    if old.environment and new.environment:
        found += [Difference("code", text) for text in _code(old, new)]
        packages = (record.environment["packages"] for record in (old, new) if record.environment)
        python = ({"python": record.environment["python"]} for record in (old, new) if record.environment)
        found += [Difference("packages", text) for text in _values(*packages)]
        found += [Difference("packages", text) for text in _values(*python)]
        hardware = (record.environment["hardware"] for record in (old, new) if record.environment)
        found += [Difference("hardware", text) for text in _values(*hardware)]
    if old.computation and new.computation:
        found += [Difference("computation", text) for text in _values(old.computation, new.computation)]
    return tuple(found)


def input_differences(old: Inputs, new: Inputs) -> list[Difference]:
    """Says which samples and which weights are not what they were."""
    found = []
    if old.data != new.data:
        names = {
            "changed": [name for name, content in new.files.items() if old.files.get(name, content) != content],
            "missing": [name for name in old.files if name not in new.files],
            "added": [name for name in new.files if name not in old.files],
        }
        found = [Difference("data", f"{_listing(which)} {what}") for what, which in names.items() if which]
        # The same files: then it is what is said about them.
        found = found or [Difference("data", "the same files have other labels, classes or splits, or another order")]
    if old.sha256 != new.sha256:
        where = f"'{old.weights}'" if old.weights == new.weights else f"'{old.weights}' -> '{new.weights}'"
        found.append(Difference("weights", f"{where}: SHA-256 {old.sha256[:12] or '-'} -> {new.sha256[:12] or '-'}"))
    elif old.weights != new.weights:
        found.append(Difference("weights", f"'{old.weights}' -> '{new.weights}', with the same content"))
    return found


def part_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Says of which parts that both have the source is not what it was."""
    changed = [key for key, part in old.items() if key in new and part["source"] != new[key]["source"]]
    texts = [f"{key}: the source of {old[key]['path']} has changed: {_both(old[key], new[key])}" for key in changed]
    return [Difference("parts", text) for text in texts]


def _both(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return f"{old['source'][:19]} -> {new['source'][:19]}"


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{len(names)} {'sample' if len(names) == 1 else 'samples'} ({', '.join(names[:_MOST_NAMES])}{more})"


def _code(old: Record, new: Record) -> Iterator[str]:
    before, after = ((record.environment or {}).get("code") or {} for record in (old, new))
    commits = before.get("commit", ""), after.get("commit", "")
    if commits[0] != commits[1]:
        yield "commit {} -> {}".format(*(commit[:12] or "no repository" for commit in commits))
    changed = sorted(name for name in {*old.diff, *new.diff} if old.diff.get(name) != new.diff.get(name))
    if changed:
        more = f" and {len(changed) - _MOST_NAMES} more" if len(changed) > _MOST_NAMES else ""
        yield f"uncommitted changes differ in {', '.join(changed[:_MOST_NAMES])}{more}"
    untracked = [set(code.get("untracked", [])) for code in (before, after)]
    for what, names in (("gone", untracked[0] - untracked[1]), ("new", untracked[1] - untracked[0])):
        if names:
            listing = sorted(names)
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            yield f"untracked files that are {what}: {', '.join(listing[:_MOST_NAMES])}{more}"


def _values(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    # A key that only the new one has was not recorded yet when the old one was written.
    for key, value in old.items():
        if new.get(key) != value:
            yield f"{key.replace('_', ' ')} {_shown(value)} -> {_shown(new.get(key, 'none'))}"


def _shown(value: Any) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _digest(profile: str | None) -> str:
    return str(json.loads(profile or "{}").get("digest", ""))


def _by_file(diff: str) -> dict[str, str]:
    parts = re.split(r"^diff --git a/(.+) b/.+$", diff, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
