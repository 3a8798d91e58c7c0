"""The pages say what is true: options, links, commands and code are those of the product."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from tests.conftest import REPOSITORY
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.cli import _parser
from tlresearch.config import checks
from tlresearch.config.load import load_experiment, load_sweep, revise
from tlresearch.config.reference import as_markdown
from tlresearch.show.terminal import plain_text
from tlresearch.understand.inspection.inspect import inspect

PAGES = tuple(sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]))
NAMES = tuple(str(page.relative_to(REPOSITORY)) for page in PAGES)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
OTHERS = {
    "pip",
    "python",
    "git",
    "cd",
    "cp",
    "export",
    "echo",
    "curl",
    "mlflow",
    "ray",
    "sbatch",
    "docker",
    "kill",
    "eval",
    "autoload",
}
"""Programs of the pages that are not ours."""
PICTURE_LIMIT = 150_000  # bytes: a clone stays small


@pytest.fixture(scope="module")
def one_home(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """One home for all: making a store takes seconds."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


def blocks(name: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    text = (REPOSITORY / name).read_text()
    return [body for language, body in FENCE.findall(text) if language in languages]


def file_name(body: str) -> str:
    """The name that a block's first line gives it, ``# sweeps/photos/depth.yaml``; empty without one."""
    named = re.match(r"# ([\w./-]+\.yaml)$", body.partition("\n")[0])
    return named[1] if named else ""


def commands(name: str, program: str) -> list[list[str]]:
    """The words of every command line of a program in the page's shell blocks, without leading assignments."""
    found = []
    for body in blocks(name, "sh", "bash", "console"):
        for line in body.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", line.partition(" #")[0]):
                plain = part.strip().removeprefix("$ ").replace(".venv/bin/", "")
                words = shlex.split(plain) if program in plain else []
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words.pop(0)
                if words and words[0] == program:
                    found.append(words[1:])
    return found


def subcommands() -> set[str]:
    """Commands of the command line."""
    actions = [action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return set(actions[0].choices)


def targets() -> set[str]:
    """Targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """Addresses of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pages_are_there() -> None:
    wanted = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md"}
    wanted |= {f"docs/{n}.md" for n in ("architecture", "configuration", "extending", "schedules", "tracking")}
    assert wanted <= set(NAMES)


def test_the_list_of_options_is_up_to_date() -> None:
    cure = "python -m tlresearch.config.reference > docs/configuration.md"
    assert (REPOSITORY / "docs" / "configuration.md").read_text() == as_markdown(), f"run: {cure}"


def test_the_list_of_options_shows_numbers_as_numbers() -> None:
    lines = {line.split("`")[1]: line for line in as_markdown().splitlines() if line.startswith("| `")}
    assert "| whole number | `0` |" in lines["data.split_seed"]
    assert "| number | `1.0` |" in lines["optimizer.layer_lr_decay"]
    assert "| whole number | `1` |" in lines["trainer.devices"]
    assert "| true or false | `true` |" in lines["data.download"]


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    for link in LINK.findall(FENCE.sub("", (REPOSITORY / name).read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


@pytest.mark.parametrize("name", NAMES)
def test_every_make_target_exists(name: str) -> None:
    for words in commands(name, "make"):
        assert words[0] in targets(), words


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_understood(name: str) -> None:
    for words in commands(name, "tlresearch"):
        if words[0] in ("--help", "-h"):
            continue
        assert words[0] in subcommands(), words
        _parser().parse_args(words)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_on_a_command_line_has_a_key(name: str) -> None:
    known = {line.split("`")[1] for line in as_markdown().splitlines() if line.startswith("| `")}
    for body in blocks(name, "sh", "bash", "console"):
        for key in re.findall(r"(?<![\w./-])([a-z]\w*(?:\.\w+)+)=", body):
            # Options of a data source, a backbone or a sampler are its own.
            within = {key.rsplit(".", count)[0] for count in range(key.count(".") + 1)}
            assert within & known, key


@pytest.mark.parametrize("name", NAMES)
def test_every_other_line_of_a_shell_block_is_accounted_for(name: str) -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for body in blocks(name, "sh", "bash", "console"):
        for line in body.replace("\\\n", " ").splitlines():
            words = line.partition(" #")[0].strip().removeprefix("$ ").replace(".venv/bin/", "").split()
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words.pop(0)
            if not words or words[0].startswith("#") or words[0] in ("make", "tlresearch"):
                continue  # see above
            assert words[0] in OTHERS, line
            for extra in re.findall(r"tlresearch\[([\w,]+)\]", line):
                assert set(extra.split(",")) <= set(extras), line
            for file in re.findall(r"\b(?:docs|benchmarks|experiments|sweeps)/[\w./-]+\.\w+", line):
                assert (REPOSITORY / file).is_file(), line
            if words[0] == "python" and words[1:2] == ["-m"]:
                assert importlib.util.find_spec(words[2]) is not None, line
            elif words[0] == "python":
                assert words[1] == "predict.py", line  # which an export writes, and its tests run


def test_no_language_is_out_of_the_tests_sight() -> None:
    # Output is shown as text; what other libraries' users write is looked at in test_coming_from.py.
    found = {(language, name) for name in NAMES for language, _ in FENCE.findall((REPOSITORY / name).read_text())}
    assert {language for language, _ in found} <= {"sh", "yaml", "python", "text", "py"}
    assert {name for language, name in found if language == "py"} == {"docs/coming_from.md"}


@pytest.mark.parametrize("name", NAMES)
def test_experiments_and_sweeps_that_are_named_exist(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    of_the_page = {file_name(body) for body in blocks(name, "yaml")}
    for kind, folder in (("EXP", "experiments"), ("SWEEP", "sweeps")):
        for value in re.findall(rf"\b{kind}=([\w./-]+)", text):
            if {value, f"{folder}/{value}.yaml"} & of_the_page:
                continue
            if value.startswith(("torchvision/", "timm/", "path/to/", ".")) or value == "small_cnn":
                continue
            assert (REPOSITORY / folder / f"{value}.yaml").is_file(), value


@pytest.mark.parametrize("name", NAMES)
def test_no_code_is_out_of_the_tests_sight(name: str) -> None:
    # Blocks that are indented, or have more than a language behind their backticks, would not be found above.
    for line in (REPOSITORY / name).read_text().splitlines():
        assert "```" not in line or re.fullmatch(r"```\w*", line), line


@pytest.mark.parametrize("name", NAMES)
def test_lists_are_lists_on_the_site_too(name: str) -> None:
    # GitHub begins a list in the middle of a paragraph, and nests by two spaces; Python-Markdown does not.
    before = ""
    for line in FENCE.sub("", (REPOSITORY / name).read_text()).splitlines():
        if re.match(r"([-*]|\d+\.) ", line):
            assert not before or re.match(r"([-*]|\d+\.) | ", before), line
        assert not re.match(r" {1,3}([-*]|\d+\.) ", line), line
        before = line


def test_links_out_of_the_pages_lead_to_the_repository() -> None:
    place = importlib.util.spec_from_file_location("site_links", REPOSITORY / "docs" / "site_links.py")
    assert place is not None
    assert place.loader is not None
    hook = importlib.util.module_from_spec(place)
    place.loader.exec_module(hook)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="api/index.md"))
    there = "https://example.org"
    code = "```sh\n[x](../../y)\n```"
    shown = hook.on_page_markdown(
        f"[a](../text.md#b) [c](../../README.md) [d](../examples) [e](https://e) [f](#g)\n{code}\n",
        page=page,
        config=SimpleNamespace(repo_url=there),
    )
    assert shown == (
        f"[a](../text.md#b) [c]({there}/blob/main/README.md) [d]({there}/blob/main/docs/examples) "
        f"[e](https://e) [f](#g)\n{code}\n"
    )


def test_the_readme_names_the_test_command() -> None:
    assert ["test"] in commands("README.md", "make")


def test_make_help_names_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for target in targets() - {"test-all"}:
        assert re.search(rf"^  {target} ", shown, re.MULTILINE), target


def test_pictures_are_small() -> None:
    pictures = sorted((REPOSITORY / "docs" / "images").glob("*"))
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size < PICTURE_LIMIT, picture.name


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "yaml")])
def test_every_yaml_is_a_valid_experiment_or_sweep(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_data", Path)  # the data need not be here
    for folder in ("experiments", "sweeps"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    for number, body in enumerate(blocks(name, "yaml")):
        file = Path(file_name(body) or f"snippet{number}.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(body)
        if "experiment" in OmegaConf.create(body):
            sweep = load_sweep(file).config
            revise(load_experiment(sweep.experiment), sweep.overrides)
        else:
            load_experiment(file)


@pytest.mark.parametrize("experiment", ["hymenoptera/gradual", "docs/examples/probe_then_deep.yaml"])
def test_the_plans_shown_are_what_inspect_prints(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_data", Path)  # the photos need not be here
    printed = {line.rstrip() for line in plain_text(inspect(experiment), 110).splitlines()}
    shown = [body for body in blocks("docs/schedules.md", "text") if f"{Path(experiment).stem}: freeze" in body]
    assert len(shown) == 1
    for line in shown[0].splitlines():
        assert line.rstrip() in printed or line.startswith("  ..."), line


def test_the_schedule_shown_is_the_example() -> None:
    example = load_experiment("docs/examples/probe_then_deep.yaml").config
    shown = [body for body in blocks("docs/schedules.md", "yaml") if "norms too" in body]
    assert OmegaConf.create(shown[0])["freeze"] == OmegaConf.load("docs/examples/probe_then_deep.yaml")["freeze"]
    assert [phase.name for phase in example.freeze.phases] == ["probe", "last two", "norms too"]


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "python")])
def test_the_python_of_a_page_runs(name: str, one_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", str(one_home))
    # As a reader would: one after another, in a folder with the experiments and the examples.
    for folder in ("experiments", "sweeps"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    shutil.copytree(REPOSITORY / "docs" / "examples", tmp_path / "docs" / "examples")
    for module in (tmp_path / "docs" / "examples").glob("*.py"):
        monkeypatch.delitem(sys.modules, module.stem, raising=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "snippet"}
    for body in blocks(name, "python"):
        exec(compile(body, name, "exec"), names)
