"""A drafted experiment and sweep are right, found again, and run; the backbone is one whose weights can be had."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

from tests.drafting.test_survey import picture, table
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.errors import WeightsError
from tlresearch.cli import main
from tlresearch.config.load import load_experiment, load_sweep, load_text, revise
from tlresearch.drafting.backbone import choose
from tlresearch.drafting.draft import RECIPES, Recipe, draft
from tlresearch.tasks.build import find_task

NO_DATA = {"data": {"name": "digits"}}
REAL_WEIGHTS = os.environ.get("TLRESEARCH_WEIGHTS")  # before a test sets it
pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is away, nothing was downloaded, and no weights are here."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # the port that answers nobody
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("TLRESEARCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)


def weights_of(model: str, folder: Path, *, lacking: str = "nothing") -> None:
    """Writes random weights of a model as a file, perhaps without some of its tensors."""
    tensors = torchvision.models.get_model(model).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: value for name, value in tensors.items() if lacking not in name}, folder / f"{model}-0.pth")


def photos(folder: Path, count: int = 10) -> Path:
    for number in range(count):
        picture(folder / "cats" / f"{number}.png", 10 * number)
        picture(folder / "dogs" / f"{number}.png", 200)
    return folder


def test_weights_at_hand_are_taken_when_the_network_is_away(tmp_path: Path) -> None:
    weights_of("squeezenet1_1", tmp_path / "weights" / "mine")
    choice = choose("image", "classification", 100)
    assert (choice.name, choice.weights) == ("torchvision/squeezenet1_1", "mine/squeezenet1_1-0.pth")
    assert "download.pytorch.org does not answer" in choice.whence


def test_a_file_that_lacks_a_part_of_the_backbone_is_passed_over(tmp_path: Path) -> None:
    weights_of("squeezenet1_1", tmp_path / "weights", lacking="features.12")
    with pytest.raises(WeightsError, match="connect once, put a file there, or name a backbone"):
        choose("image", "classification", 100)


def test_weights_that_were_downloaded_before_are_taken_without_asking(tmp_path: Path) -> None:
    url = torchvision.models.get_model_weights("mobilenet_v2")["DEFAULT"].url
    file = tmp_path / "torch" / "hub" / "checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    file.touch()
    choice = choose("image", "segmentation", 30)
    assert (choice.name, choice.weights, choice.whence) == (
        "torchvision/mobilenet_v2", "default", "downloaded before",
    )  # fmt: skip


def test_texts_take_the_model_that_lies_here(tmp_path: Path) -> None:
    folder = tmp_path / "weights" / "some-model"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    assert choose("text", "classification", 100).name == "hf/some-model"


def test_a_draft_is_an_experiment_and_a_sweep_over_it(tmp_path: Path) -> None:
    weights_of("squeezenet1_1", tmp_path / "weights")
    drafted = draft(photos(tmp_path / "holiday photos"))
    assert drafted.experiment == tmp_path / "home" / "experiments" / "holiday_photos" / "linear_probe.yaml"
    loaded = load_experiment("holiday_photos/linear_probe")
    assert loaded.config.tracking.experiment == "holiday_photos"
    assert loaded.config.data.test_fraction == loaded.config.data.val_fraction == 0.2
    sweep = load_sweep("holiday_photos/lr_x_unfreeze_depth").config
    assert sweep.trials == 16
    trial = revise(load_experiment(sweep.experiment), {**sweep.overrides, **sweep.enqueue[1]}).config
    assert (trial.freeze.schedule, trial.freeze.unfreeze_depth, trial.optimizer.lr) == ("depth", 1, 1e-3)


def test_the_same_folder_finds_its_draft_and_what_was_changed_in_it(tmp_path: Path) -> None:
    weights_of("squeezenet1_1", tmp_path / "weights")
    first = draft(photos(tmp_path / "photos"))
    first.experiment.write_text(first.experiment.read_text().replace("epochs: 20", "epochs: 3"))
    again = draft(tmp_path / "photos")
    assert (again.experiment, again.is_new) == (first.experiment, False)
    assert load_experiment(again.experiment).config.freeze.epochs == 3
    other = draft(photos(tmp_path / "elsewhere" / "photos"))
    assert other.experiment.parent.name == "photos_2"


def test_init_writes_where_its_user_looks_and_other_commands_take_it_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights_of("squeezenet1_1", tmp_path / "weights")
    photos(tmp_path / "photos")
    assert main(["init", "photos/"]) == 0
    printed = capsys.readouterr().out
    assert "20 images, 2 classes (cats 10, dogs 10)" in printed
    assert "tlresearch sweep photos/lr_x_unfreeze_depth" in printed
    assert "root: photos\n" in Path("experiments/photos/linear_probe.yaml").read_text()
    assert draft(Path("photos")).experiment == Path("experiments/photos/linear_probe.yaml")
    assert main(["init", "photos/"]) == 0
    assert "drafted before" in capsys.readouterr().out


def test_one_large_class_is_weighed(tmp_path: Path) -> None:
    weights_of("squeezenet1_1", tmp_path / "weights")
    for number in range(40):
        picture(tmp_path / "photos" / ("rare" if number < 4 else "usual") / f"{number}.png", number)
    config = load_experiment(draft(tmp_path / "photos").experiment).config
    assert config.task.class_weights == "balanced"
    assert config.data.test_fraction == 0.0  # of four samples a test would say nothing


def test_a_folder_is_run_and_swept_without_a_file(
    tmp_path: Path, tables: None, capsys: pytest.CaptureFixture[str]
) -> None:
    if REAL_WEIGHTS is None:
        pytest.skip("TLRESEARCH_WEIGHTS does not name the folder with the real pretrained weights")
    (tmp_path / "weights").mkdir()
    shutil.copy(Path(REAL_WEIGHTS, "torchvision", "squeezenet1_1-ncnn_fp16.pth"), tmp_path / "weights")
    photos(tmp_path / "photos")
    small = ["data.image_size=64", "freeze.epochs=2", "tracking.figures=false", "tracking.system_metrics=false"]
    assert main(["run", "photos/", *small]) == 0
    printed = capsys.readouterr().out
    assert "torchvision/squeezenet1_1" in printed
    assert "test" in printed
    overrides = [f"overrides.{value}" for value in small]
    assert main(["sweep", "photos/", "trials=2", *overrides]) == 0
    best = tmp_path / "home" / "sweeps" / "photos" / "lr_x_unfreeze_depth" / "best.yaml"
    assert best.is_file()
    assert (best.parents[1] / "lr_x_unfreeze_depth.yaml").is_file()


def test_long_texts_are_given_room(tmp_path: Path) -> None:
    folder = tmp_path / "weights" / "some-model"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    rows = [f"{'long ' * 60}text {number}\t{number % 2}" for number in range(40)]
    table(tmp_path / "reviews.tsv", *rows)
    assert load_experiment(draft(tmp_path / "reviews.tsv").experiment).config.data.max_length == 96


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=["-".join(key) for key in RECIPES])
def test_a_recipe_gives_its_task_what_it_takes(recipe: Recipe) -> None:
    config = load_text(yaml.safe_dump({**recipe.sections, **NO_DATA})).config
    assert config.task.options.keys() <= find_task(config.task.name).defaults.keys()
