from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from tlresearch.backbones.cutting import cut
from tlresearch.backbones.tracing import TraceError

from .cheap import assert_covers, assert_equal, fill, images, run, torchvision_network, without_head
from .toys import (
    Branches,
    Containers,
    InPlace,
    KeepsSize,
    LongSkip,
    OtherInTraining,
    Preactivated,
    Shared,
    Toy,
)

EXAMPLE = torch.zeros(1, 3, 16, 16)

RESNET18 = {
    "stem": {"conv1", "bn1"},
    "layer1": {"layer1"},
    "layer2": {"layer2"},
    "layer3": {"layer3"},
    "layer4": {"layer4"},
}


def test_resnet18_has_the_five_stages_of_the_paper() -> None:
    network = torchvision_network("resnet18")
    pieces = cut(network, torch.zeros(1, 3, 224, 224))
    assert list(pieces.stages) == list(RESNET18)
    for name, tops in RESNET18.items():
        expected = {key for key in network.state_dict() if key.partition(".")[0] in tops}
        assert set(pieces.stages[name].state_dict()) == expected
    assert pieces.head == "fc"
    assert pieces.out_features == 512


def test_blocks_of_resnet18_are_stem_and_eight() -> None:
    network = torchvision_network("resnet18")
    pieces = cut(network, torch.zeros(1, 3, 224, 224), granularity="block")
    blocks = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    assert list(pieces.stages) == ["stem", *blocks]
    for name in blocks:
        assert all(key.startswith(f"{name}.") for key in pieces.stages[name].state_dict())


@pytest.mark.parametrize(
    ("name", "count"),
    [("vgg11_bn", 10), ("swin_t", 16), ("mobilenet_v2", 19), ("convnext_tiny", 22), ("vit_b_32", 13)],
)
def test_blocks_are_the_authors_blocks(name: str, count: int) -> None:
    network = torchvision_network(name).eval()
    side = 64 if name == "vit_b_32" else 224
    pieces = cut(network, torch.zeros(1, 3, side, side), granularity="block")
    assert len(pieces.stages) == count
    assert pieces.head is not None
    assert_covers(pieces.stages, network, pieces.head)
    x = images(2, 64)
    with torch.no_grad():
        assert_equal(run(pieces.stages, x), without_head(network, pieces.head)(x))


def test_vit_has_a_stage_per_layer() -> None:
    pieces = cut(torchvision_network("vit_b_32"), torch.zeros(1, 3, 64, 64))
    assert list(pieces.stages) == ["stem", *(f"encoder_layer_{i}" for i in range(12))]
    assert "class_token" in pieces.stages["stem"].state_dict()
    assert "encoder.pos_embedding" in pieces.stages["stem"].state_dict()
    assert "encoder.ln.weight" in pieces.stages["encoder_layer_11"].state_dict()


def test_names_are_the_same_for_every_build() -> None:
    names = [list(cut(torchvision_network("googlenet"), EXAMPLE.new_zeros(1, 3, 224, 224)).stages) for _ in "ab"]
    assert names[0] == names[1]
    assert len(set(names[0])) == len(names[0])


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "swin_t", "convnext_tiny", "mobilenet_v3_small"])
def test_train_mode_is_the_networks_own(name: str) -> None:
    """Dropout, stochastic depth and batch statistics: same random numbers, same result, same statistics."""
    network = torchvision_network(name)
    pieces = cut(copy.deepcopy(network), torch.zeros(1, 3, 224, 224))
    assert pieces.head is not None
    reference = without_head(network, pieces.head).train()
    for stage in pieces.stages.values():
        stage.train()
    x = images(4, 64)
    torch.manual_seed(3)
    expected = reference(x)
    torch.manual_seed(3)
    assert_equal(run(pieces.stages, x), expected)
    found = {key: value for stage in pieces.stages.values() for key, value in stage.state_dict().items()}
    for key, value in reference.state_dict().items():
        assert torch.allclose(found[key], value, rtol=1e-5, atol=1e-6), key


def test_functional_dropout_follows_each_stages_mode() -> None:
    pieces = cut(fill(Toy(drop=0.5)), EXAMPLE, granularity="block")
    stages = pieces.stages
    assert list(stages) == ["stem", "blocks.0", "blocks.1"]
    x = images(2, 16)
    for stage in stages.values():
        stage.eval()
    assert torch.equal(run(stages, x), run(stages, x))
    stages["blocks.1"].train()
    before = stages["stem"](x)
    assert torch.equal(stages["blocks.0"](before), stages["blocks.0"](before))
    assert not torch.equal(run(stages, x), run(stages, x))


def test_batch_norm_of_a_stage_in_eval_mode_stays() -> None:
    stages = cut(fill(Toy()), EXAMPLE, granularity="block").stages
    for name, stage in stages.items():
        stage.train(name == "blocks.1")
    before = {name: copy.deepcopy(stage.state_dict()) for name, stage in stages.items()}
    run(stages, images(2, 16))
    frozen = stages["blocks.0"].state_dict()
    assert all(torch.equal(before["blocks.0"][key], frozen[key]) for key in frozen)
    moved = stages["blocks.1"].state_dict()
    assert not torch.equal(before["blocks.1"]["blocks.1.norm.running_mean"], moved["blocks.1.norm.running_mean"])


def test_gradients_stop_at_the_boundary() -> None:
    stages = cut(torchvision_network("resnet18"), torch.zeros(1, 3, 224, 224)).stages
    x = images(2, 32)
    names = list(stages)
    with torch.no_grad():
        for name in names[:3]:
            x = stages[name](x)
    for name in names[3:]:
        x = stages[name](x)
    x.square().mean().backward()
    for name, stage in stages.items():
        for key, parameter in stage.named_parameters():
            if name in names[:3]:
                assert parameter.grad is None, key
            else:
                assert parameter.grad is not None, key
                assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "maxvit_t", "vit_b_32"])
def test_a_copy_is_whole_and_independent(name: str) -> None:
    side = 64 if name == "vit_b_32" else 224
    pieces = cut(torchvision_network(name).eval(), torch.zeros(1, 3, side, side))
    copied = copy.deepcopy(nn.ModuleList(pieces.stages.values()))
    for stage, twin in zip(pieces.stages.values(), copied, strict=True):
        assert list(stage.state_dict()) == list(twin.state_dict())
        mine = {tensor.data_ptr() for tensor in stage.parameters()}
        assert mine.isdisjoint(tensor.data_ptr() for tensor in twin.parameters())
    if name == "resnet18":
        x = images(1, 64)
        again = pickle.loads(pickle.dumps(nn.ModuleList(pieces.stages.values())))
        with torch.no_grad():
            expected = run(pieces.stages, x)
            assert torch.equal(run(dict(zip(pieces.stages, copied, strict=True)), x), expected)
            assert torch.equal(run(dict(zip(pieces.stages, again, strict=True)), x), expected)


def test_shared_parameters_stay_in_one_stage() -> None:
    network = fill(Shared()).eval()
    pieces = cut(network, EXAMPLE, granularity="block")
    assert len(pieces.stages) == 2
    assert_covers(pieces.stages, network, "head")


def test_no_stage_changes_its_input() -> None:
    pieces = cut(fill(InPlace()), EXAMPLE, granularity="block")
    assert list(pieces.stages) == ["stem", "two"]
    run(pieces.stages, images(2, 16))


def test_no_boundary_lies_in_front_of_an_operation_in_place() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Preactivated(), nn.Flatten(), nn.Linear(576, 2))
    pieces = cut(fill(network), EXAMPLE, granularity="block")
    assert list(pieces.stages) == ["backbone"]
    assert_covers(pieces.stages, network, "3")


def test_no_boundary_lies_within_a_skip_connection() -> None:
    network = fill(LongSkip()).eval()
    pieces = cut(network, EXAMPLE, granularity="block")
    assert list(pieces.stages) == ["stem", "two-three", "four"]
    x = images(2, 16)
    with torch.no_grad():
        assert_equal(run(pieces.stages, x), without_head(network, "head")(x))


def test_a_stage_ends_with_its_container() -> None:
    assert list(cut(Containers(), EXAMPLE).stages) == ["stem", "blocks", "more"]


def test_layers_that_look_at_the_mode_stay_modules() -> None:
    stages = cut(torchvision_network("efficientnet_b0"), torch.zeros(1, 3, 224, 224)).stages
    kinds = [type(module) for stage in stages.values() for module in stage.modules()]
    assert kinds.count(StochasticDepth) == 9
    assert kinds.count(nn.BatchNorm2d) == 49


def test_the_batch_size_may_cross_a_boundary() -> None:
    network = fill(KeepsSize()).eval()
    pieces = cut(network, EXAMPLE, granularity="block")
    assert list(pieces.stages) == ["stem", "blocks.0", "blocks.1"]
    assert "blocks.1.mask" in pieces.stages["blocks.1"].state_dict()
    assert_covers(pieces.stages, network, "head")
    without_head(network, "head")
    for count in (1, 5):
        x = images(count, 16)
        with torch.no_grad():
            assert_equal(run(pieces.stages, x), network(x))


def test_what_cannot_be_cut_says_why() -> None:
    with pytest.raises(TraceError, match="Branches cannot be traced"):
        cut(Branches(), torch.zeros(1, 3))
    with pytest.raises(TraceError, match="other operations in train than in eval mode"):
        cut(OtherInTraining(), EXAMPLE)
    with pytest.raises(TraceError, match="no linear layer and no convolution"):
        cut(nn.ReLU(), torch.zeros(1, 3))
    with pytest.raises(TraceError, match="does not run on an input"):
        cut(Toy(), torch.zeros(1, 5, 16, 16))
    with pytest.raises(TraceError, match="does not end in a tensor"):
        cut(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), EXAMPLE, head="none")


def test_cutting_leaves_the_mode_of_the_network() -> None:
    network = Toy()
    network.blocks[0].eval()
    cut(network, EXAMPLE)
    assert network.training
    assert not network.blocks[0].training
    assert network.blocks[1].training
