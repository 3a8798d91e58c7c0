"""Published experiments: verdicts, what is run and what is not, and the record of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.errors import ConfigError, UserError
from tlresearch.cli import main
from tlresearch.run.fit import fit
from tlresearch.studies import seeds
from tlresearch.studies.reproduction import reproduce
from tlresearch.tracking.records import SEED, Runs
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
REFERENCE: dict[str, Any] = {
    "source": {"title": "Toy", "repository": "somebody/toy", "path": "README.md", "commit": "0123abc"},
    "numbers": [{"metric": "test/accuracy", "value": 1.0, "tolerance": 0.1, "reason": "ten samples"}],
    "needs": ["nothing: scikit-learn brings the digits"],
}


def published(**changes: Any) -> dict[str, Any]:
    """A published experiment that takes a second; `changes` are merged into its reference, or are other sections."""
    data = "{name: digits, classes: ['0', '1'], test_fraction: 0.2, batch_size: 16}"
    trainer = "{precision: 32-true, memory_format: contiguous}"  # nothing to be timed first
    content = yaml.safe_load(toy_text(data=data, freeze="{schedule: full, epochs: 2}", trainer=trainer))
    reference = {key: value for key, value in changes.items() if key in (*REFERENCE, "slow", "deviations", "note")}
    other = {key: value for key, value in changes.items() if key not in reference}
    return {**content, "reference": {**REFERENCE, **reference}, **other}


def number(value: float, **changes: Any) -> list[dict[str, Any]]:
    return [{**REFERENCE["numbers"][0], "value": value, **changes}]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes an experiment into a folder of its own, which is the current one."""
    monkeypatch.chdir(tmp_path)

    def written(content: dict[str, Any], name: str = "toys/toy") -> str:
        file = Path("experiments", f"{name}.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(content))
        return name

    return written


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the runs that were really started."""
    started: list[int] = []

    def counted(loaded: Any, **arguments: Any) -> Any:
        started.append(loaded.config.seed)
        return fit(loaded, **arguments)

    monkeypatch.setattr(seeds, "fit", counted)
    return started


def test_a_right_number_is_reproduced_and_a_wrong_one_is_not(
    write: Any, runs: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {"right": {"reference": {"kind": "baseline"}}, "wrong": {"reference": {"numbers": number(0.5)}}}
    name = write(published(seeds=[0, 1], variants=variants))
    assert main(["reproduce", name]) == 1
    assert runs == [0, 1]  # the variants differ in the published number alone: one group is enough
    shown = " ".join(capsys.readouterr().out.split())
    assert "difference +0.0000 +0.5000" in shown
    assert "verdict reproduced not reproduced" in shown

    store = connect()
    (parent,) = Runs(store).search(f"tags.`{reproduce.PUBLISHED}` LIKE '%'")
    assert parent.tags[reproduce.VERDICT] == "1 reproduced, 1 not reproduced"
    assert parent.name == "toy reproduced"
    record = json.loads(Path(store.client.download_artifacts(parent.run_id, "reproduction.json")).read_text())
    assert [row["verdict"] for row in record["rows"]] == ["reproduced", "not reproduced"]
    assert record["rows"][1]["number"]["value"] == 0.5
    assert record["rows"][0]["reference"]["source"]["commit"] == "0123abc"
    page = Path(store.client.download_artifacts(parent.run_id, "reproduction.md")).read_text()
    assert "| wrong | transfer | test/accuracy, last | 0.5000 |" in page
    (group,) = parent.members
    assert {run.tags[SEED] for run in group.members} == {"0", "1"}

    # With the number put right, the recorded runs are judged anew; --again really runs again.
    write(published(seeds=[0, 1]))
    assert main(["reproduce", name]) == 0
    assert runs == [0, 1]
    assert main(["reproduce", name, "--again"]) == 0
    assert runs == [0, 1, 0, 1]


def test_overrides_are_run_and_said(write: Any, runs: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    name = write(published(variants={"a": {}, "b": {"seed": 5}}))
    # Overrides may stand on both sides of an option.
    main(["reproduce", name, "freeze.epochs=1", "--variant", "b", "tracking.figures=false"])
    assert runs == [5]
    shown = capsys.readouterr().out
    assert "(overridden)" in shown
    assert "overridden: freeze.epochs=1\n" in shown


def test_missing_data_are_no_failure_and_leave_no_run(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    content = published(needs=["photos of toys: example.org/toys.zip"], data={"name": "image_folder", "root": "toys"})
    assert main(["reproduce", write(content)]) == 0
    shown = capsys.readouterr().out
    assert "not run" in shown
    assert "data.root: 'toys' is neither in" in shown
    assert "needs photos of toys: example.org/toys.zip" in shown
    assert not Runs().search("")


def test_weights_that_cannot_be_downloaded_are_no_failure(
    write: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(Path("empty").absolute()))
    monkeypatch.setattr("torch.hub.download_url_to_file", _no_network)
    backbone = {"name": "torchvision/squeezenet1_0", "weights": "IMAGENET1K_V1"}
    result = reproduce.reproduce_published(write(published(backbone=backbone, seeds=[0, 1])))
    assert [row.verdict for row in result.rows] == ["not run"]
    assert "cannot be downloaded" in result.rows[0].reason
    assert result.exit_code == 0
    assert not Runs().search("")  # nothing that failed


def test_what_was_run_is_judged_although_its_data_are_gone(write: Any, runs: list[int]) -> None:
    name = write(published())
    first = reproduce.reproduce_published(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "_gather", _no_network)
        second = reproduce.reproduce_published(name)
    assert runs == [0]
    assert [row.ours for row in second.rows] == [row.ours for row in first.rows] != [None]
    assert second.run_id == first.run_id


def test_two_processes_do_not_reproduce_the_same_at_once(write: Any, runs: list[int]) -> None:
    name = write(published())
    with seeds.alone(f"{name} as written", "it"), pytest.raises(UserError, match="is already running in another"):
        reproduce.reproduce_published(name)
    assert not runs


def _no_network(*_: Any, **__: Any) -> None:
    raise OSError("no network")


def test_all_writes_the_scoreboard_and_one_broken_variant_does_not_end_it(
    write: Any, runs: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(published(note="Ten samples are few.", deviations=["other digits"]), "a/good")
    write(published(slow=True, seed=7), "a/slow")
    write(published(freeze={"schedule": "surgical", "stages": ["no_such_stage"], "epochs": 1}), "b/broken")
    write(published(data={"name": "image_folder", "root": "toys"}), "b/elsewhere")
    write(yaml.safe_load(toy_text()), "b/plain")
    assert main(["reproduce", "--all"]) == 1
    assert runs == [0, 0]  # the broken one was tried
    page = Path("REPRODUCED.md").read_text()
    assert "4 experiments, 4 published numbers: 1 reproduced, 1 failed, 2 not run" in page
    assert "| [a/good](#agood) | 1 reproduced |" in page
    assert "## a/good\n\n*Toy*: somebody/toy `README.md` @ 0123abc; 1 run." in page
    assert "- Ten samples are few.\n- test/accuracy, last, tolerance 0.1: ten samples\n- differs from the" in page
    assert "- differs from the published protocol: other digits\n" in page
    assert "plain" not in page
    assert str(tmp_path) not in page

    # What was once run slowly is shown, and not run again.
    assert main(["reproduce", "a/slow"]) == 0
    assert runs == [0, 0, 7]
    main(["reproduce", "--all"])
    assert runs[3:] == [0]  # the broken one again
    assert "2 reproduced, 1 failed, 1 not run" in Path("REPRODUCED.md").read_text()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (published(numbers=[]), "reference.numbers: is empty"),
        (published(numbers=number(0.9, reason="")), "reference.numbers[0].reason: is needed"),
        (published(numbers=number(0.9, metric="accuracy")), "reference.numbers[0].metric: must be val/<name>"),
        (published(numbers=number(0.9, select="best")), "evaluated once, with the weights that trainer.select keeps"),
        (published(numbers=number(0.9, metric="val/accuracy", select=3)), "must be at most freeze.epochs (2)"),
        (published(source={"title": "x"}), "reference.source: needs repository, path and commit, or paper and table"),
        (published(source={**REFERENCE["source"], "commit": "main"}), "must be 7 to 40 hexadecimal digits"),
        (published(source={"title": "x", "paper": "y"}), "a paper needs the table"),
        (published(source={"title": "x", "path": "y"}), "with path it needs repository, commit"),
        (published(needs=[]), "reference.needs: is empty"),
        (published(variants={"x": {"optimizer": {"lrr": 1}}}), "variants[x]: optimizer.lrr: unknown key"),
        (published(variants={"a b": {}}), "variants[a b]: a name is made of"),
        (published(variants={"x": 3}), "variants: must map names to what differs"),
    ],
)
def test_a_reference_is_checked_before_anything_runs(write: Any, content: dict[str, Any], problem: str) -> None:
    name = write(content)
    for start in (reproduce.reproduce, lambda _: reproduce.reproduce_all()):
        with pytest.raises(ConfigError) as error:
            start(name)
        assert problem in str(error.value)


def test_what_every_variant_has_wrong_is_said_once(write: Any) -> None:
    name = write(published(seed=-1, variants={"x": {}, "y": {"optimizer": {"lr": 0}}}))
    with pytest.raises(ConfigError) as error:
        reproduce.reproduce_published(name)
    assert sorted(line.split(":")[0] for line in error.value.problems) == ["seed", "variants[y]"]


def test_other_mistakes_are_named(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="has no `reference`"):
        reproduce.reproduce_published(write(yaml.safe_load(toy_text()), "toys/plain"))
    with pytest.raises(UserError, match="no variant 'z' with a reference; it has toy"):
        reproduce.reproduce_published(write(published()), variants=["z"])
    for words in ([], ["x", "--all"], ["--all", "seed=1"]):
        assert main(["reproduce", *words]) == 2
    assert main(["reproduce", "no_such_run", "seed=1"]) == 2
    assert "there is no experiment 'no_such_run', and a recorded run is repeated as it was" in capsys.readouterr().err
    assert main(["reproduce", "no_such_run"]) == 2
    assert "there is no run 'no_such_run' in the MLflow store" in capsys.readouterr().err
    assert main(["reproduce", "toys/plane"]) == 2
    assert (
        "there is no experiment 'toys/plane', and no folder or file of data either (did you mean 'toys/plain'?)"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        main(["run", "x", "--no-such-option"])
