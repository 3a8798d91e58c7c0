"""Adapters live in the stages they adapt, train alone, and leave plain weights behind."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from tests.backbones.cheap import images
from tests.backbones.text_models import save_model
from tests.finetuning.test_callback import copy, make_phase, make_schedule, make_task, moved, train
from tests.test_resume import DRIVER
from tests.toy import toy_backbone, toy_text
from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.lineage import build_with_lineage
from tlresearch.backbones.vision import build_torchvision
from tlresearch.base.errors import ConfigError, MissingExtraError
from tlresearch.config.load import load_text
from tlresearch.config.schema import BackboneConfig
from tlresearch.finetuning import lora
from tlresearch.run.fit import fit
from tlresearch.serving.stored import load_predictor, save_predictor
from tlresearch.tracking.records import Runs

pytest.importorskip("peft", reason="the extra text is not installed")
# Kind of layer that is adapted where no pattern is given, and how many of them there are, counted by hand.
FAMILIES = {"resnet18": 20, "convnext_tiny": 36, "vit_b_16": 24, "swin_t": 27, "densenet121": 120}


@pytest.mark.parametrize("name", FAMILIES)
def test_adapted_traced_backbones_start_equal_learn_and_merge(name: str) -> None:
    torch.manual_seed(0)
    options = {"image_size": 32} if name.startswith("vit") else {}
    backbone = build_torchvision(name, weights=None, options=options).eval()
    x = images(2, 32)
    expected, names, before = backbone(x), list(backbone.state_dict()), copy(backbone)
    assert lora.inject(backbone, rank=4, alpha=8) == FAMILIES[name]
    assert torch.equal(backbone(x), expected)
    adapters = {key: weight for key, weight in backbone.named_parameters() if "lora_" in key}
    for key, weight in adapters.items():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.02)
    adapted = backbone(x)
    assert not torch.allclose(adapted, expected, atol=1e-6)
    (adapted * torch.randn_like(adapted)).sum().backward()
    assert [key for key, weight in adapters.items() if weight.grad is None or not weight.grad.any()] == []
    frozen = {key.replace(".base_layer", ""): value for key, value in copy(backbone).items() if "lora_" not in key}
    assert not moved(before, frozen)
    lora.merge(backbone)
    torch.testing.assert_close(backbone(x), adapted, rtol=1e-5, atol=1e-5)
    assert list(backbone.state_dict()) == names
    assert not any("peft" in type(module).__module__ for module in backbone.modules())


def test_only_adapters_and_head_train_each_in_the_group_of_its_stage() -> None:
    task = make_task("adamw")
    lora.inject(task.backbone, rank=2, alpha=4)
    before = copy(task)
    groups: list[dict[str, Any]] = []

    class Groups(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            groups.extend(trainer.optimizers[0].param_groups)

    train(task, make_schedule(make_phase(3, epochs=2, patterns=("@lora",))), Groups())
    names = {name for name in moved(before, copy(task)) if name.startswith(("backbone", "head"))}
    wanted = {f"backbone.stages.{s}.0.lora_{matrix}.default.weight" for s in range(3) for matrix in "AB"}
    assert names == wanted | {"head.1.weight", "head.1.bias"}
    for number in range(3):
        layer: Any = task.backbone.stages[number]
        mine = {id(weight) for group in groups if group["stage"] == number for weight in group["params"]}
        assert id(layer[0].lora_A["default"].weight) in mine


def test_a_probe_comes_before_the_adapters_if_the_phases_say_so() -> None:
    task = make_task()
    lora.inject(task.backbone, rank=2, alpha=4)
    train(task, make_schedule(make_phase(0), make_phase(3, patterns=("@lora",))))
    assert make_schedule(make_phase(0), make_phase(3, patterns=("@lora",))).adapters
    assert not make_schedule(make_phase(0), make_phase(3)).adapters


def test_targets_choose_layers_and_one_that_matches_nothing_is_an_error() -> None:
    backbone = build_torchvision("vit_b_16", weights=None, options={"image_size": 32})
    assert lora.inject(backbone, rank=2, alpha=4, targets=["*.mlp.0"]) == 12
    with pytest.raises(ConfigError, match=r"freeze\.lora\.targets: 'layer9\.\*' matches no layer"):
        lora.inject(toy_backbone(), rank=2, alpha=4, targets=["layer9.*"])


def test_the_same_seed_gives_the_same_adapters_whatever_was_drawn_before() -> None:
    found = []
    for _ in range(2):
        torch.rand(3)
        backbone = toy_backbone()
        lora.inject(backbone, rank=2, alpha=4, seed=5)
        found.append(copy(backbone))
    assert not moved(*found)


def test_without_peft_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "peft":
            raise ModuleNotFoundError("No module named 'peft'", name="peft")
        return plain(name, *rest)

    monkeypatch.delitem(sys.modules, "peft", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"tlresearch\[text\]"):
        lora.inject(toy_backbone(), rank=2, alpha=4)


def test_options_that_nothing_reads_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"freeze\.lora: is only read by"):
        load_text(toy_text(freeze="{schedule: full, lora: {rank: 4}}"))
    with pytest.raises(ConfigError, match=r"regularize\.l2_sp: the pretrained weights do not move"):
        load_text(toy_text(freeze="{schedule: lora}", regularize="{l2_sp: 0.1}"))


LORA = {"freeze": "{schedule: lora, epochs: 3, lora: {rank: 2, dropout: 0.1}}", "optimizer": "{lr: 0.02}"}


@pytest.mark.filterwarnings("ignore:The .*noload.* loader strategy is deprecated:DeprecationWarning")
def test_a_run_serves_and_hands_on_merged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted: dict[str, torch.Tensor] = {}
    x = torch.rand(4, 1, 8, 8)
    merge = lora.merge

    def spy(backbone: Any) -> None:
        adapted["before"] = backbone.eval()(x)
        merge(backbone)

    monkeypatch.setattr(lora, "merge", spy)
    loaded = load_text(toy_text(**LORA))
    result = fit(loaded)
    backbone = result.task.backbone.eval()
    torch.testing.assert_close(backbone(x), adapted["before"], rtol=1e-5, atol=1e-5)

    from tlresearch.data.build import build_data

    data = build_data(loaded.config.data, preprocessing=backbone.preprocessing, seed=0)
    save_predictor(tmp_path, loaded.config, result.task, data)
    served = load_predictor(tmp_path).network
    assert torch.equal(served(x), result.task.eval()(x))
    script = (
        "import sys; sys.modules['peft'] = None; from pathlib import Path; "
        "from tlresearch.serving.stored import load_predictor; load_predictor(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120)

    options = {"in_channels": 1, "width": 4}
    config = BackboneConfig(name="small_cnn", weights=None, checkpoint=result.run_id, options=options)
    torch.testing.assert_close(build_with_lineage(config, Runs()).eval()(x), backbone(x), rtol=0, atol=0)


@pytest.mark.slow
def test_a_killed_run_with_adapters_goes_on_as_it_was(tmp_path: Path) -> None:
    text = toy_text(**LORA)
    subprocess.run([sys.executable, "-c", DRIVER, text, str(tmp_path), json.dumps([5])], check=True, timeout=300)
    unbroken, resumed = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("unbroken", "killed-5"))
    assert resumed["steps"] < unbroken["steps"]
    for key in ("weights", "history", "points", "runs"):
        assert resumed[key] == unbroken[key], key


def test_gpt2s_transposed_linear_layers_are_adapted_and_merged(tmp_path: Path) -> None:
    save_model(tmp_path, "gpt2")
    backbone = build_backbone(BackboneConfig(name=f"hf/{tmp_path}", weights=None)).eval()
    before = copy(backbone)
    # Of each of the three layers: queries, keys and values in one, what follows attention, and two behind it.
    check_adapters(backbone, 12)
    assert {name for name in moved(before, copy(backbone)) if "ln_" in name or ".wte" in name} == set()
    assert all(weight.shape == before[name].shape for name, weight in copy(backbone).items())
    chosen = build_backbone(BackboneConfig(name=f"hf/{tmp_path}", weights=None))
    assert lora.inject(chosen, rank=2, alpha=4, targets=["*c_attn"]) == 3


def test_the_layers_of_a_real_language_model_are_adapted_and_merged(weights_dir: Path) -> None:
    backbone = build_backbone(BackboneConfig(name="hf/tinystories-260k", weights="default")).eval()
    check_adapters(backbone, 35)


def check_adapters(backbone: StagedBackbone, count: int) -> None:
    """Adapters change nothing at first, all of them learn, and merged ones give what they gave."""
    x = {"ids": torch.tensor([[2, 4, 5, 6]]), "mask": torch.ones(1, 4, dtype=torch.bool)}
    expected, names = backbone(x), list(backbone.state_dict())
    assert lora.inject(backbone, rank=2, alpha=4) == count
    assert torch.equal(backbone(x), expected)
    adapters = {key: weight for key, weight in backbone.named_parameters() if "lora_" in key}
    for key, weight in adapters.items():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.2)
    adapted = backbone(x)
    assert not torch.allclose(adapted, expected, atol=1e-4)
    (adapted * torch.randn_like(adapted)).sum().backward()
    assert [key for key, weight in adapters.items() if weight.grad is None or not weight.grad.any()] == []
    lora.merge(backbone)
    torch.testing.assert_close(backbone(x), adapted, rtol=1e-4, atol=1e-4)
    assert list(backbone.state_dict()) == names
