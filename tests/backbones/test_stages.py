"""Any network as stages: by the first way that works, which the backbone tells."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.backbones.test_structure import IMAGES, ROWS, TEXT, WIDTH, Encoder, Pyramid, Residual
from tests.backbones.toys import Toy
from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.parts import CutError
from tlresearch.backbones.stages import Vector, stages
from tlresearch.base.errors import UserError
from tlresearch.modality.values import Value, leaves


class Says(nn.Module):
    """A network that says what its stages are."""

    def __init__(self, *, wrong: bool = False) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x.flatten(1)

    def stages(self) -> dict[str, nn.Module]:
        named: dict[str, nn.Module] = {f"part{number}": part for number, part in enumerate(self.parts)}
        last = nn.Sequential(self.parts[-1], nn.Flatten())
        return named if self.wrong else {**named, "part3": last}


class Repeats(nn.Module):
    """One layer for every depth."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.layer, self.end = nn.Linear(3, WIDTH), Residual(), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for _ in range(int(x.detach().abs().sum() > 0) + 2):
            x = self.layer(x)
        return self.end(x).mean(dim=1)


class Alternates(Repeats):
    """Gives another result each time."""

    turn = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.turn += 1.0
        return super().forward(x) + self.turn


def at_every_cut(backbone: StagedBackbone, value: Value) -> list[Tensor]:
    backbone.eval()
    cuts = range(len(backbone.stage_names) + 1)
    return [max(leaves(backbone(backbone(value, stop=cut), start=cut)).values(), key=torch.numel) for cut in cuts]


@pytest.mark.parametrize(
    ("network", "example", "way", "names"),
    [
        (Says(), ROWS, "own", ("part0", "part1", "part2", "part3")),
        (Says(wrong=True), ROWS, "graph", ("stem", "parts.1", "parts.2", "parts.3")),
        (Encoder(), TEXT, "structure", ("stem", "layers_0", "layers_1", "layers_2")),
        (Pyramid(), IMAGES, "structure", ("stem", "levels_0", "levels_1", "levels_2")),
    ],
)
def test_the_first_way_that_works(network: nn.Module, example: Value, way: str, names: tuple[str, ...]) -> None:
    backbone = stages(network, example)
    assert backbone.way == way
    assert backbone.can_stop
    assert len(backbone.stage_names) == len(names)
    whole, *others = at_every_cut(backbone, example)
    assert all(torch.allclose(whole, other, atol=1e-6) for other in others)


def test_reasons_say_why_not_by_a_better_way() -> None:
    backbone = stages(Says(wrong=True), ROWS)
    assert backbone.reasons[0].startswith("own: its stages give another result in eval mode")


def test_what_runs_only_as_a_whole_has_children_to_freeze(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        backbone = stages(Alternates(), ROWS)
    assert backbone.way == "children"
    assert backbone.stage_names == ("start", "layer", "end")
    assert not backbone.can_stop
    assert "the activation cache is off" in caplog.text
    backbone(ROWS).sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_an_exported_graph_is_the_network(tmp_path: Path) -> None:
    backbone = stages(Encoder(table=True), TEXT).eval()
    assert isinstance(TEXT, dict)
    program = torch.export.export(copy.deepcopy(backbone), (TEXT,))  # as `export` does it
    torch.export.save(program, tmp_path / "model.pt2")
    opened = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.equal(opened(TEXT)["hidden"], leaves(backbone(TEXT))["hidden"])
    names = [name for stage in backbone.stages for name in stage.state_dict()]
    assert len(names) == len(set(names))  # what was lent is given back


def test_few_stages_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        stages(Toy(), torch.zeros(1, 3, 16, 16))
    assert "Toy has" in caplog.text


@pytest.mark.parametrize("last", [False, True])
def test_channels_of_a_last_map_are_told_by_their_number(last: bool) -> None:
    class Map(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1) if last else x

    image = torch.randn(2, 5, 7, 7)
    assert torch.equal(Vector(5)(Map(), image), image.mean(dim=(2, 3)))
    with pytest.raises(CutError, match="no axis can be told to be the features"):
        Vector()(Map(), image)


def test_what_does_not_run_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="Toy does not run on its example"):
        stages(Toy(), torch.zeros(1, 5, 16, 16))
