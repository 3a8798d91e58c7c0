"""Whatever stands in a YAML file or an override, it is accepted, or refused by lines that name the key. No torch."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.config.test_load import GOOD
from tests.fuzz.conftest import cases
from tests.fuzz.mutations import readable
from tlresearch.base.errors import ConfigError, UserError
from tlresearch.config.load import Loaded, load_experiment, load_sweep, load_text
from tlresearch.config.schema import ExperimentConfig
from tlresearch.config.sweep_schema import SweepConfig

SWEEP = """
experiment: {experiment}
space: {{optimizer.lr: {{low: 1.0e-4, high: 1.0e-1, log: true}}}}
trials: 3
"""


def keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Full keys of all options and sections."""
    for name, hint in typing.get_type_hints(schema).items():
        yield f"{prefix}{name}"
        for inner in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(inner) and isinstance(inner, type):
                yield from keys(inner, f"{prefix}{name}.")


KEYS = sorted(set(keys(ExperimentConfig)))
SWEEP_KEYS = sorted(set(keys(SweepConfig)))

PIECES = [
    *(
        "a",
        "1",
        "-1",
        "0",
        "1.5",
        "1e400",
        ".nan",
        ".inf",
        "true",
        "null",
        "~",
        "yes",
        "''",
        '"',
        "'",
        "all",
        "norm",
        "é",
    ),
    *("- ", ": ", "? ", ", ", "[", "]", "{", "}", "\n", "\n  ", "\t", "#", "|", ">", "&a ", "*a", "<<: ", "---\n", "%"),
    *("!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!pairs ", "!!str ", "!x "),
    *("!!python/object/apply:os.system ", "!!python/name:os.system ", "!!python/tuple ", "!!pathlib.Path "),
    *(
        "${",
        "}",
        "${data}",
        "${seed}",
        "${.}",
        "${..}",
        "${oc.env:X}",
        "${oc.env:HOME}",
        "${oc.decode:",
        "${oc.create:",
    ),
    *(
        "${oc.select:data.name}",
        "${oc.dict.keys:data}",
        "${no.such:1}",
        "${name}",
        "\\",
        "\x00",
        "\ufeff",
        "\u2028",
        "\x85",
    ),
    *("2020-01-01", "0x1f", "0o17", "1_000", "1:2:3", "0b1", "=", "data.name", "9" * 5000, "💥", "\ud800"),
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(
        [0, 1, 2, -1, 10**30, 0.1, 1.0, 1e400, float("nan"), "all", "0", "", "1e3", "${seed}", "${data.name}"]
    ),
    st.floats(),
    st.lists(st.sampled_from(PIECES), max_size=4).map("".join),
    st.text(max_size=8),
    st.binary(max_size=3),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*{key.rpartition(".")[2] for key in KEYS}])
            | st.sampled_from(["a", "", "x y", 1, None, 1.5, True]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)
OVERRIDES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(KEYS), TEXTS).map("=".join),
        st.tuples(st.sampled_from(KEYS), st.sampled_from(["", ".a", "..", ".", "[0]", ".0"]), TEXTS).map(
            lambda parts: f"{parts[0]}{parts[1]}={parts[2]}"
        ),
        TEXTS,
    ),
    max_size=4,
)


def mutated(text: str) -> st.SearchStrategy[str]:
    """A text in which some stretches are replaced by pieces."""

    def mutate(changes: list[tuple[int, int, str]]) -> str:
        whole = text
        for start, length, piece in changes:
            at = start % (len(whole) + 1)
            whole = whole[:at] + piece + whole[at + length :]
        return whole

    change = st.tuples(st.integers(0, 10_000), st.integers(0, 6), st.sampled_from(PIECES))
    return st.lists(change, min_size=1, max_size=5).map(mutate)


def outcome(load: Callable[[], Loaded[Any]]) -> Loaded[Any] | None:
    """What is loaded; what is refused must be so in lines of readable length that name the place."""
    try:
        return load()
    except UserError as refused:
        error = refused
    lines = error.problems if isinstance(error, ConfigError) else [str(error)]
    assert lines
    for line in lines:
        readable(line)
    return None


def repeats(loaded: Loaded[ExperimentConfig] | None) -> None:
    """What was accepted is recorded as a text that gives the same record."""
    if loaded is not None:
        assert load_text(loaded.recorded).recorded == loaded.recorded


def write(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


@cases(40)
@given(text=mutated(GOOD))
@example(text="a: &a [1]\n")
def test_any_text_of_an_experiment(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    repeats(outcome(lambda: load_experiment(path)))


@cases(30)
@given(pieces=TEXTS)
def test_any_yaml(pieces: str, tmp_path: Path) -> None:
    path = write(tmp_path, pieces)
    outcome(lambda: load_experiment(path))
    outcome(lambda: load_sweep(path))
    outcome(lambda: load_text(pieces))


@cases(60)
@given(content=st.binary(max_size=200))
def test_any_bytes(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(content)
    outcome(lambda: load_experiment(path))


@cases(20)
@given(overrides=OVERRIDES)
def test_any_override_that_is_typed(overrides: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    repeats(outcome(lambda: load_experiment(path, overrides)))


@cases(20)
@given(overrides=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
def test_any_override_from_python(overrides: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    repeats(outcome(lambda: load_experiment(path, overrides)))


@cases(20)
@given(overrides=st.dictionaries(st.sampled_from(SWEEP_KEYS), VALUES, max_size=3))
def test_any_sweep(overrides: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP.format(experiment=write(tmp_path, GOOD)))
    outcome(lambda: load_sweep(path, overrides))


def nested(depth: int) -> str:
    return "data: " + "[" * depth + "]" * depth


def laughs(depth: int) -> str:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        nested(5000),
        "data: " + "{a: " * 5000,
        laughs(40),
        "data: &a [*a]",
        "data: &a {name: *a}",
        "name: " + "${name" * 500,
        "name: ${name}",
        "seed: " + "9" * 5000,
        "seed: !!int x",
        "seed: !!float x",
        "seed: !!bool x",
        "seed: !!timestamp x",
        "seed: !!binary x",
        "? [a, b]\n: c",
        "? {a: b}\n: c",
        "1: 2\nnull: 3",
        "tracking: null",
        "tracking: 3\nname: [a]",
        "variants: {a: {1: 2}, b: 3}",
        "variants: {a: {data: 2}}",
        "freeze: {schedule: phases, phases: [null]}",
        "freeze: {schedule: phases, phases: {a: 1}}",
        "data: {shift: {a: null, b: 3, c: {corruptions: 3}}}",
        "reference: 3",
        "",
        "x",
        "- a",
    ],
    ids=lambda text: " ".join(text[:24].split()),
)
def test_what_is_known_to_be_nasty(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    outcome(lambda: load_experiment(path))
    outcome(lambda: load_sweep(path))
