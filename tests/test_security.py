"""What a file or a config must never bring about: code that runs, files outside their folder, secrets that are told."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import json
import logging
import os
import pickle
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tlresearch.base.errors import ConfigError, DataError, TrackingError, UserError, WeightsError
from tlresearch.base.redact import HIDE, protect_output, redact
from tlresearch.config.load import load_experiment, load_text
from tlresearch.data.download import _unpack

PACKAGE = Path(__file__).parents[1] / "tlresearch"
CANARY = "canary-7fd1a0c4e2"
GOOD = "data: {name: digits}\nbackbone: {name: small_cnn, weights: null}\nfreeze: {schedule: full, epochs: 1}\n"


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    """A folder that is there only if somebody ran what a file asked for."""
    yield tmp_path / "trapped"
    assert not (tmp_path / "trapped").exists()


# Nothing is unpickled, nothing evaluated.


@functools.cache
def calls() -> list[tuple[str, ast.Call, str]]:
    """Module, node and name of every call in the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                found.append((path.relative_to(PACKAGE).as_posix(), node, ast.unparse(node.func)))
    return found


FORBIDDEN = {
    *("eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput", "marshal.loads"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "joblib.load"),
    *("dill.load", "shelve.open", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle"),
    *("np.fromregex", "pandas.read_pickle", "ElementTree.XMLParser", "etree.parse"),
}


def test_no_code_of_ours_unpickles_evaluates_or_opens_a_shell() -> None:
    found = [f"{module}: {name}" for module, _, name in calls() if name in FORBIDDEN]
    assert not found


@pytest.mark.parametrize(
    ("call", "word", "wanted"),
    [
        ("torch.load", "weights_only", True),
        ("np.load", "allow_pickle", False),
        ("from_pretrained", "trust_remote_code", False),
    ],
)
def test_what_can_be_told_to_run_code_is_told_not_to(call: str, word: str, wanted: bool) -> None:
    checked = 0
    for module, node, name in calls():
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name == call or (name.endswith(f".{call}") and word in given):
            value = given.get(word)
            assert isinstance(value, ast.Constant), f"{module}:{node.lineno}"
            assert value.value is wanted, f"{module}:{node.lineno}"
            checked += 1
        shell = given.get("shell")
        assert shell is None or (isinstance(shell, ast.Constant) and shell.value is False), f"{module}:{node.lineno}"
    assert checked


@pytest.mark.parametrize("suffix", ["pth", "pt", "ckpt", "bin", "safetensors"])
def test_a_checkpoint_that_holds_code_is_refused(suffix: str, tmp_path: Path, trap: Path) -> None:
    from tlresearch.backbones.weights import read

    path = tmp_path / f"w.{suffix}"
    for content in ({"a": torch.ones(1), "b": Trap(trap)}, {"state_dict": {"a": torch.ones(1)}, "hyper": Trap(trap)}):
        torch.save(content, path)
        with pytest.raises(WeightsError):
            read(path)
        path.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(WeightsError):
            read(path)


def test_arrays_that_hold_code_are_refused(tmp_path: Path, trap: Path) -> None:
    from tlresearch.data.npz import read_npz
    from tlresearch.modality.image import RawImages

    objects = np.array([Trap(trap)], dtype=object)
    np.savez(tmp_path / "x.npz", train_images=np.zeros((1, 4, 4), np.uint8), train_labels=objects, classes=objects)
    with pytest.raises(DataError, match="could run code"):
        read_npz(tmp_path / "x.npz")
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(DataError, match=r"y\.npz is not a readable npz file|could run code"):
        read_npz(tmp_path / "y.npz")
    buffer = io.BytesIO()
    np.save(buffer, objects, allow_pickle=True)
    with pytest.raises(ValueError, match="Object arrays"):
        RawImages(3).decode(buffer.getvalue())


def test_a_checkpoint_of_a_run_that_holds_code_is_not_read(tmp_path: Path, trap: Path) -> None:
    from tlresearch.finetuning import resume

    path = tmp_path / "last.ckpt"
    buffer = io.BytesIO()
    torch.save({"epoch": 1, "state_dict": Trap(trap)}, buffer)
    path.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).hexdigest().encode())
    assert resume.read_checkpoint(path) is None


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "object/apply:subprocess.check_call"])
def test_tags_of_yaml_run_nothing(tag: str, tmp_path: Path, trap: Path) -> None:
    value = f"!!python/{tag} [{trap}]"
    path = tmp_path / "experiment.yaml"
    path.write_text(f"{GOOD}name: {value}\n")
    for load in (lambda: load_experiment(path), lambda: load_text(path.read_text())):
        with pytest.raises(ConfigError, match="is not valid YAML: could not determine a constructor"):
            load()
    path.write_text(GOOD)
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_experiment(path, [f"name={value}"])


@pytest.mark.parametrize("call", ["eval:1+1", "python:1", "now:", "oc.eval:1", "shell:ls"])
def test_an_interpolation_calls_only_what_omegaconf_has(call: str) -> None:
    with pytest.raises(ConfigError, match="seed: cannot be resolved"):
        load_text(f"{GOOD}seed: ${{{call}}}\n")


def test_code_of_a_model_of_the_hub_is_not_run(tmp_path: Path, trap: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra text is not installed")
    from tlresearch.backbones.transformers_loading import load_config

    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(trap)!r})\nclass C: ...\n")
    about = {"model_type": "unheard_of", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.C"}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    for settings in ({}, {"trust_remote_code": True}):
        with pytest.raises((UserError, TypeError)):
            load_config(transformers, "evil", str(tmp_path), None, settings)


# Archives stay within their folder.


def tar_of(**fields: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        fine = tarfile.TarInfo("a/b.txt")
        fine.size = 1
        archive.addfile(fine, io.BytesIO(b"x"))
        member = tarfile.TarInfo(fields.pop("name"))
        for key, value in fields.items():
            setattr(member, key, value)
        archive.addfile(member, io.BytesIO(b"\0" * min(member.size, 10)) if member.isreg() else None)
    return buffer.getvalue()


def zip_of(name: str, *, link: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/b.txt", "x")
        member = zipfile.ZipInfo(name)
        member.external_attr = (0o120777 if link else 0o100644) << 16
        archive.writestr(member, "../../outside" if link else "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tar.gz", tar_of(name="../outside", size=1)),
        ("a.tar.gz", tar_of(name="a/../../outside", size=1)),
        ("a.tar.gz", tar_of(name="link", type=tarfile.SYMTYPE, linkname="../../outside")),
        ("a.tar.gz", tar_of(name="link", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        ("a.tar.gz", tar_of(name="link", type=tarfile.LNKTYPE, linkname="../../outside")),
        ("a.tar.gz", tar_of(name="disk", type=tarfile.BLKTYPE, devmajor=8, devminor=0)),
        ("a.tar.gz", tar_of(name="null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)),
        ("a.tar.gz", tar_of(name="pipe", type=tarfile.FIFOTYPE)),
        ("a.zip", zip_of("../outside")),
        ("a.zip", zip_of("a/../../outside")),
        ("a.zip", zip_of("..\\outside")),
        ("a.zip", zip_of("/outside")),
        ("a.zip", zip_of("C:\\outside")),
        ("a.zip", zip_of("link", link=True)),
    ],
)
def test_an_archive_writes_only_below_its_folder(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / name).write_bytes(content)
    try:
        _unpack(tmp_path / "x" / name, tmp_path / "x" / "target")
    except DataError as error:
        assert "is refused" in str(error)  # noqa: PT017  # a name that is made harmless is as good
        assert not (tmp_path / "x" / "target").exists()
    for path in tmp_path.rglob("*"):
        assert path.is_relative_to(tmp_path / "x" / "target") or "outside" not in path.name
        assert not path.is_symlink()
        assert path.is_file() or path.is_dir()
    assert not list((tmp_path / "x").glob(".*unpacking"))


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tar.gz"])
def test_an_archive_that_would_fill_the_disk_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlresearch.data.download._FREE", 10_000)
    zeros = b"\0" * 3_000_000
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros", zeros)
    else:
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            member = tarfile.TarInfo("zeros")
            member.size = len(zeros)
            tar.addfile(member, io.BytesIO(zeros))
    with pytest.raises(DataError, match="is refused: it would unpack to"):
        _unpack(tmp_path / name, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == [name]


# Stored models run no code but ours.


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The folder of a model as `log_model` stores it."""
    from mlflow.models import Model

    from tlresearch.tracking.model import _save, signature

    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "served.json").write_text('{"loader": "os.mkdir", "classes": []}')
    _save(tmp_path / "stored", tmp_path / "inside", Model(), signature(["a", "b"]), ["numpy"])
    return tmp_path / "stored"


def test_a_stored_model_is_loaded_only_if_its_code_is_ours(stored: Path, trap: Path) -> None:
    from tlresearch.tracking.model import _check_code

    _check_code(stored, "m-1")
    about = (stored / "MLmodel").read_text()
    code = (stored / "served.py").read_text()
    changes = {
        "served.py": f"import os\nos.mkdir({str(trap)!r})\n{code}",
        "MLmodel": about.replace("mlflow.pyfunc.loaders.code_model", "mlflow.pyfunc.model"),
        " MLmodel": about.replace("code: null", "code: code"),
        "  MLmodel": about.replace("    streamable", "    python_model: python_model.pkl\n    streamable"),
        "   MLmodel": about.replace("served.py", "other.py"),
    }
    for name, text in changes.items():
        before = (stored / name.strip()).read_text()
        assert text != before
        (stored / name.strip()).write_text(text)
        with pytest.raises(TrackingError, match="model m-1 is refused: it brings code of its own"):
            _check_code(stored, "m-1")
        (stored / name.strip()).write_text(before)
    _check_code(stored, "m-1")


@pytest.mark.parametrize(
    "loader",
    [
        "os.mkdir",
        "shutil.rmtree",
        "tlresearch.data.download._unpack",
        "tlresearch.serving.stored.load_file",
        "mkdir",
        "",
    ],
)
def test_a_stored_model_cannot_name_a_function_of_its_choice(loader: str, tmp_path: Path, trap: Path) -> None:
    from tlresearch.tracking.loaders import SETTINGS, rebuild

    (tmp_path / SETTINGS).write_text(json.dumps({"loader": loader}))
    with pytest.raises(ValueError, match=r"must be in tlresearch\.serving"):
        rebuild(tmp_path)


@pytest.mark.parametrize("part", ["task", "backbone", "log_mel", "options"])
def test_a_stored_model_cannot_name_parts_of_its_choice(part: str, tmp_path: Path, trap: Path) -> None:
    from tlresearch.tracking.loaders import LOADER, SETTINGS, rebuild

    call = {"name": "os.mkdir", "options": {"path": str(trap)}}
    task: dict[str, Any] = {"name": "classification", "dropout": 0.0, "options": {}}
    backbone = {"task": {"name": "small_cnn", "options": {}}, "backbone": call}.get(part, call)
    if part == "log_mel":
        backbone = {**call, "name": "log_mel/os.mkdir"}
    if part == "options":  # ours, and calls what it is told to
        backbone = {"name": "tlresearch.base.errors.call_object", "options": {"path": "os.mkdir", "key": "x.y"}}
        backbone["options"]["arguments"] = {"path": str(trap)}
    if part == "task":
        task["name"] = "os.mkdir"
    about = {"task": task, "backbone": {**backbone, "granularity": "stage", "in_channels": 1}}
    about |= {"classes": ["a"], "kind": "multiclass", "preprocessing": {}}
    (tmp_path / "predictor.json").write_text(json.dumps(about))
    (tmp_path / SETTINGS).write_text(json.dumps({"loader": LOADER}))
    with pytest.raises(UserError, match="whose code would run; if you trust it, add its package to TLRESEARCH_TRUSTED"):
        rebuild(tmp_path)


# Secrets stay where they are.


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch) -> str:
    """A variable whose name does not sound secret, read by a config."""
    monkeypatch.delenv(HIDE, raising=False)
    monkeypatch.setenv("WHATEVER", CANARY)
    return "${oc.env:WHATEVER}"


def test_the_value_of_a_variable_is_used_and_never_told(variable: str) -> None:
    loaded = load_text(f"{GOOD}description: before {variable} behind\n")
    assert CANARY in loaded.config.description
    assert CANARY not in loaded.recorded + json.dumps(loaded.flat())
    assert redact(f"x{CANARY}y") == "x***y"
    assert CANARY not in str(DataError(f"the file {CANARY} is broken"))
    for key, value in (("data.name", variable), ("seed", variable), ("backbone.name", variable)):
        with pytest.raises(ConfigError) as caught:
            load_text(GOOD, {key: value})
        assert CANARY not in str(caught.value) + repr(caught.value.problems)


def test_what_is_no_secret_is_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(HIDE, raising=False)
    for name, value in {
        "FOLDER": str(tmp_path),
        "COUNT": "12345678",
        "SHORT": "cpu",
        "STORE": "http://host:5000/ml",
    }.items():
        monkeypatch.setenv(name, value)
        load_text(f"{GOOD}description: ${{oc.env:{name}}}\n")
        assert redact(f"it is {value}.") == f"it is {value}."


@pytest.mark.parametrize(
    "told",
    [
        f"postgresql://me:{CANARY}@db/x cannot be opened",
        f"could not connect: password={CANARY} host=db",
        f"token {CANARY} refused",
    ],
)
def test_an_address_from_a_variable_hides_its_password_wherever_it_stands(
    told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(HIDE, raising=False)
    monkeypatch.setenv("STORE", f"postgresql://me:{CANARY}@db:5432/x?sslkey={CANARY}2")
    loaded = load_text(f"{GOOD}tracking: {{uri: '${{oc.env:STORE}}'}}\n")
    assert loaded.config.tracking.uri == os.environ["STORE"]
    assert CANARY not in redact(told)


def test_logs_and_errors_of_any_library_are_clean(variable: str) -> None:
    code = (
        "import logging, sys; from tlresearch.config.load import load_text\n"
        "from tlresearch.base.redact import protect_output; protect_output()\n"
        f"loaded = load_text({GOOD!r} + 'description: \"${{oc.env:WHATEVER}}\"')\n"
        "log = logging.getLogger('anything'); value = loaded.config.description\n"
        "log.warning('connecting with %s', value)\n"
        "try: raise RuntimeError(value)\n"
        "except RuntimeError: log.exception('it failed')\n"
        "raise ValueError(f'no such key: {value}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 1
    assert done.stderr.count("***") >= 3, done.stderr
    assert "ValueError: no such key: ***" in done.stderr
    assert CANARY not in done.stdout + done.stderr


def test_a_process_that_is_started_hides_the_same(variable: str) -> None:
    load_text(f"{GOOD}description: {variable}\n")
    code = f"from tlresearch.base.redact import redact; print(redact('{CANARY}'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "***"


def test_protecting_twice_does_no_harm(caplog: pytest.LogCaptureFixture, variable: str) -> None:
    before, hook = logging.getLogRecordFactory(), sys.excepthook
    try:
        load_text(f"{GOOD}description: {variable}\n")
        protect_output()
        protect_output()
        logging.getLogger("x").warning("%s", CANARY)
    finally:
        logging.setLogRecordFactory(before)
        sys.excepthook = hook
    assert caplog.messages == ["***"]


@pytest.mark.parametrize("command", ["serve", "ui"])
def test_a_server_answers_this_machine_alone_unless_told_otherwise(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tlresearch import cli
    from tlresearch.commands import shared

    words = [command, *(["3f2a9c1b"] if command == "serve" else [])]
    assert cli._parse(words).host == "127.0.0.1"
    for host in ("127.0.0.1", "localhost", "::1"):
        shared.warn_if_open(host)
    assert capsys.readouterr().err == ""

    def stop(*_: object) -> None:
        raise UserError("far enough")

    monkeypatch.setattr("tlresearch.tracking.store.connect", stop)
    monkeypatch.setattr("tlresearch.tracking.ui.connect", stop)
    assert cli.main([*words, "--host", "0.0.0.0"]) == 2
    assert "warning: on 0.0.0.0 everybody in the network can ask" in capsys.readouterr().err


def test_the_audit_fails_on_what_it_finds_and_says_when_it_found_nobody_to_ask() -> None:
    audit = runpy.run_path(str(PACKAGE.parent / ".ci" / "audit.py"))
    skipped = {"name": "a", "skip_reason": "not found"}
    fine = {"name": "b", "version": "1", "vulns": []}
    flawed = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
    cases = {0: [[], [skipped], [fine, skipped]], 1: [[flawed], [fine, skipped, flawed]]}
    for code, answers in cases.items():
        assert all(audit["verdict"]({"dependencies": packages})[0] == code for packages in answers)
    assert "NOTHING WAS CHECKED" in audit["verdict"]({"dependencies": [skipped]})[1]
    assert "c 2: CVE-1, mended in 3" in audit["verdict"]({"dependencies": [flawed]})[1]
    assert audit["ask"](sys.executable, "no such lock") is None  # a tool that fails gives no answer


def test_every_package_is_pinned_by_its_hash() -> None:
    for name in ("lock.txt", "audit.txt"):
        lines = (PACKAGE.parent / "requirements" / name).read_text().replace("\\\n", " ").splitlines()
        pinned = [line for line in lines if line and not line.lstrip().startswith("#")]
        assert pinned
        assert all(re.search(r"==\S+.*--hash=sha256:[0-9a-f]{64}", line) for line in pinned)
