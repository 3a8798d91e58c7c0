"""Where a classifier looks: Grad-CAM (Selvaraju et al. 2017) by captum, with the extra `understand`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from tlresearch.backbones.base import StagedBackbone, evaluating
from tlresearch.base.errors import MissingExtraError, UserError
from tlresearch.data.base import Data, SplitName
from tlresearch.modality.base import expect
from tlresearch.modality.image import Preprocessing
from tlresearch.tasks.base import Task
from tlresearch.tasks.classification import ClassificationTask
from tlresearch.tracking.figures import new_figure
from tlresearch.tracking.items import Items
from tlresearch.understand.inspection.stages import inputs_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Saliency:
    """One explained image.

    Attributes:
        name: Name of the sample.
        image: What the network saw, without the normalisation, ``(3, height, width)`` in [0, 1].
        heat: How much each place speaks for the predicted class, ``(height, width)`` in [0, 1].
        target: Its class.
        prediction: The predicted class.
        probability: Its probability.
    """

    name: str
    image: Tensor
    heat: Tensor
    target: str
    prediction: str
    probability: float


def choose(data: Data, split: SplitName, items: Items | None, count: int, names: Sequence[str]) -> list[int]:
    """Chooses samples: those named, else errors and right ones by turns, surest first; the first ones if unknown.

    Args:
        data: The data.
        split: The split.
        items: What the run predicted for the split.
        count: How many, if none are named.
        names: Names of samples.

    Raises:
        UserError: If a name is not in the split.
    """
    known = {name: row for row, name in enumerate(data.splits[split].names)}
    missing = [name for name in names if name not in known]
    if missing:
        raise UserError(f"--items: '{missing[0]}' is no sample of {split}; the first one is '{next(iter(known))}'")
    if names:
        return [known[name] for name in names]
    if items is None or items.split != split:
        return list(range(min(count, len(known))))
    surest = sorted((item for item in items.items if item.name in known), key=lambda item: -item.score)
    wrong = [known[item.name] for item in surest if not item.right]
    right = [known[item.name] for item in surest if item.right]
    share = max(count // 2, count - len(right))
    found = wrong[:share]
    return found + right[: count - len(found)]


def explain(task: Task, data: Data, split: SplitName, rows: Sequence[int]) -> list[Saliency]:
    """Computes Grad-CAM for the predicted class at the last feature map in front of the pooling.

    Raises:
        MissingExtraError: If captum is not installed.
        UserError: If the run is no image classification, or its backbone has no feature map near its end.
    """
    try:
        from captum.attr import LayerAttribution, LayerGradCam
    except ImportError:
        raise MissingExtraError("captum", "understand") from None
    preprocessing = expect(data.preprocessing, Preprocessing, UserError("--saliency: is for image classification"))
    if not isinstance(task, ClassificationTask):
        raise UserError("--saliency: is for image classification")
    inputs = inputs_of(data, split, rows)
    layer = last_map(task.backbone, inputs[:1])
    with evaluating(task):
        with torch.no_grad():
            probabilities = task.probabilities(task(inputs))
        scores, best = probabilities.max(dim=1)
        task.requires_grad_(True)
        heat = LayerGradCam(task, layer).attribute(inputs, target=best, relu_attributions=True)
        heat = LayerAttribution.interpolate(heat, tuple(inputs.shape[-2:]), "bilinear").detach()[:, 0]
    heat = heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    targets = torch.as_tensor(data.splits[split].targets)
    return [
        Saliency(
            name=data.splits[split].names[row],
            image=(inputs[place] * std + mean).clamp(0, 1),
            heat=heat[place],
            target=_class(data, targets[row]),
            prediction=data.classes[int(best[place])],
            probability=float(scores[place]),
        )
        for place, row in enumerate(rows)
    ]


def last_map(backbone: StagedBackbone, inputs: Any) -> nn.Module:
    """Returns a module whose output is the last feature map of a backbone, in front of its pooling.

    Where the pooling is inside the last stage, an identity is put in front of it; the backbone computes the same.

    Raises:
        UserError: If neither of the last two stages has a feature map.
    """
    values = [inputs]
    with torch.no_grad(), evaluating(backbone):
        for number, stage in enumerate(backbone.stages):
            values.append(backbone.step(number, stage, values[-1]))
    last = len(backbone.stages) - 1
    if _is_map(values[-1]):
        return backbone.stages[last]
    stage = backbone.stages[last]
    if isinstance(stage, fx.GraphModule):
        recorder = _Recorder(stage)
        with torch.no_grad(), evaluating(backbone):
            recorder.run(values[-2])
        if recorder.last is not None:
            marker = nn.Identity()
            stage.add_submodule("last_map", marker)
            with stage.graph.inserting_after(recorder.last):
                marked = stage.graph.call_module("last_map", (recorder.last,))
            recorder.last.replace_all_uses_with(marked, delete_user_cb=lambda user: user is not marked)
            stage.recompile()
            return marker
    if isinstance(stage, nn.Sequential):
        value, found = values[-2], None
        with torch.no_grad(), evaluating(backbone):
            for layer in stage:
                value = layer(value)
                found = layer if _is_map(value) else found
        if found is not None:
            return found
    if last and _is_map(values[-2]):
        return backbone.stages[last - 1]
    raise UserError("--saliency: this backbone has no feature map near its end (Grad-CAM is for convolutions)")


class _Recorder(fx.Interpreter):
    """Runs a stage and remembers the last operation whose result is a feature map."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.last: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        """Runs one operation."""
        value = super().run_node(n)
        if n.op != "placeholder" and n.op != "output" and _is_map(value):
            self.last = n
        return value


def saliency_figure(found: Sequence[Saliency]) -> Figure:
    """Each image beside itself with the heat over it."""
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure = new_figure(4.0 * columns, 2.6 * rows + 0.4)
    figure.suptitle("Grad-CAM of the predicted class", fontsize=11, fontweight="bold", x=0.01, ha="left")
    for number, one in enumerate(found):
        pixels = one.image.permute(1, 2, 0).numpy()
        for side in (0, 1):
            axes = figure.add_subplot(rows, 2 * columns, 2 * number + side + 1)
            axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
            if side == 0:
                right = one.target == one.prediction
                text = f"{one.name.rpartition('/')[2][:24]}\ntrue: {one.target[:18]}"
                axes.set_title(text, fontsize=8, loc="left", color="black" if right else "#D55E00")
            else:
                axes.imshow(one.heat.numpy(), cmap="inferno", alpha=0.55, vmin=0, vmax=1)
                axes.set_title(f"says\n{one.prediction[:18]} ({one.probability:.0%})", fontsize=8, loc="left")
    return figure


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] * value.shape[-2] > 1


def _class(data: Data, target: Tensor) -> str:
    if target.ndim:
        return ";".join(name for name, yes in zip(data.classes, target.tolist(), strict=True) if yes > 0.5)
    return data.classes[int(target)]
