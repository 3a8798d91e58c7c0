"""What a freeze schedule counts over: the stages of a module, 0 nearest the input, and last its head.

A task has them ready. Of any other module they are found by the names of its submodules, and checked: every trained
parameter in one of them, and in one only.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.errors import ConfigError, nearest

Member = str | nn.Module
"""A submodule or a parameter: its name in the module, a pattern of names (``encoder.layers.*``), or the submodule."""
Stages = Sequence[Member | Sequence[Member]] | Mapping[str, Member | Sequence[Member]] | StagedBackbone
HEAD = "head"


@dataclass(frozen=True)
class Parts:
    """The stages and the head of a module.

    Attributes:
        names: Names of the stages and, last, ``head``.
        modules: The modules, in the same order.
        followers: Modules without weights that are in no stage, each with its container: they are frozen while
            everything in the container is frozen.
        fixed: Identities of parameters that the module itself excludes from training; no phase trains them.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    followers: tuple[tuple[nn.Module, nn.Module], ...] = ()
    fixed: frozenset[int] = frozenset()

    def __iter__(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields name and module of each stage and, last, of the head."""
        yield from zip(self.names, self.modules, strict=True)


def staged_parts(backbone: StagedBackbone, head: nn.Module) -> Parts:
    """Returns the parts of a staged backbone with a head."""
    return Parts((*backbone.stage_names, HEAD), (*backbone.stages, head))


def find_parts(module: nn.Module, stages: Stages | None, head: Member | Sequence[Member] | None) -> Parts:
    """Finds the stages and the head of any module.

    Args:
        module: The module, such as a LightningModule.
        stages: The stages from the input to the head. In a list, a pattern stands for one stage per submodule that it
            matches, and a list within it for one stage of several members. What `tlresearch.stages` made of the
            module, or of a network in it, gives its stages. ``None`` is for a module with a staged backbone
            ``backbone`` and a ``head``.
        head: The head, of one or several members.

    Raises:
        ConfigError: If a name matches nothing, a submodule is in two stages, or trained weights are in none.
    """
    backbone = getattr(module, "backbone", None)
    if stages is None and isinstance(backbone, StagedBackbone) and isinstance(module.head, nn.Module):
        return staged_parts(backbone, module.head)
    kind = type(module).__name__
    if stages is None or head is None:
        missing, example = ("stages", "['encoder.layer1', 'encoder.layer2']") if stages is None else (HEAD, "'fc'")
        raise ConfigError([f"{missing}: {kind} needs it: names of its submodules, such as {example}"], "FreezeSchedule")
    finder = _Finder(module)
    members = {**finder.stages(stages), HEAD: finder.members(HEAD, head)}
    problems = finder.problems or _overlaps(members)
    if not problems:
        problems = _left_out(module, [name for names in members.values() for name in names])
    if problems:
        raise ConfigError(problems, f"FreezeSchedule on {kind}")
    # Each stage becomes a module, so that the code for staged backbones works for any module.
    boxes = [_box({name: finder.everything[name] for name in names}) for names in members.values()]
    fixed = {id(parameter) for box in boxes for parameter in box.parameters() if not parameter.requires_grad}
    for name, box in zip(members, boxes, strict=True):
        weights = list(box.parameters())
        if weights and all(id(weight) in fixed for weight in weights):
            problems.append(
                f"'{name}' has no parameter that needs a gradient: the module freezes it itself; take out the line "
                "that does, the schedule will freeze it"
            )
    if problems:
        raise ConfigError(problems, f"FreezeSchedule on {kind}")
    return Parts(tuple(members), tuple(boxes), tuple(_followers(module, boxes)), frozenset(fixed))


class _Finder:
    """Looks up names, patterns and submodules in a module, and collects problems."""

    def __init__(self, module: nn.Module) -> None:
        modules = {name: part for name, part in module.named_modules(remove_duplicate=False) if name}
        self.kind = type(module).__name__
        self.everything: dict[str, nn.Module | nn.Parameter] = {
            **modules,
            **dict(module.named_parameters(remove_duplicate=False)),
        }
        # Reversed, so that of several names for a shared submodule the first is used.
        self.names = {id(part): name for name, part in reversed(modules.items())}
        self.problems: list[str] = []

    def stages(self, stages: Stages) -> dict[str, list[str]]:
        """Returns the names of the members of each stage."""
        if isinstance(stages, StagedBackbone):
            return self._owned(dict(stages.named_stages()))
        if isinstance(stages, Mapping):
            if HEAD in stages:
                self.problems.append(f"stages: '{HEAD}' names the head; call the stage something else")
            return {str(name): self.members(f"stages['{name}']", member) for name, member in stages.items()}
        by_name: dict[str, list[str]] = {}
        for index, entry in enumerate([stages] if isinstance(stages, (str, nn.Module)) else stages):
            members = self.members(f"stages[{index}]", entry)
            groups = [[name] for name in members] if isinstance(entry, str) else [members]
            for group in filter(None, groups):
                if group[0] in by_name:
                    self.problems.append(f"stages: '{group[0]}' is named twice; each submodule is in one stage")
                by_name[group[0]] = group
        if not by_name and not self.problems:
            self.problems.append("stages: is empty; name at least one submodule")
        return by_name

    def members(self, key: str, entry: Member | Sequence[Member]) -> list[str]:
        """Returns the names of the submodules and parameters that an entry stands for."""
        if isinstance(entry, str):
            return self._matching(key, entry)
        if isinstance(entry, nn.Module):
            if id(entry) not in self.names:
                self.problems.append(f"{key}: the {type(entry).__name__} is no submodule of {self.kind}")
                return []
            return [self.names[id(entry)]]
        return [name for member in entry for name in self.members(key, member)]

    def _owned(self, stages: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        """Returns the names of the submodules in each stage that `tl.stages` made: the largest ones that it owns whole.

        A stage often wraps the network's weights in other layers, so the weights themselves identify a submodule. A
        layer without weights belongs to a stage if no other stage runs it.
        """
        owners = {id(tensor): name for name, stage in stages.items() for tensor in _tensors(stage)}
        users: dict[int, set[str]] = {}
        for name, stage in stages.items():
            for layer in stage.modules():
                users.setdefault(id(layer), set()).add(name)
        members: dict[str, list[str]] = {name: [] for name in stages}
        assigned: set[int] = set()
        for name, part in self.everything.items():  # a submodule comes before its own submodules and parameters
            stages_of_part = {owners.get(id(tensor)) for tensor in _tensors(part)} or users.get(id(part), {None})
            (owner, *further) = stages_of_part
            if owner is not None and not further and id(part) not in assigned:
                members[owner].append(name)
                assigned |= {id(inner) for inner in _inside(part)}
        missing = [name for name, stage in stages.items() if not assigned.issuperset(map(id, stage.parameters()))]
        self.problems += [
            f"stages['{name}']: its weights are not those of {self.kind}; give `tl.stages` the network that is in it"
            for name in missing
        ]
        return members

    def _matching(self, key: str, pattern: str) -> list[str]:
        if pattern in self.everything:
            return [pattern]
        pieces = pattern.split(".")
        names = [
            name
            for name, part in self.everything.items()
            if isinstance(part, nn.Module) and len(name.split(".")) == len(pieces)
        ]
        matching = [name for name in names if all(map(fnmatch.fnmatchcase, name.split("."), pieces))]
        if not matching:
            hint = nearest(pattern, list(self.everything)) or f"; it has {', '.join(_children(self.everything))}"
            self.problems.append(f"{key}: '{pattern}' is no submodule of {self.kind}{hint}")
        return matching


def _tensors(part: nn.Module | nn.Parameter) -> Iterator[Tensor]:
    """Yields parameters and buffers."""
    if isinstance(part, nn.Parameter):
        yield part
        return
    yield from part.parameters()
    yield from part.buffers()


def _inside(part: nn.Module | nn.Parameter) -> Iterator[object]:
    """Yields all modules, parameters and buffers in a part, the part included."""
    yield from _tensors(part)
    if isinstance(part, nn.Module):
        yield from part.modules()


def _children(names: Mapping[str, Any]) -> list[str]:
    return [name for name in names if "." not in name][:10]


def _overlaps(members: Mapping[str, Sequence[str]]) -> list[str]:
    """Lists submodules that are in two stages."""
    problems = []
    placed = [(name, stage) for stage, names in members.items() for name in names]
    for index, (first, stage) in enumerate(placed):
        for second, second_stage in placed[index + 1 :]:
            if first == second or second.startswith(f"{first}.") or first.startswith(f"{second}."):
                inner = max(first, second, key=len)
                problems.append(
                    f"stages: '{inner}' is in '{stage}' and in '{second_stage}'; each submodule is in one stage"
                )
    return problems


def _left_out(module: nn.Module, members: Sequence[str]) -> list[str]:
    """Lists trained weights and running statistics in no stage, by the largest submodule that is in no stage."""

    def covered(name: str) -> bool:
        return any(name == member or name.startswith(f"{member}.") for member in members)

    # Tied weights have a second name, under which they may be in a stage.
    owned = {id(p) for name, p in module.named_parameters(remove_duplicate=False) if covered(name)}
    loose = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in owned]
    for name, layer in module.named_modules():
        counts = isinstance(layer, _NormBase) and layer.running_mean is not None
        if counts and not covered(name) and not any(True for _ in layer.parameters()):
            loose.append(name)
    if not loose:
        return []
    culprits = list(dict.fromkeys(_largest(name, members) for name in loose))
    shown = ", ".join(f"'{name}'" for name in culprits[:5]) + (", …" if len(culprits) > 5 else "")
    return [f"{shown}: in no stage, though training would move it; add it to a stage in `stages`, or to `head`"]


def _largest(name: str, members: Sequence[str]) -> str:
    pieces = name.split(".")
    for length in range(1, len(pieces)):
        prefix = ".".join(pieces[:length])
        if not any(member == prefix or member.startswith(f"{prefix}.") for member in members):
            return prefix
    return name


def _box(members: Mapping[str, nn.Module | nn.Parameter]) -> nn.Module:
    """Makes a module that only holds members under the names that they have in their own module."""
    box = nn.Module()
    for name, member in members.items():
        *folders, last = name.split(".")
        holder = box
        for folder in folders:
            if folder not in dict(holder.named_children()):
                holder.add_module(folder, nn.Module())
            holder = holder.get_submodule(folder)
        if isinstance(member, nn.Parameter):
            holder.register_parameter(last, member)
        else:
            holder.add_module(last, member)
    return box


def _followers(module: nn.Module, boxes: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yields containers of stages, and modules without weights in them, such as a dropout between two stages."""
    inside = {id(layer) for box in boxes for layer in box.modules()}
    weights = {id(weight) for box in boxes for weight in box.parameters()}
    containers = {
        name: layer
        for name, layer in module.named_modules()
        if name and id(layer) not in inside and any(id(weight) in weights for weight in layer.parameters())
    }
    for name, layer in module.named_modules():
        if name in containers:
            yield layer, layer
        elif id(layer) not in inside and not any(True for _ in layer.parameters()):
            around = name.rpartition(".")[0]
            while around and around not in containers:
                around = around.rpartition(".")[0]
            if around:
                yield layer, containers[around]
