"""The activation cache in a training: frozen stages run once over a split, and batches begin at their boundary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from tlresearch.activations.code import code_behind, code_of
from tlresearch.activations.entry import Stored
from tlresearch.activations.inference import Inference, frozen
from tlresearch.activations.splits import BoundarySplit
from tlresearch.activations.store import ActivationStore
from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.code import code_under
from tlresearch.data.base import Data, SampleKey, SplitName
from tlresearch.finetuning.param_groups import digests
from tlresearch.finetuning.schedule import Phase
from tlresearch.modality.values import Value, unstack

log = logging.getLogger(__name__)

_PHASE_SPLITS: tuple[SplitName, ...] = ("train", "val")  # read in every epoch; test is read once, after training


class FrozenPrefix:
    """Computes the frozen stages of each phase once per split, and shares the result through the store.

    A sample's activations depend only on the sample, the preprocessing and the weights in front of the boundary, so
    epochs, seeds, trials and later commands read the same entry. At boundary 0 the decoded inputs are kept. A deeper
    boundary is computed from the deepest stored boundary in front of it.

    Args:
        data: The data set; use `splits` instead of its splits.
        backbone: The backbone; its weights are read when a phase begins.
        store: Where activations are kept.
        batch_size: Samples per forward pass of the prefix.
        mixes: Whether training batches are mixed (mixup, CutMix), which is correct only on raw inputs.
        views: See `BoundarySplit`.
        how: Precision and memory format of the frozen stages.
        off: Why the cache is off; empty if it is on.
        say: Receives a line with the reason why a split is not served from the store.

    Attributes:
        splits: The splits, at the boundary of the current phase.
        passes: How often frozen stages were run over a split; 0 if everything was stored.
    """

    def __init__(
        self,
        data: Data,
        backbone: StagedBackbone,
        store: ActivationStore,
        *,
        batch_size: int,
        mixes: bool = False,
        views: int = 0,
        how: Inference | None = None,
        off: str = "",
        say: Callable[[str], None] = log.info,
    ) -> None:
        self.splits: dict[SplitName, BoundarySplit] = {n: BoundarySplit(s, views) for n, s in data.splits.items()}
        self.backbone = backbone
        self.store = store
        self.batch_size = batch_size
        self.how = how or Inference()
        self.passes = 0
        self._mixes = mixes
        self._off = off
        self._say = say
        self._said_lines: set[str] = set()
        self._data = {"data": data.fingerprint.digest, "preprocessing": repr(data.preprocessing)}
        self._stages: list[dict[str, str]] = []

    def enter(self, phase: Phase) -> None:
        """Moves every split to the phase's boundary, or to raw inputs if the split cannot be stored there."""
        if self._off:
            self._say_once(f"activation cache off: {self._off}")
            return
        boundaries = {name: self._boundary(name, phase) for name in _PHASE_SPLITS if name in self.splits}
        prefix = self.backbone.stages[: max(boundaries.values())]
        self._stages = [{"code": code_of(stage), **digests(iter(stage.state_dict().items()))} for stage in prefix]
        for name, boundary in boundaries.items():
            self._move(name, boundary)

    def serves(self, name: SplitName) -> bool:
        """Whether a split is read only from the store, and so needs no loader processes."""
        return not self._off and self.splits[name].views > 0

    @property
    def yields_vectors(self) -> bool:
        """Whether all batches of the phase are stored vectors: a step then costs only the stages that are trained."""
        splits = [self.splits[name] for name in _PHASE_SPLITS if name in self.splits]
        return all(split.activations and split.activations[0].are_vectors for split in splits)

    def _boundary(self, name: SplitName, phase: Phase) -> int:
        """Returns the boundary at which a split can be served in a phase."""
        if phase.boundary == 0:
            return 0
        reason = ""
        if not self.backbone.can_stop:
            reason = "the backbone runs only as a whole"
        elif phase.frozen_norm != "eval":
            reason = f"frozen_norm is {phase.frozen_norm}, so the frozen stages depend on the batch"
        elif name == "train" and self._mixes:
            reason = "mixup and cutmix mix raw inputs"
        elif not self.splits[name].views:
            reason = "its augmentation is random (cache.views=K would keep K views of each sample)"
        if reason:
            self._say_once(f"activation cache off for {name}: {reason}")
        return 0 if reason else phase.boundary

    def _say_once(self, text: str) -> None:
        if text not in self._said_lines:
            self._said_lines.add(text)
            self._say(text)

    def _move(self, name: SplitName, boundary: int) -> None:
        """Opens or computes a split's entries at a boundary; if they cannot be stored, the split yields raw inputs."""
        split = self.splits[name]
        # Back to raw inputs first: computing the new entries reads the split, and `return` leaves it in this state.
        split.boundary, split.activations = 0, ()
        if boundary == 0:
            split.inputs = split.inputs or self._inputs(name)
            return
        views: list[Stored] = []
        for view in range(split.views):
            stored = self._activations(name, boundary, view)
            if stored is None:
                return
            views.append(stored)
        split.boundary, split.activations = boundary, tuple(views)

    def _inputs(self, name: SplitName) -> Stored | None:
        """Opens or computes the entry at boundary 0, the result of `load` for each sample; `None` if it has no key."""
        split = self.splits[name].parts
        key = {
            "data": self._data["data"],
            "split": name,
            "boundary": 0,
            "stages": [],
            "load": split.load_key,  # covers the part of the preprocessing that `load` does
            "code": code_behind(split),
        }

        def compute() -> Iterator[Sequence[Value]]:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                for first in range(0, len(split), self.batch_size):
                    yield list(pool.map(split.load, range(first, min(first + self.batch_size, len(split)))))

        return self.store.get(key, len(split), compute) if key["load"] else None

    def _activations(self, name: SplitName, boundary: int, view: int) -> Stored | None:
        """Opens or computes the activations of one view of a split, from the deepest boundary that is stored."""

        def compute() -> Iterator[Sequence[Value]]:
            source = BoundarySplit(self.splits[name].parts)
            # An earlier phase, or another schedule, may have stored a boundary on the way.
            for start in reversed(range(1, boundary)):
                stored = self.store.peek(self._key(name, start, view))
                if stored is not None:
                    source.boundary, source.activations = start, (stored,)
                    break
            else:
                source.inputs = self.splits[name].inputs or self._inputs(name)
            self.passes += 1
            device = next(self.backbone.parameters()).device
            run = frozen(self.backbone, self.how, device, source.boundary, boundary)
            for first in range(0, len(source), self.batch_size):
                indices = range(first, min(first + self.batch_size, len(source)))
                yield unstack(run(source.__getitems__([SampleKey(index, view) for index in indices]).inputs))

        return self.store.get(self._key(name, boundary, view), len(self.splits[name].parts), compute)

    def _key(self, name: SplitName, boundary: int, view: int) -> dict[str, Any]:
        """Returns everything that activations depend on.

        Code and versions are part of it, because another torch may round and another Pillow decode differently.
        """
        split = self.splits[name]
        key = {
            **self._data,
            "split": name,
            "boundary": boundary,
            "stages": list(self.backbone.stage_names[:boundary]),
            "weights": self._stages[:boundary],
            "code": [code_behind(split.split), code_under(["tlresearch.activations.inference"])],
            "torch": torch.__version__,
            "precision": self.how.precision,
            "memory_format": self.how.memory_format,
        }
        if not split.deterministic:
            key |= {"view": view, "augment": split.augment_key}
        return key
