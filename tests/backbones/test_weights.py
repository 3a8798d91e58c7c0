from __future__ import annotations

import hashlib
import http.server
import logging
import os
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tlresearch.backbones import weights
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.weights import check_hash, digest, load_stages, load_tensors, locate, read
from tlresearch.base.errors import UserError, WeightsError
from tlresearch.base.files import sha256
from tlresearch.config.schema import BackboneConfig


@pytest.fixture
def stages() -> dict[str, nn.Module]:
    one, two = nn.Sequential(), nn.Sequential()
    one.add_module("conv", nn.Conv2d(3, 4, 1))
    two.add_module("norm", nn.BatchNorm2d(4))
    two.add_module("last", nn.Conv2d(4, 5, 1))
    return {"stem": one, "top": two}


def states(stages: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {key: value + 1 for stage in stages.values() for key, value in stage.state_dict().items()}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of a folder with one weights file, and an empty cache of torch."""
    folder = tmp_path / "served"
    folder.mkdir()
    torch.save({"a": torch.ones(3)}, folder / "a.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/a.pth"
    server.shutdown()
    thread.join()
    server.server_close()


def test_sha256_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert sha256(path) == hashlib.sha256(b"abc").hexdigest()


def test_digest_is_of_the_content() -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(4)}
    base = digest(tensors)
    assert digest(dict(reversed(tensors.items()))) == base
    assert digest({**tensors, "a": tensors["a"].t().contiguous().t()}) == base
    others = [
        {**tensors, "a": tensors["a"].view(3, 2)},
        {**tensors, "a": tensors["a"].int()},
        {**tensors, "a": -tensors["a"]},
        {"d": tensors["a"], "b": tensors["b"], "c": tensors["c"]},
        {key: tensors[key] for key in "ab"},
    ]
    assert len({base, *(digest(other) for other in others)}) == 6


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".th"])
def test_files_of_each_kind_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    content = {"a": torch.ones(2), "b": torch.zeros(1)}
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    assert sorted(read(path)) == ["a", "b"]


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda own: {"state_dict": {f"module.{name}": tensor for name, tensor in own.items()}, "best": 0.9},
         "state_dict.module."),
        (lambda own: {f"_orig_mod.{name}": tensor for name, tensor in own.items()}, ""),
        (lambda own: {f"module._orig_mod.{name}": tensor for name, tensor in own.items()}, "module."),
        (lambda own: {"model_ema": own, "args": None}, "model_ema."),
        (lambda own: {"net": own, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, "net."),
        (lambda own: {"state_dict": {f"module.encoder_q.{name}": tensor for name, tensor in own.items()}},
         "state_dict.module.encoder_q."),
        # Two state dicts, of which one is of another network.
        (lambda own: {"teacher": {name: torch.ones(7, 7) for name in own}, "student": own}, "student."),
        (lambda own: {**own, **{f"ema.{name}": tensor for name, tensor in own.items()}}, ""),
    ],
)  # fmt: skip
def test_a_backbone_under_one_prefix_is_found(
    wrap: Callable[[dict[str, Tensor]], object], prefix: str, tmp_path: Path, stages: dict[str, nn.Module]
) -> None:
    own = states(stages)
    torch.save(wrap(own), tmp_path / "w.pth")
    record = load_stages(stages, tmp_path / "w.pth")
    assert (record.prefix, record.random_stages) == (prefix, ())
    assert all(torch.equal(tensor, own[name]) for s in stages.values() for name, tensor in s.state_dict().items())


def test_a_backbone_that_lies_there_twice_has_to_be_chosen(tmp_path: Path, stages: dict[str, nn.Module]) -> None:
    own = states(stages)
    twice = {
        "teacher": {f"module.{n}": v + 1 for n, v in own.items()},
        "student": {f"module.{n}": v for n, v in own.items()},
    }
    torch.save(twice, tmp_path / "dino.pth")
    with pytest.raises(
        WeightsError,
        match=r"holds the backbone 2 times, under 'student.module.' and 'teacher.module.'; choose one, such as "
        r"backbone.weights_prefix=student.module.",
    ):
        load_stages(stages, tmp_path / "dino.pth")
    assert load_stages(stages, tmp_path / "dino.pth", prefix="teacher.module.").prefix == "teacher.module."
    assert torch.equal(stages["top"].state_dict()["last.bias"], own["last.bias"] + 1)
    with pytest.raises(WeightsError, match=r"nothing in .* under 'x.' fits the backbone: it holds 'teacher.module"):
        load_stages(stages, tmp_path / "dino.pth", prefix="x.")


def test_an_option_picks_the_prefix(tmp_path: Path) -> None:
    source = build_backbone(BackboneConfig(name="small_cnn", weights=None, options={"width": 4}))
    own = source.original_state_dict()
    torch.save({"a": own, "b": {name: tensor + 1 for name, tensor in own.items()}}, tmp_path / "w.pth")
    config = BackboneConfig(name="small_cnn", weights=str(tmp_path / "w.pth"), options={"width": 4})
    with pytest.raises(WeightsError, match="holds the backbone 2 times"):
        build_backbone(config)
    chosen = build_backbone(replace(config, weights_prefix="b."))
    assert all(torch.equal(tensor, own[name] + 1) for name, tensor in chosen.original_state_dict().items())
    with pytest.raises(UserError, match=r"backbone.weights_prefix: speech_embedding reads the files of its own kind"):
        build_backbone(replace(config, name="speech_embedding", weights_prefix="b."))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"head.weight": None}, r"^a.safetensors does not fit: 'head.weight' is missing$"),
        ({"head.weight": None, "head.bias": None}, r"'head.weight' is missing \(and 1 more, such as 'head.bias'\)$"),
        ({"head.wieght": torch.ones(1)}, r"'head.wieght' has no place$"),
        ({"head.weight": torch.ones(2, 3)}, r"'head.weight' has shape \(2, 3\) but \(3, 2\) is needed$"),
    ],
)
def test_every_tensor_is_accounted_for(change: dict[str, Tensor | None], error: str) -> None:
    module = nn.Sequential(OrderedDict(body=nn.Linear(2, 2), head=nn.Linear(2, 3)))
    before = digest(module.state_dict())
    tensors = {name: tensor + 1 for name, tensor in module.state_dict().items()} | change
    with pytest.raises(WeightsError, match=error):
        load_tensors(module, {n: t for n, t in tensors.items() if t is not None}, "a.safetensors")
    assert digest(module.state_dict()) == before


def test_what_may_be_missing_or_of_another_shape_stays_and_is_named() -> None:
    module = nn.Sequential(OrderedDict(body=nn.Linear(2, 2), head=nn.Linear(2, 3)))
    tensors = {"body.weight": torch.ones(2, 2), "head.weight": torch.ones(5, 2)}
    kept = load_tensors(module, tensors, "it", required=["body.weight"], other_shapes=["head.weight"])
    assert kept == ("body.bias", "head.weight", "head.bias")
    assert torch.equal(module.state_dict()["body.weight"], torch.ones(2, 2))


def test_loading_all(tmp_path: Path, stages: dict[str, nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "w.pth"
    wanted = states(stages)
    torch.save({**wanted, "head.weight": torch.ones(9, 9), "aux1.fc": torch.ones(1)}, path)
    with caplog.at_level(logging.WARNING):
        record = load_stages(stages, path, head="head", ignore=("aux1",))
    assert not caplog.records
    assert (record.source, record.sha256, record.random_stages) == ("w.pth", sha256(path), ())
    for stage in stages.values():
        assert all(torch.equal(value, wanted[key]) for key, value in stage.state_dict().items())


def test_a_partial_file_names_the_random_stages(
    tmp_path: Path, stages: dict[str, nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "w.pth"
    before = stages["top"].state_dict()["last.bias"].clone()
    torch.save({k: v for k, v in states(stages).items() if k != "last.bias"}, path)
    with caplog.at_level(logging.WARNING):
        assert load_stages(stages, path).random_stages == ("top",)
    assert "1 tensors are missing, such as 'last.bias'; stages that stay random: top" in caplog.text
    assert torch.equal(stages["top"].state_dict()["last.bias"], before)


def test_files_older_than_the_batch_counter_are_whole(tmp_path: Path, stages: dict[str, nn.Module]) -> None:
    torch.save({k: v for k, v in states(stages).items() if "num_batches" not in k}, tmp_path / "w.pth")
    assert load_stages(stages, tmp_path / "w.pth").random_stages == ()


def test_tensors_without_a_place_are_warned_about(
    tmp_path: Path, stages: dict[str, nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({**states(stages), "more.weight": torch.ones(1)}, tmp_path / "w.pth")
    load_stages(stages, tmp_path / "w.pth", head="head")
    assert "1 tensors have no place in the backbone, such as 'more.weight'" in caplog.text


def test_wrong_shapes_are_refused_before_anything_is_loaded(tmp_path: Path, stages: dict[str, nn.Module]) -> None:
    before = digest({**stages["stem"].state_dict(), **stages["top"].state_dict()})
    torch.save({**states(stages), "last.weight": torch.ones(7, 4, 1, 1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"'last.weight' has shape \(7, 4, 1, 1\) but \(5, 4, 1, 1\) is needed$"):
        load_stages(stages, tmp_path / "w.pth")
    assert digest({**stages["stem"].state_dict(), **stages["top"].state_dict()}) == before


def test_a_file_of_another_network_is_refused(tmp_path: Path, stages: dict[str, nn.Module]) -> None:
    torch.save({"encoder.weight": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"nothing in .*w.pth fits the backbone: it holds 'encoder.weight'"):
        load_stages(stages, tmp_path / "w.pth")


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"a": torch.ones(1), "b": Malicious(trap)}, tmp_path / "w.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": Malicious(trap)}, protocol=2))
    for name in ("w.pth", "old.pth"):
        with pytest.raises(WeightsError, match="refused"):
            read(tmp_path / name)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello, this is no checkpoint", b"PK\x03\x04 cut off"])
def test_what_is_no_checkpoint_is_one_clear_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"epoch": 3}, {}, torch.ones(2)])
def test_a_checkpoint_without_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"not a state dict|holds no tensors by name"):
        read(tmp_path / "w.pth")


def test_hashes_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert check_hash(path, sha256(path).upper()) == path
    assert check_hash(path, None) == path
    with pytest.raises(WeightsError, match=f"has SHA-256 {sha256(path)} but {'0' * 64} is expected"):
        check_hash(path, "0" * 64)
    with pytest.raises(WeightsError, match="must be 64 hex digits but got 'abc'"):
        check_hash(path, "abc")


def test_a_missing_file_says_where_it_was_looked_for() -> None:
    with pytest.raises(UserError, match="TLRESEARCH_WEIGHTS"):
        locate("nowhere.pth", None)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not a file"):
        locate(str(tmp_path), None)


def test_a_url_needs_a_hash() -> None:
    with pytest.raises(WeightsError, match="weights_sha256 is required"):
        locate("https://example.invalid/w.pth", None)


def test_a_download_is_checked_each_time(served: str, tmp_path: Path) -> None:
    expected = sha256(tmp_path / "served" / "a.pth")
    path = locate(served, expected)
    assert path.is_relative_to(tmp_path / "cache")
    assert list(read(path)) == ["a"]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(WeightsError, match="is expected"):
        locate(served, expected)


def test_a_download_with_another_hash_is_not_kept(served: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="another hash"):
        locate(served, "0" * 64)
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


@pytest.mark.parametrize("place", ["missing.pth", "offline"])
def test_a_failed_download_names_the_cure(served: str, place: str) -> None:
    url = "http://127.0.0.1:9/w.pth" if place == "offline" else served.replace("a.pth", place)
    with pytest.raises(WeightsError, match=r"backbone.weights=FILE"):
        locate(url, "0" * 64)


def test_the_hash_in_a_file_name_is_found() -> None:
    assert weights.hash_in_name(Path("resnet18-f37072fd.pth")) == "f37072fd"
    assert weights.hash_in_name(Path("resnet18.pth")) is None
