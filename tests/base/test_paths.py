"""Where everything is written to, whatever the folder is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlresearch.base.errors import UserError
from tlresearch.base.paths import data_folder, find_weights, find_yaml, home, topic, yaml_names
from tlresearch.cli import main


@pytest.mark.parametrize("name", ["my home", "run#3", "100%", "ü家", "a%b"])
def test_a_home_may_have_any_name_that_an_address_can_hold(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", str(tmp_path / name))
    assert home() == tmp_path / name


@pytest.mark.parametrize(("name", "odd"), [("what?", "?"), ("a%20b", "%20"), ("%E4", "%E4")])
def test_a_home_that_an_address_would_read_otherwise_is_refused(
    name: str, odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", str(tmp_path / name))
    with pytest.raises(UserError, match="TLRESEARCH_HOME") as caught:
        home()
    assert f"holds '{odd}'" in str(caught.value)
    assert main(["run", "digits/transfer"]) == 2
    assert capsys.readouterr().err.startswith("error: TLRESEARCH_HOME: ")
    assert not list(tmp_path.iterdir())


def test_what_ships_with_us_is_found_by_name_where_there_is_no_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find_yaml("digits/pretrain", "experiments")
    assert topic(shipped, "experiments") == ("digits", "pretrain")
    assert {"digits/pretrain", "hymenoptera/full"} <= set(yaml_names("experiments"))
    assert "digits/lr_x_unfreeze_depth" in yaml_names("sweeps")


def test_an_experiment_of_the_current_folder_comes_before_one_that_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("experiments", "digits", "pretrain.yaml")
    own.parent.mkdir(parents=True)
    own.write_text("name: mine\n")
    assert find_yaml("digits/pretrain", "experiments") == own


def test_a_name_that_is_no_experiment_is_told_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'digits/pretrian'.*did you mean 'digits/pretrain'"):
        find_yaml("digits/pretrian", "experiments")
    (tmp_path / "labels.csv").write_text("image,label\n")
    with pytest.raises(UserError, match=r"there is no experiment 'labels\.csv'"):
        find_yaml("labels.csv", "experiments")


def test_a_topic_is_what_stands_below_the_last_folder_of_that_name() -> None:
    assert topic(Path("/home/experiments/env/experiments/photos/probe.yaml"), "experiments") == ("photos", "probe")
    assert topic(Path("probe.yaml"), "experiments") == ("probe", "probe")


def test_a_tilde_in_the_environment_is_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable, folder in {"HOME": home, "DATA": data_folder}.items():
        monkeypatch.setenv(f"TLRESEARCH_{variable}", "~/mine")
        assert folder() == tmp_path / "mine"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.pth").touch()
    monkeypatch.setenv("TLRESEARCH_WEIGHTS", "~/mine")
    assert find_weights("a.pth") == tmp_path / "mine" / "a.pth"


def test_a_home_whose_name_is_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", f"{tmp_path}/caf\udce9")
    with pytest.raises(UserError, match=r"TLRESEARCH_HOME: .*caf.xe9 is not UTF-8"):
        home()
