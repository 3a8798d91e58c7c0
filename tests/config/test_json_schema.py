"""The JSON Schemas accept every YAML of ours, and find what an editor should underline."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from omegaconf import OmegaConf

from tests.conftest import REPOSITORY
from tlresearch.cli import main
from tlresearch.config.json_schema import FILE, SCHEMAS, as_text, first_line, json_schema
from tlresearch.config.load import load_sweep
from tlresearch.config.schema import ExperimentConfig

OURS = sorted(path for kind in SCHEMAS for path in (REPOSITORY / kind).rglob("*.yaml"))
EXAMPLES = sorted((REPOSITORY / "docs" / "examples").glob("*.yaml"))


@cache
def validator(kind: str) -> jsonschema.Draft7Validator:
    schema = json_schema(kind)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def complaints(kind: str, values: Any) -> list[str]:
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator(kind).iter_errors(values)]


def values_of(path: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)


def kind_of(path: Path) -> str:
    return "sweeps" if "experiment" in values_of(path) else "experiments"


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", OURS + EXAMPLES, ids=name)
def test_every_yaml_of_ours_is_valid_and_names_its_schema(path: Path) -> None:
    assert complaints(kind_of(path), values_of(path)) == []
    comment, _, address = path.read_text().partition("\n")[0].partition("$schema=")
    assert comment == "# yaml-language-server: "
    assert (path.parent / address).resolve() == REPOSITORY / kind_of(path) / FILE


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_schemas_of_the_repository_are_up_to_date(kind: str) -> None:
    assert (REPOSITORY / kind / FILE).read_text() == as_text(kind), "run: tlresearch schema"


@pytest.mark.parametrize("path", OURS, ids=name)
def test_a_misspelt_key_is_found_wherever_it_stands(path: Path) -> None:
    values = values_of(path)
    for section, entries in values.items():
        wrong = {**values, section[:-1]: entries}
        del wrong[section]
        assert complaints(kind_of(path), wrong), section
        name = str(entries.get("name", "")) if isinstance(entries, dict) else ""
        own = "." in name and "/" not in name  # a dotted path: what it takes is known where it is imported
        if isinstance(entries, dict) and section not in ("variants", "baselines") and not own:
            for key in entries:
                if ".options." not in key:
                    misspelt = {**values, section: {**entries, f"{key}x": entries[key]}}
                    assert complaints(kind_of(path), misspelt), f"{section}.{key}"


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr"),
        ({"freeze": {"epochs": 0}}, "freeze.epochs"),
        ({"freeze": {"epochs": 1.5}}, "freeze.epochs"),
        ({"freeze": {"phases": [{"unfreeze_depth": 1, "epoch": 3}]}}, "freeze.phases.0"),
        ({"data": {"augment": "flips"}}, "data.augment"),
        ({"data": {"download": "perhaps"}}, "data.download"),
        ({"variants": {"a": {"freeze.epoch": 3}}}, "variants.a"),
        ({"seeds": 3}, "seeds"),
    ],
)
def test_a_wrong_value_of_an_experiment_is_found(wrong: dict[str, Any], where: str) -> None:
    assert any(line.startswith(f"{where}: ") for line in complaints("experiments", wrong))


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"space": {"optimizer.lrr": {"low": 1, "high": 2}}}, "space"),
        ({"space": {"optimizer.lr": {"lowest": 1}}}, "space.optimizer.lr"),
        ({"overrides": {"freeze.epoch": 3}}, "overrides"),
        ({"baselines": {"full": {"freeze.epoch": 3}}}, "baselines.full"),
        ({"enqueue": [{"optimizer.rate": 3}]}, "enqueue.0"),
        ({"objective": {"direction": "up"}}, "objective.direction"),
    ],
)
def test_a_wrong_value_of_a_sweep_is_found(wrong: dict[str, Any], where: str) -> None:
    assert any(line.startswith(f"{where}: ") for line in complaints("sweeps", wrong))


def test_what_the_loader_takes_is_no_complaint() -> None:
    assert (
        complaints("experiments", {"data": {"text_column": 0, "root": "${oc.env:PHOTOS}", "batch_size": "${seed}"}})
        == []
    )
    assert complaints("experiments", {"data": {"options": {"anything": [1]}}, "task": {"teacher": None}}) == []
    assert complaints("sweeps", {"space": {"data.options.window": {"choices": [1, 2]}}}) == []
    assert complaints("sweeps", {"overrides": {"freeze": {"epochs": 3}, "data.options.fit": "crop"}}) == []


def test_arguments_stand_beside_the_name_of_a_part() -> None:
    section = {"name": "sgd", "momentum": 0.9}
    assert complaints("experiments", {"optimizer": section, "task": {"loss": "dice"}}) == []
    assert complaints("experiments", {"optimizer": {"name": "timm.optim.Lamb", "anything": 1}}) == []
    assert complaints("experiments", {"trainer": {"callbacks": ["my.Callback", {"name": "my.Other", "x": 1}]}}) == []
    assert complaints("sweeps", {"space": {"optimizer.momentum": {"low": 0, "high": 0.9}, "task.loss": {}}}) == []
    assert complaints("experiments", {"optimizer": {**section, "momentun": 0.9}})
    assert complaints("experiments", {"optimizer": {"momentum": 2}})


def test_every_option_is_described() -> None:
    schema = json_schema("experiments")
    assert set(schema["properties"]) == {field.name for field in dataclasses.fields(ExperimentConfig)}
    sections = [part for section in schema["definitions"].values() for part in section.get("anyOf", [section])]
    options = [option for section in sections for option in section.get("properties", {}).values()]
    assert len(options) > 100
    assert all(option.get("description") for option in options if "SpaceConfig" not in str(option))


def test_the_command_writes_what_a_yaml_then_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--out", str(tmp_path)]) == 0
    assert first_line(1) in capsys.readouterr().out
    yaml = tmp_path / "sweeps" / "photos" / "rates.yaml"
    yaml.parent.mkdir()
    yaml.write_text(first_line(1) + "experiment: digits/pretrain\nspace: {optimizer.lr: {low: 0.1, high: 1}}\n")
    assert load_sweep(yaml).config.space["optimizer.lr"].high == 1
    assert json.loads((yaml.parent / "../schema.json").read_text())["title"] == "A sweep of tlresearch"
