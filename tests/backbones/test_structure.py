"""Networks cut by their structure: toys with one difficulty each, and the same results at every boundary."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tlresearch.backbones.parts import CutError
from tlresearch.backbones.stages import AsItIs, batches_like, check
from tlresearch.backbones.structure import StructureCut, cut_by_structure
from tlresearch.modality.values import Value, leaves, stack, unstack

WIDTH = 8


class Layer(nn.Module):
    """Attention-like: looks at all positions the mask leaves, and at a table that an earlier layer made."""

    def __init__(self, *, table: bool = False, drop: float = 0.0) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.table = nn.Embedding(64, 1) if table else None
        self.drop = drop

    def forward(self, hidden: Tensor, mask: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        length = hidden.shape[1]
        if self.table is not None:
            places = torch.arange(length, device=hidden.device)
            bias = self.table((places[:, None] - places[None]).abs())[..., 0]
        scores = self.mix(hidden) @ hidden.transpose(1, 2)
        scores = scores + bias if bias is not None else scores
        weights = scores.masked_fill(~mask[:, None], -1e9).softmax(dim=-1)
        hidden = hidden + functional.dropout(weights @ hidden, self.drop, training=self.training)
        return hidden + self.out(hidden), bias


class Encoder(nn.Module):
    """Embeddings, a list of layers that share a table, a norm; dropout that no module stands for."""

    def __init__(self, layers: int = 3, *, table: bool = False, drop: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(20, WIDTH)
        self.layers = nn.ModuleList(Layer(table=table and number == 0, drop=drop) for number in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.drop = drop
        self.unused = nn.Parameter(torch.zeros(3))
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = functional.dropout(self.words(ids), self.drop, training=self.training) * self.scale
        bias = None
        for layer in self.layers:
            hidden, bias = layer(hidden, mask, bias)
        return {"hidden": self.norm(hidden) * self.scale, "mask": mask}


class Grid(nn.Module):
    """A layer over the positions of an image; their number of rows and columns goes along as plain numbers."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(WIDTH, WIDTH, stride, stride)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(2))

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        x = self.down(x.transpose(1, 2).reshape(len(x), WIDTH, *size))
        size = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return x, size


class Pyramid(nn.Module):
    """Patches, then layers that hand sizes on and change their input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.position = nn.Parameter(torch.randn(1, WIDTH, 4, 4))
        self.levels = nn.ModuleList([Grid(1), Grid(2), Grid(1)])
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images)
        x = x + functional.interpolate(self.position, x.shape[2:])
        size = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        for level in self.levels:
            x, size = level(x, size)
            x += 1.0
        return self.head(x.mean(dim=1)) * size[0]


class Skipping(nn.Module):
    """An encoder's result is looked at again by every layer of a decoder, sequence first."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(3, WIDTH)
        self.encoder = nn.ModuleList(Residual() for _ in range(2))
        self.decoder = nn.ModuleList(Residual() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x).transpose(0, 1)
        for layer in self.encoder:
            x = layer(x)
        memory, x = x, torch.ones_like(x)
        for layer in self.decoder:
            x = layer(x) * memory
        return x.mean(dim=0)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x).tanh()


class Predict(nn.Module):
    """Scores, and which positions are above average: a mask that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = x @ self.weight
        return scores, scores.detach() > scores.detach().mean(dim=1, keepdim=True)


class Masking(nn.Module):
    """Layers look where a first prediction says; the last prediction is the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(3, WIDTH)
        self.predict = Predict()
        self.layers = nn.ModuleList(Residual() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for layer in self.layers:
            _, mask = self.predict(x)
            x = x + layer(x) * mask[..., None]
        return self.predict(x)[0]


class Positioned(nn.Module):
    """A table of positions that is dropped out for each sample, and handed to all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(3, WIDTH)
        self.drop = nn.Dropout(0.5)
        self.layers = nn.ModuleList(Residual() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        table = torch.linspace(-1, 1, x.shape[1])[None, :, None].expand(len(x), -1, WIDTH)
        x, table = self.drop(self.start(x)), self.drop(table)
        for layer in self.layers:
            x = layer(x) + table
        return x.mean(dim=1)


class Repeated(Encoder):
    """The table of the first layer, once for each of two heads of each sample, as WavLM has it."""

    def __init__(self) -> None:
        super().__init__(table=True)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden, bias = self.layers[0](self.words(ids), mask)
        bias = self.repeat(bias, len(ids))
        for layer in self.layers[1:]:
            hidden, _ = layer(hidden, mask, bias.unflatten(0, (len(ids), 2)).mean(dim=1))
        return {"hidden": self.norm(hidden), "mask": mask}

    def repeat(self, bias: Tensor, samples: int) -> Tensor:
        return bias[None].repeat(2 * samples, 1, 1)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(3, WIDTH)
        self.layers = nn.ModuleList(Residual() for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.start(hidden)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden.mean(dim=1)


class Normed(nn.Module):
    """Batch norm between layers, whose statistics move in training."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv2d(3, WIDTH, 3)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.GELU()) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for layer in self.layers:
            x = x + layer(x)
        return x.mean(dim=(2, 3))


class Choosing(Encoder):
    """Takes other layers for short texts from the first short text on."""

    short = False

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        if ids.shape[1] < 99 and not self.short:
            self.short = True
            for layer in self.layers:
                layer.mix = Swapped(layer.mix)
        return super().forward(ids, mask)


class Swapped(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * 2


class Moody(Encoder):
    """What the last layer gives depends on how often the network has run."""

    runs = 0.0

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        self.runs += 1.0
        value = super().forward(ids, mask)
        return {**value, "hidden": value["hidden"] + self.runs}


TEXT: Value = {"ids": torch.arange(1, 15).reshape(2, 7), "mask": torch.ones(2, 7, dtype=torch.bool)}
IMAGES = torch.zeros(2, 3, 16, 16)
ROWS = torch.zeros(2, 5, 3)


def cut(network: nn.Module, example: Value, granularity: str = "stage") -> StructureCut:
    """Cuts a network with other numbers than it begins with, and checks every boundary."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    batches = batches_like(network, AsItIs(), example)
    made = cut_by_structure(network, AsItIs(), batches, granularity=granularity)
    check(network, AsItIs(), made.stages, batches)
    held = [id(tensor) for stage in made.stages.values() for tensor in (*stage.parameters(), *stage.buffers())]
    assert sorted(held) == sorted({id(tensor) for tensor in (*network.parameters(), *network.buffers())})
    names = [name for stage in made.stages.values() for name in stage.state_dict()]
    assert sorted(names) == sorted(network.state_dict())
    return made


def crossing(made: StructureCut, value: Value) -> list[dict[str, tuple[int, ...]]]:
    shapes = []
    for stage in made.stages.values():
        value = stage(value)
        shapes.append({name: tuple(leaf.shape) for name, leaf in leaves(value).items()})
    return shapes[:-1]


def test_layers_of_a_list_are_stages() -> None:
    made = cut(Encoder(), TEXT)
    assert list(made.stages) == ["stem", "layers_0", "layers_1", "layers_2"]
    assert crossing(made, TEXT) == [{"hidden": (2, 7, WIDTH), "mask": (2, 7)}] * 3
    names = [list(stage.state_dict()) for stage in made.stages.values()]
    assert names[0] == ["unused", "scale", "words.weight"]
    assert all(name.startswith("layers.0.") for name in names[1])
    assert names[3][-2:] == ["norm.weight", "norm.bias"]


def test_dropout_without_a_module_is_drawn_once() -> None:
    cut(Encoder(drop=0.3), TEXT)


def test_a_table_that_layers_share_belongs_to_the_earliest_and_is_computed_again() -> None:
    made = cut(Encoder(table=True), TEXT)
    assert crossing(made, TEXT) == [{"hidden": (2, 7, WIDTH), "mask": (2, 7)}] * 3
    first, second = made.stages["layers_0"], made.stages["layers_1"]
    assert "layers.0.table.weight" in first.state_dict()
    assert not any("table" in name for name in second.state_dict())
    table = dict(first.named_parameters())["layers.0.table.weight"]
    with torch.no_grad():
        table.mul_(3)  # whoever trains it changes what the others read
    network = copy.deepcopy(nn.ModuleList(made.stages.values())).eval()
    value = TEXT
    for stage in network:
        value = stage(value)
    again = copy.deepcopy(second).eval()  # by itself, as a frozen stage is
    entering = made.stages["layers_0"].eval()(made.stages["stem"].eval()(TEXT))
    assert torch.equal(again(entering)["hidden"], second.eval()(entering)["hidden"])


def test_sizes_that_are_plain_numbers_follow_the_image() -> None:
    made = cut(Pyramid(), IMAGES)
    assert list(made.stages) == ["stem", "levels_0", "levels_1", "levels_2"]
    assert crossing(made, IMAGES)[1] == {"hidden": (2, 16, WIDTH), "value": (2, 3, 16, 16, 0)}
    samples = [leaves(sample)["hidden"].shape for sample in unstack(made.stages["stem"](torch.randn(2, 3, 24, 24)))]
    assert samples == [(36, WIDTH)] * 2
    stored = stack(unstack(made.stages["stem"](IMAGES)))
    assert leaves(stored)["value"].shape == (2, 3, 16, 16, 0)


def test_blocks_are_cut_within_stages() -> None:
    made = cut(Pyramid(), IMAGES, "block")
    levels = [f"levels_{level}{rest}" for level in range(3) for rest in ("", "_blocks_0", "_blocks_1")]
    assert list(made.stages) == ["stem", *levels]


def test_what_is_looked_at_again_crosses_too() -> None:
    made = cut(Skipping(), ROWS)
    assert list(made.stages) == ["stem", "encoder_0", "encoder_1", "decoder_0", "decoder_1"]
    shapes = crossing(made, ROWS)
    assert [set(each) for each in shapes] == [{"hidden", "value"}] * 3 + [{"hidden", "hidden_1", "value"}]
    assert all(each["hidden"] == (2, 5, WIDTH) for each in shapes)  # samples first, wherever the network has them


def test_a_copy_and_a_pickle_are_whole() -> None:
    made = cut(Encoder(table=True), TEXT)
    stages = nn.ModuleList(made.stages.values()).eval()
    for other in (copy.deepcopy(stages), pickle.loads(pickle.dumps(stages))):
        mine = {tensor.data_ptr() for tensor in stages.parameters()}
        assert mine.isdisjoint(tensor.data_ptr() for tensor in other.parameters())
        value = expected = TEXT
        for stage, twin in zip(stages, other, strict=True):
            expected, value = stage(expected), twin(value)
        assert torch.equal(leaves(value)["hidden"], leaves(expected)["hidden"])


def test_a_frozen_stage_gets_no_gradient_and_draws_nothing() -> None:
    made = cut(Encoder(drop=0.3), TEXT)
    *front, last = made.stages.values()
    value = TEXT
    with torch.no_grad():
        for stage in front:
            value = stage.eval()(value)
    leaves(last.train()(value))["hidden"].sum().backward()
    assert all(parameter.grad is None for stage in front for parameter in stage.parameters())
    assert all(parameter.grad is not None for parameter in last.parameters())
    torch.manual_seed(5)
    alone = front[1].eval()(front[0].eval()(TEXT))
    assert torch.equal(leaves(alone)["hidden"], leaves(front[1](front[0](TEXT)))["hidden"])


def test_a_mask_that_no_gradient_reaches_crosses_and_its_maker_has_its_weights() -> None:
    made = cut(Masking(), ROWS)
    assert list(made.stages) == ["stem", "layers_0", "layers_1", "layers_2"]


def test_a_table_that_is_repeated_for_each_sample_and_head_is_computed_again() -> None:
    made = cut(Repeated(), TEXT)
    assert crossing(made, TEXT) == [{"hidden": (2, 7, WIDTH), "mask": (2, 7)}] * 3


def test_an_input_may_have_the_name_of_what_crosses() -> None:
    made = cut(Named(), {"hidden": torch.zeros(2, 5, 3)})
    assert [set(each) for each in crossing(made, {"hidden": torch.zeros(2, 5, 3)})] == [{"hidden", "inner"}] * 2


def test_a_table_that_is_dropped_out_for_each_sample_crosses() -> None:
    made = cut(Positioned(), ROWS)
    assert [set(each) for each in crossing(made, ROWS)] == [{"hidden", "hidden_1", "value"}] * 3


def test_statistics_of_batch_norm_stay_as_they_were() -> None:
    network = Normed()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    made = cut(network, IMAGES)
    assert len(made.stages) == 4
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())


def test_a_network_that_changes_its_layers_is_given_back_as_it_was() -> None:
    network = Choosing()
    batches_like(network, AsItIs(), TEXT)
    assert type(network.layers[0].mix) is nn.Linear


def test_an_answer_that_changes_by_itself_is_refused() -> None:
    with pytest.raises(CutError):
        cut(Moody(), TEXT)


def test_a_network_without_layers_beside_each_other_is_refused() -> None:
    with pytest.raises(CutError):
        cut(Residual(), torch.zeros(2, WIDTH))
