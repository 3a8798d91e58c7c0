"""Configs: what is accepted, how it is recorded, and one clear error for whatever is wrong."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from tests.toy import toy_text
from tlresearch.base.errors import ConfigError, UserError
from tlresearch.base.redact import HIDE
from tlresearch.cli import main
from tlresearch.commands import config as config_command
from tlresearch.config.load import load_experiment, load_recorded, load_sweep, load_text, revise
from tlresearch.config.merging import assign

GOOD = """
data: {name: digits, classes: ["0", "1"]}
backbone: {name: small_cnn, weights: null}
freeze: {schedule: full, epochs: 3}
optimizer: {name: sgd, lr: 1.0e-2, momentum: 0.9}
"""


def write(folder: Path, text: str, name: str = "experiment.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_recorded_config_starts_the_same_run(tmp_path: Path) -> None:
    loaded = load_experiment(write(tmp_path, GOOD), {"seed": 3, "optimizer.lr": 1})
    again = load_text(loaded.recorded)
    assert again.config == loaded.config
    assert again.recorded == loaded.recorded
    assert loaded.config.optimizer.lr == 1.0
    assert loaded.config.seed == 3


def test_overrides_as_text_and_as_mapping_agree(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    as_text = load_experiment(path, ["optimizer.lr=3e-3", "data.classes=[3, 4]", "trainer.gradient_clip=null"])
    as_mapping = load_experiment(path, {"optimizer.lr": 3e-3, "data.classes": ["3", "4"]})
    assert as_text.config == as_mapping.config


def test_revise_changes_only_what_is_named(tmp_path: Path) -> None:
    loaded = load_experiment(write(tmp_path, GOOD))
    revised = revise(loaded, {"freeze.epochs": 7})
    before, after = loaded.flat(), revised.flat()
    assert {key for key in before if before[key] != after[key]} == {"freeze.epochs"}


def test_secrets_from_the_environment_are_used_but_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_URI", "http://user:s3cret@127.0.0.1:1")
    loaded = load_experiment(write(tmp_path, GOOD), ["tracking.uri=${oc.env:STORE_URI}"])
    assert loaded.config.tracking.uri == "http://user:s3cret@127.0.0.1:1"
    assert "s3cret" not in loaded.recorded
    assert "${oc.env:STORE_URI}" in loaded.recorded


def test_a_wrong_interpolated_value_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, GOOD), ["data.workers=${oc.env:SECRET}"])
    assert "data.workers" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_variables_in_a_config_of_somebody_else_are_none_of_our_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIRS", "their value")
    monkeypatch.setenv("OURS", "our value")
    monkeypatch.setenv(HIDE, "")
    loaded = load_text(GOOD + "description: of ${oc.env:OURS}, ${oc.env:NOBODYS,${oc.env:OURS}}\n")
    assert loaded.config.description == "of our value, our value"
    assert OmegaConf.create({"key": "${oc.env:THEIRS}"}).key == "their value"
    assert os.environ[HIDE].split(",") == ["OURS"]


def test_an_experiment_with_values_replaced_is_as_if_it_had_been_written_so(tmp_path: Path) -> None:
    revisions: list[dict[str, Any]] = [
        {"optimizer.lr": 0.5, "tracking.figures": False, "tracking.tags": {"mine": "yes"}},
        {"seed": 4, "seeds": [1, 2], "name": "2e-3"},
        {"trainer.early_stopping.patience": 2, "backbone.options": {"width": 8}, "data.classes": ["1", "0"]},
        {"freeze.phases": [{"name": "all", "unfreeze_depth": "all", "epochs": 2}], "freeze.schedule": "phases"},
        {"variants": {"wide": {"backbone.options.width": 16}}, "description": "two\n\nparagraphs: 'quoted'"},
        {"description": "of ${name}"},
    ]
    loaded, values = load_text(GOOD), yaml.safe_load(GOOD)
    for revision in revisions:
        loaded = revise(loaded, revision)
        for key, value in revision.items():
            assign(values, key, value)
        assert loaded == load_text(OmegaConf.to_yaml(OmegaConf.create(values)))
        assert loaded.values == yaml.safe_load(loaded.recorded)
    with pytest.raises(ConfigError) as caught:
        revise(loaded, {"optimizer.lr": -1, "optimizer.rate": 1, "nothing.at": 1, "seed": "x"})
    assert len(caught.value.problems) == 4


def test_topic_and_name_come_from_the_place_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments" / "birds").mkdir(parents=True)
    write(tmp_path / "experiments" / "birds", GOOD, "probe.yaml")
    monkeypatch.chdir(tmp_path)
    config = load_experiment("birds/probe").config
    assert (config.name, config.tracking.experiment) == ("probe", "birds")


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    text = GOOD + "trainer: {acumulate: 2}\nseed: -1\nscheduler: {name: cosin}\n"
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, text), ["optimizer.lr=fast", "data.batch_size=0"])
    assert len(caught.value.problems) == 5
    for key in ("trainer.acumulate", "seed", "scheduler.name", "optimizer.lr", "data.batch_size"):
        assert any(problem.startswith(f"{key}: ") for problem in caught.value.problems), key


BAD_EXPERIMENTS = {
    # overrides on the good experiment -> what the error must say
    "unknown section": (["optimiser.lr=1"], "optimiser: unknown key (did you mean 'optimizer'?)"),
    "unknown key": (["optimizer.learning_rate=1"], "optimizer.learning_rate: unknown key"),
    "misspelt key": (["data.batchsize=8"], "did you mean 'batch_size'?"),
    "text for number": (["optimizer.lr=high"], "optimizer.lr: must be a number, but got 'high'"),
    "fraction for count": (["data.batch_size=1.5"], "data.batch_size: must be a whole number, but got 1.5"),
    "truth for count": (["freeze.epochs=true"], "freeze.epochs: must be a whole number, but got True"),
    "list for number": (["seed=[1, 2]"], "seed: must be a whole number, but got [1, 2]"),
    "value for section": (["optimizer=sgd"], "optimizer: is a section with the keys name, lr"),
    "unknown choice": (["optimizer.name=sdg"], "did you mean 'sgd'?"),
    "zero rate": (["optimizer.lr=0"], "optimizer.lr: must be above 0, but got 0.0"),
    "negative rate": (["optimizer.lr=-1"], "optimizer.lr: must be above 0, but got -1.0"),
    "not a number": (["optimizer.lr=.nan"], "optimizer.lr: must be above 0, but got nan"),
    "decay above one": (
        ["optimizer.layer_lr_decay=1.2"],
        "optimizer.layer_lr_decay: must be at most 1, but got 1.2",
    ),
    "dropout of one": (["task.dropout=1"], "task.dropout: must be below 1 (probability), but got 1.0"),
    "no epochs": (["freeze.epochs=0"], "freeze.epochs: must be at least 1 (epochs), but got 0"),
    "unknown data source": (["data.name=imagefolder"], "did you mean 'image_folder'?"),
    "unknown backbone": (["backbone.name=resnet18"], "backbone.name: 'resnet18' is unknown"),
    "unknown schedule": (["freeze.schedule=gradually"], "did you mean 'gradual'?"),
    "unknown task": (
        ["task.name=classify"],
        "task.name: 'classify' is unknown (did you mean 'classification'?)",
    ),
    "no root": (["data.name=image_folder"], "data.root: is needed by `data.name: image_folder`"),
    "root does not exist": (
        ["data.name=image_folder", "data.root=no/such"],
        "data.root: 'no/such' is neither in",
    ),
    "no data set": (["data.name=torchvision"], "data.dataset: is needed by `data.name: torchvision`"),
    "both subsets": (
        ["data.labels_per_class=5", "data.train_fraction=0.5"],
        "give it or data.train_fraction",
    ),
    "nothing to train on": (
        ["data.val_fraction=0.6", "data.test_fraction=0.5"],
        "must leave samples to train on",
    ),
    "one class": (["data.classes=[a]"], "data.classes: at least two classes are needed"),
    "a class twice": (["data.classes=[a, a]"], "data.classes: each class once"),
    "weights file missing": (
        ["backbone.weights=no/such.pth"],
        "backbone.weights: 'no/such.pth' is neither in",
    ),
    "URL without hash": (
        ["backbone.weights=https://example.org/w.pth"],
        "backbone.weights_sha256: is needed",
    ),
    "short hash": (["backbone.weights_sha256=abc"], "must be 64 hexadecimal digits"),
    "weights and checkpoint": (
        ["backbone.weights=IMAGENET1K_V1", "backbone.checkpoint=abc"],
        "backbone.checkpoint: replaces backbone.weights",
    ),
    "depth missing": (
        ["freeze.schedule=depth"],
        "freeze.unfreeze_depth: is needed by `freeze.schedule: depth`",
    ),
    "depth of another schedule": (["freeze.unfreeze_depth=2"], "is only read by `freeze.schedule: depth`"),
    "depth in words": (["freeze.schedule=depth", "freeze.unfreeze_depth=two"], "a number of stages or 'all'"),
    "phases missing": (["freeze.schedule=phases"], "freeze.phases: is needed by"),
    "probe too long": (
        ["freeze.schedule=lp_ft", "freeze.probe_epochs=3"],
        "must be less than freeze.epochs (3)",
    ),
    "phase says depth twice": (
        ["freeze.schedule=phases", "freeze.phases=[{unfreeze_depth: 1, stages: [a], epochs: 1}]"],
        "freeze.phases[0]: give exactly one of unfreeze_depth, stages and parameters",
    ),
    "phase without length": (
        ["freeze.schedule=phases", "freeze.phases=[{unfreeze_depth: 1}]"],
        "freeze.phases[0].epochs: give it or fraction",
    ),
    "phase restores nothing": (
        ["freeze.schedule=phases", "freeze.phases=[{unfreeze_depth: 1, epochs: 1, at_end: restore_best}]"],
        "freeze.phases[0].at_end: restore_best needs `until`",
    ),
    "momentum of adam": (["optimizer.name=adam"], "optimizer.momentum: is only read by sgd and rmsprop"),
    "nesterov without momentum": (
        ["optimizer.nesterov=true", "optimizer.momentum=null"],
        "needs optimizer.momentum",
    ),
    "scratch with weights": (
        ["freeze.schedule=scratch", "backbone.weights=default"],
        "set backbone.weights=null",
    ),
    "warm-up too long": (["scheduler.warmup_epochs=4"], "must be less than freeze.epochs (3), but got 4"),
    "looking at the test split": (["trainer.monitor=test/accuracy"], "never looked at while training"),
    "metric without split": (["trainer.monitor=accuracy"], "must be train/<name> or val/<name>"),
    "no equals sign": (["optimizer.lr"], "an override has the form key=value"),
    "interpolation to nowhere": (["seed=${nothing}"], "seed: cannot be resolved"),
    "variable not set": (["tracking.uri=${oc.env:NO_SUCH_VARIABLE}"], "tracking.uri: cannot be resolved"),
    "restore best of an average": (
        [
            "regularize.ema=0.9",
            "freeze.schedule=phases",
            "freeze.phases=[{unfreeze_depth: 1, epochs: 1, at_end: restore_best, until: {patience: 1}}]",
        ],
        "regularize.ema",
    ),
}


@pytest.mark.parametrize("case", BAD_EXPERIMENTS)
def test_a_bad_experiment_gives_one_clear_error(case: str, tmp_path: Path) -> None:
    overrides, expected = BAD_EXPERIMENTS[case]
    with pytest.raises(UserError) as caught:
        load_experiment(write(tmp_path, GOOD), overrides)
    assert expected in str(caught.value)
    assert "\n\n" not in str(caught.value)


BAD_FILES = {
    "not YAML": ("data: [", "is not valid YAML"),
    "a key twice": ("seed: 1\nseed: 2\n", "is not valid YAML"),
    "a Python tag": ("seed: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
    "a list": ("- 1\n", "must hold sections"),
    "a binary": (None, "is not valid YAML"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_gives_one_clear_error(case: str, tmp_path: Path) -> None:
    text, expected = BAD_FILES[case]
    path = tmp_path / "experiment.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01" if text is None else text.encode())
    with pytest.raises(ConfigError, match=expected):
        load_experiment(path)


BAD_SWEEPS = {
    "no experiment": ({"experiment": ""}, "experiment: is needed"),
    "no space": ({"space": {}}, "space: is empty"),
    "unknown key": ({"space": {"optimizer.lrr": {"low": 1, "high": 2}}}, "did you mean 'lr'?"),
    "a section": ({"space": {"optimizer": {"low": 1, "high": 2}}}, "is a section, not an option"),
    "no bounds": ({"space": {"seed": {"log": True}}}, "needs low and high, or choices"),
    "bounds swapped": ({"space": {"optimizer.lr": {"low": 2, "high": 1}}}, "must be at least low"),
    "log of zero": ({"space": {"optimizer.lr": {"low": 0, "high": 1, "log": True}}}, "must be above 0"),
    "range and choices": ({"space": {"seed": {"low": 0, "high": 1, "choices": [1]}}}, "not both"),
    "high in words": ({"space": {"freeze.unfreeze_depth": {"low": 0, "high": "top"}}}, "a number or 'all'"),
    "condition on nothing": (
        {"space": {"seed": {"low": 0, "high": 1, "when": "data.batch_size > 0"}}},
        "'data.batch_size' is not in the space",
    ),
    "condition in words": (
        {"space": {"seed": {"low": 0, "high": 1, "when": "always"}}},
        "must compare a key",
    ),
    "test as objective": ({"objective.metric": "test/accuracy"}, "selection uses validation only"),
    "unknown sampler": ({"sampler.name": "tpee"}, "did you mean 'tpe'?"),
    "unknown pruner": ({"pruner.name": "medain"}, "did you mean 'median'?"),
    "enqueued elsewhere": (
        {"enqueue": [{"optimizer.lrr": 1}]},
        "enqueue[0].optimizer.lrr: is not in the space",
    ),
    "no trials": ({"trials": 0}, "trials: must be at least 1"),
    "a value of the experiment": ({"data.batch_size": 4}, "give overrides.data.batch_size="),
}


@pytest.mark.parametrize("case", BAD_SWEEPS)
def test_a_bad_sweep_gives_one_clear_error(case: str, tmp_path: Path) -> None:
    overrides, expected = BAD_SWEEPS[case]
    good = {"experiment": "digits/transfer", "space": {"optimizer.lr": {"low": 1e-3, "high": 1.0}}}
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(tmp_path, yaml.safe_dump(good)), overrides)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "command", [["run", "no/such"], ["sweep", "no/such"], ["run", "digits/pretrain", "optimizer.lrr=1"]]
)
def test_the_command_line_exits_with_2_and_imports_no_torch(command: list[str]) -> None:
    code = (
        "import sys\nfrom tlresearch.cli import main\nresult = main(sys.argv[1:])\n"
        "print('torch' in sys.modules)\nsys.exit(result)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.strip() == "False"
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom tlresearch.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'lightning', 'mlflow', 'optuna', 'omegaconf', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_nested_override_is_merged_into_its_section(tmp_path: Path) -> None:
    config = load_experiment(write(tmp_path, GOOD), {"optimizer": {"lr": 0.5}, "data": {"batch_size": 4}}).config
    assert (config.optimizer.lr, config.optimizer.options) == (0.5, {"momentum": 0.9})
    assert (config.data.batch_size, config.data.name) == (4, "digits")


def test_overrides_of_a_sweep_reach_its_experiment_from_the_command_line(tmp_path: Path) -> None:
    sweep = {"experiment": "digits/transfer", "space": {"seed": {"low": 0, "high": 1}}}
    path = write(tmp_path, yaml.safe_dump(sweep))
    overrides = load_sweep(path, ["overrides.backbone.weights=null", "overrides.data.batch_size=4"]).config.overrides
    config = revise(load_experiment("digits/transfer"), {**overrides, "backbone.checkpoint": None}).config
    assert (config.backbone.weights, config.data.batch_size, config.backbone.name) == (None, 4, "small_cnn")


def test_an_override_of_a_sweep_changes_one_option_and_leaves_the_others(tmp_path: Path) -> None:
    experiment = write(tmp_path, GOOD.replace("weights: null", "weights: null, options: {width: 4, in_channels: 1}"))
    sweep = {
        "experiment": str(experiment),
        "overrides": {"backbone.options.width": 5, "freeze.epochs": 9},
        "baselines": {"wide": {"backbone.options.width": 6}},
        "space": {"seed": {"low": 0, "high": 1}},
    }
    path = write(tmp_path, yaml.safe_dump(sweep), "sweep.yaml")
    words = ["overrides.backbone.options.width=8", "baselines.wide.backbone.options.in_channels=3"]
    config = load_sweep(path, words).config
    assert revise(load_experiment(experiment), config.overrides).config.backbone.options == {
        "width": 8,
        "in_channels": 1,
    }
    assert revise(load_experiment(experiment), config.baselines["wide"]).config.backbone.options == {
        "width": 6,
        "in_channels": 3,
    }


def test_a_command_prints_the_same_warning_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def thrice(options: argparse.Namespace) -> int:
        """Says something as Python does where no handler is set up; pytest sets one up."""
        for seed in (0, 0, 1):
            record = logging.LogRecord("tlresearch.data", logging.WARNING, "", 0, "twice with seed %d", (seed,), None)
            assert logging.lastResort is not None
            logging.lastResort.handle(record)
        return 0

    monkeypatch.setattr(config_command, "command", thrice)
    for _ in range(2):  # the next command says it again
        assert main(["config"]) == 0
        assert capsys.readouterr().err.splitlines() == ["twice with seed 0", "twice with seed 1"]


def test_the_mlflow_experiment_is_that_of_the_config_then_the_environment_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pets" / "probe.yaml"
    path.parent.mkdir()
    path.write_text("data: {name: digits}")
    assert load_experiment(path).config.tracking.experiment == "probe"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    loaded = load_experiment(path)
    assert loaded.config.tracking.experiment == load_text("data: {name: digits}").config.tracking.experiment == "mine"
    assert load_experiment(path, ["tracking.experiment=its"]).config.tracking.experiment == "its"
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert load_text(loaded.recorded).config.tracking.experiment == "mine"  # its repetition goes there too


def test_continue_is_a_key_of_the_command_line() -> None:
    assert load_text("data: {name: digits}", ["continue=3f2a"]).config.continues == "3f2a"
    assert load_text("data: {name: digits}", {"continue": "3f2a"}).config.continues == "3f2a"


@pytest.mark.parametrize("value", ["caf\udce9", ["ok", "caf\udce9"], "\ud800", "\ud800\udce9"])
def test_a_value_that_is_no_text_is_refused_by_its_key(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"backbone.options.folder: .*is not UTF-8; rename"):
        load_text("data: {name: digits}", {"backbone.options.folder": value})


def test_a_folder_that_was_removed_under_the_command_is_said_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["config"]) == 2
    assert capsys.readouterr().err == "error: the current folder is no longer there; go to another one\n"


def test_a_device_is_named_as_lightning_knows_it() -> None:
    with pytest.raises(ConfigError, match=r"trainer.accelerator: 'cuda:0' is unknown \(did you mean 'cuda'\?\)"):
        load_text("data: {name: digits}", ["trainer.accelerator=cuda:0"])


def test_the_record_of_a_version_with_the_arguments_of_all_parts_still_opens() -> None:
    text = toy_text(optimizer="{name: adamw, nesterov: false, rho: null}", scheduler="{name: constant, gamma: 0.1}")
    with pytest.raises(ConfigError, match="nesterov: is only read by sgd"):
        load_text(text)
    assert (
        load_recorded(text).config
        == load_text(toy_text(optimizer="{name: adamw}", scheduler="{name: constant}")).config
    )
    with pytest.raises(ConfigError, match="nesterow"):
        load_recorded(toy_text(optimizer="{name: adamw, nesterow: false}"))
