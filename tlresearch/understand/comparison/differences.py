"""What two recorded runs came from, and in what that differs: code, data, weights, packages, hardware. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tlresearch.tracking.records import Inputs, Origin

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


def differences(old: Origin, new: Origin) -> tuple[Difference, ...]:
    """Says in what two runs differ; parts that one of them did not record are passed over."""
    found: list[Difference] = []
    if old.inputs and new.inputs:
        found += input_differences(old.inputs, new.inputs)
    found += part_differences(old.parts, new.parts)
    if old.environment and new.environment:
        found += [Difference("code", text) for text in _code(old, new)]
        packages = (origin.environment["packages"] for origin in (old, new) if origin.environment)
        python = ({"python": origin.environment["python"]} for origin in (old, new) if origin.environment)
        found += [Difference("packages", text) for text in _values(*packages)]
        found += [Difference("packages", text) for text in _values(*python)]
        hardware = (origin.environment["hardware"] for origin in (old, new) if origin.environment)
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
        found = [
            Difference("data", f"{len(which)} {'sample' if len(which) == 1 else 'samples'} ({_listing(which)}) {what}")
            for what, which in names.items()
            if which
        ]
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


def _listing(names: Collection[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(list(names)[:_MOST_NAMES])}{more}"


def _code(old: Origin, new: Origin) -> Iterator[str]:
    before, after = ((origin.environment or {}).get("code") or {} for origin in (old, new))
    commits = before.get("commit", ""), after.get("commit", "")
    if commits[0] != commits[1]:
        yield "commit {} -> {}".format(*(commit[:12] or "no repository" for commit in commits))
    changed = sorted(name for name in {*old.diff, *new.diff} if old.diff.get(name) != new.diff.get(name))
    if changed:
        yield f"uncommitted changes differ in {_listing(changed)}"
    untracked = [set(code.get("untracked", [])) for code in (before, after)]
    for what, names in (("gone", untracked[0] - untracked[1]), ("new", untracked[1] - untracked[0])):
        if names:
            yield f"untracked files that are {what}: {_listing(sorted(names))}"


def _values(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    # A key that only the new one has was not recorded yet when the old one was written.
    for key, value in old.items():
        if new.get(key) != value:
            yield f"{key.replace('_', ' ')} {_shown(value)} -> {_shown(new.get(key, 'none'))}"


def _shown(value: Any) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
