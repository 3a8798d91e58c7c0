"""Which boundary serves which phase: frozen stages run once over a split, and batches begin behind them."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader

from tlresearch.activations.store import ActivationStore, Array
from tlresearch.backbones.base import StagedBackbone, evaluating
from tlresearch.data.base import Batch, Data, SampleKey, Split, SplitName
from tlresearch.data.loading import collate, make_loader
from tlresearch.finetuning.param_groups import digests
from tlresearch.finetuning.schedule import Phase

log = logging.getLogger(__name__)


class BoundarySplit:
    """A split that yields samples at the boundary chosen last: raw inputs, or stored activations behind it.

    Args:
        split: The split itself.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self.targets = split.targets
        self.names = split.names
        self.deterministic = split.deterministic
        self.boundary = 0
        self.stored: Array | None = None

    def __len__(self) -> int:
        return len(self.split)

    def raw(self, index: int) -> Any:
        """Returns the sample before preprocessing."""
        return self.split.raw(index)

    def __getitem__(self, key: SampleKey) -> tuple[Any, Tensor, int]:
        """Returns one sample at the boundary."""
        if self.stored is None:
            return self.split[key]
        return torch.from_numpy(self.stored[key.index].copy()), self.targets[key.index], key.index

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        """Assembles a whole batch at the boundary at once."""
        if self.stored is None:
            together = getattr(self.split, "__getitems__", None)
            return collate(together(keys) if together else [self.split[key] for key in keys])
        indices = [key.index for key in keys]
        inputs = torch.from_numpy(self.stored[indices])
        return Batch(inputs, self.targets[indices], torch.tensor(indices), self.boundary)


class FrozenPrefix:
    """Computes the frozen stages of each phase once per split, and shares the result through the store.

    The activations of a sample are a function of the weights in front of the boundary, the preprocessing and the
    sample alone, so epochs, seeds, trials and later commands read the same entry. Boundary 0 stores the network's
    inputs: decoded and preprocessed once. A deeper boundary is computed from the deepest stored one in front of it.

    Args:
        data: The data set; its splits are replaced by `splits`.
        backbone: The backbone, whose stages are looked at when a phase begins.
        store: Where activations are kept; ``None`` keeps none.
        batch_size: Samples per forward pass of the prefix.
        mixes: Whether training batches are mixed, which is only right on raw inputs.
        off: Why nothing is stored, if so.
    """

    def __init__(
        self,
        data: Data,
        backbone: StagedBackbone,
        store: ActivationStore | None,
        *,
        batch_size: int,
        mixes: bool,
        off: str = "",
    ) -> None:
        self.splits: dict[SplitName, BoundarySplit] = {n: BoundarySplit(s) for n, s in data.splits.items()}
        self.backbone = backbone
        self.store = store
        self.batch_size = batch_size
        self.mixes = mixes
        self._data = {"data": data.fingerprint.digest, "preprocessing": repr(data.preprocessing)}
        self._stages: list[dict[str, str]] = []
        if off:
            log.info("activation cache: off, %s", off)

    def enter(self, phase: Phase) -> None:
        """Moves every split to the phase's boundary; splits with random augmentation stay at raw inputs."""
        if self.store is None:
            return
        frozen = self.backbone.stages[: phase.boundary]
        self._stages = [{"code": code_of(stage), **digests(iter(stage.state_dict().items()))} for stage in frozen]
        for name in ("train", "val"):
            split = self.splits[name]
            boundary = phase.boundary if phase.frozen_norm == "eval" else 0
            if name == "train" and self.mixes:
                boundary = 0
            if not split.deterministic:
                log.info("activation cache: off for %s, its augmentation is random", name)
                continue
            split.stored = self._activations(name, split.split, boundary)
            split.boundary = boundary if split.stored is not None else 0

    def _activations(self, name: SplitName, split: Split, boundary: int) -> Array | None:
        assert self.store is not None
        store, shapes = self.store, self._shapes(split, boundary)

        def fill(array: Array) -> None:
            """Starts from the deepest stored boundary; looked for only where there is something to compute."""
            for start in reversed(range(boundary)):
                stored = store.peek(self._key(name, start), shapes[start])
                if stored is not None:
                    break
            else:
                start, stored = 0, None
            self._compute(split, stored, start, boundary, array)

        return store.get(self._key(name, boundary), shapes[boundary], fill)

    @torch.no_grad()
    def _compute(self, split: Split, stored: Array | None, start: int, boundary: int, out: Array) -> None:
        """Runs stages ``start`` to ``boundary - 1`` over a split, in eval mode and without a graph."""
        source = BoundarySplit(split)
        source.stored, source.boundary = stored, start
        device = next(self.backbone.parameters()).device
        loader: DataLoader[Any] = make_loader(source, batch_size=self.batch_size, shuffle=False, seed=0)
        with evaluating(self.backbone):
            for batch in loader:
                outputs = self.backbone(batch.inputs.to(device), start=start, stop=boundary)
                out[batch.indices.numpy()] = outputs.float().cpu().numpy()

    def _shapes(self, split: Split, boundary: int) -> list[tuple[int, ...]]:
        """Shape of the whole split's activations at each boundary up to this one."""
        device = next(self.backbone.parameters()).device
        x = split[SampleKey(0, 0)][0].unsqueeze(0).to(device)
        shapes = [(len(split), *x.shape[1:])]
        with torch.no_grad(), evaluating(self.backbone):
            for stage in self.backbone.stages[:boundary]:
                x = stage(x)
                shapes.append((len(split), *x.shape[1:]))
        return shapes

    def _key(self, name: SplitName, boundary: int) -> dict[str, Any]:
        """What activations depend on. Versions are in it: another torch may round differently."""
        return {
            **self._data,
            "split": name,
            "boundary": boundary,
            "stages": list(self.backbone.stage_names[:boundary]),
            "weights": self._stages[:boundary],
            "torch": torch.__version__,
            "precision": "float32",
        }


def code_of(module: nn.Module) -> str:
    """Returns a hash of what a module computes, weights aside: its layers with their settings, and their code."""
    sources = {layer.code if isinstance(layer, GraphModule) else _source(type(layer)) for layer in module.modules()}
    return hashlib.sha256("\n".join([repr(module), *sorted(sources)]).encode()).hexdigest()


_sources: dict[type, str] = {}


def _source(kind: type) -> str:
    if kind not in _sources:
        try:
            _sources[kind] = inspect.getsource(kind)
        except (OSError, TypeError):  # made in a notebook's cell that is gone, or in C
            _sources[kind] = kind.__qualname__
    return _sources[kind]
