"""`FreezeSchedule` on a LightningModule that knows nothing of us, under a plain trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from tests.finetuning.foreign import (
    QUIET,
    STAGES,
    Encoder,
    Photos,
    StopAt,
    StoppedError,
    copy,
    digest,
    loaders,
    make_trainer,
    moved,
)
from tlresearch import FreezeSchedule, stages
from tlresearch.base.errors import ConfigError
from tlresearch.finetuning.parts import find_parts

pytestmark = [pytest.mark.filterwarnings(rule) for rule in QUIET]


def schedule(name: Any = "gradual", **options: Any) -> FreezeSchedule:
    return FreezeSchedule(name, **{"stages": STAGES, "head": "classifier", **options})


class Snapshots(L.Callback):
    """All weights when training starts and after each epoch."""

    def __init__(self) -> None:
        self.taken: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.taken.append(copy(pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.taken.append(copy(pl_module))


def test_each_stage_moves_from_its_phase_on_and_stands_still_before() -> None:
    shots = Snapshots()
    make_trainer(None, [schedule(), shots], max_epochs=4).fit(Photos(), *loaders())
    for epoch in range(4):
        names = moved(shots.taken[epoch], shots.taken[epoch + 1])
        trained = ["classifier", *STAGES[3 - epoch :]]
        assert {name for name in shots.taken[0] if any(name.startswith(f"{part}.") for part in trained)} == names


def test_dropout_between_frozen_stages_is_off() -> None:
    modes: list[tuple[bool, bool, bool, bool]] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            encoder = pl_module.encoder
            modes.append(
                (encoder.stem[3].training, encoder.between.training, encoder.training, pl_module.classifier[0].training)
            )

    make_trainer(None, [schedule("lp_ft"), Look()], max_epochs=2).fit(Photos(), *loaders())
    assert set(modes[:6]) == {(False, False, False, True)}
    assert set(modes[6:]) == {(True, True, True, True)}


def test_what_a_modules_own_hook_turns_on_is_off_again_in_a_frozen_stage() -> None:
    class Loud(Photos):
        def on_train_epoch_start(self) -> None:
            self.train()

    module = Loud()
    before = copy(module)
    make_trainer(None, [schedule("linear_probe")], max_epochs=1).fit(module, *loaders())
    assert {name.split(".")[0] for name in moved(before, copy(module))} == {"classifier"}


def two_groups(module: nn.Module) -> torch.optim.Optimizer:
    """Weights decay, norms and biases do not; the head learns faster."""
    body, head = dict(module.encoder.named_parameters()), list(module.classifier.parameters())  # type: ignore[union-attr]
    plain = [weight for weight in body.values() if weight.ndim == 1]
    decayed = [weight for weight in body.values() if weight.ndim > 1]
    return torch.optim.AdamW(
        [
            {"params": decayed, "lr": 1e-3, "weight_decay": 0.1},
            {"params": plain, "lr": 1e-3, "weight_decay": 0.0},
            {"params": head, "lr": 1e-2, "weight_decay": 0.1, "betas": (0.8, 0.99)},
        ]
    )


def test_every_group_of_the_modules_is_split_by_stage_once_and_keeps_its_settings() -> None:
    seen: list[list[tuple[Any, ...]]] = []

    class Groups(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            groups = trainer.optimizers[0].param_groups
            members = [id(weight) for group in groups for weight in group["params"]]
            assert sorted(members) == sorted(id(weight) for weight in pl_module.parameters())
            seen.append([(g["name"], g["lr"], g["weight_decay"], g["betas"]) for g in groups])

    make_trainer(None, [schedule("lp_ft", layer_lr_decay=0.5), Groups()], max_epochs=2).fit(
        Photos(two_groups), *loaders()
    )
    names = [row[0] for row in seen[0]]
    assert names == [f"{stage}{group}" for stage in STAGES for group in ("", "/1")] + ["head/2"]
    assert all([row[0] for row in step] == names for step in seen)
    assert [row[1] for row in seen[0]] == [0.0] * 6 + [1e-2]
    assert [row[1] for row in seen[-1]] == [1e-3 / 8] * 2 + [1e-3 / 4] * 2 + [1e-3 / 2] * 2 + [1e-2]
    assert [row[2] for row in seen[-1]] == [0.1, 0.0] * 3 + [0.1]
    assert [row[3] for row in seen[-1]] == [(0.9, 0.999)] * 6 + [(0.8, 0.99)]


def test_rates_of_the_schedule_replace_those_of_the_optimizer() -> None:
    rates: list[tuple[float, ...]] = []
    plan = schedule("lp_ft", lr=1e-3, layer_lr_decay=0.1, course="cosine", listeners=[lambda r: rates.append(r.rates)])
    make_trainer(None, [plan], max_epochs=2).fit(Photos(), *loaders())
    last = 1e-3 * 0.5 * (1 + math.cos(math.pi * 5 / 6))
    assert rates[0] == pytest.approx((0, 0, 0, last))
    assert rates[1] == pytest.approx((last / 1e3, last / 1e2, last / 10, last))


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "cosine by epoch": lambda o: CosineAnnealingLR(o, 4),
    "one cycle by step": lambda o: {"scheduler": OneCycleLR(o, max_lr=0.1, total_steps=24), "interval": "step"},
    "warm-up, then steps": lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=2), StepLR(o, 1, 0.5)], [2]),
    "a function": lambda o: LambdaLR(o, lambda epoch: 0.9**epoch),
}


def with_scheduler(make: Callable[[torch.optim.Optimizer], Any]) -> Callable[[nn.Module], Any]:
    def both(module: nn.Module) -> Any:
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        return [optimizer], [make(optimizer)]

    return both


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_the_modules_sets_the_rates_as_it_would_alone(name: str, tmp_path: Path) -> None:
    rates: dict[str, list[float]] = {"alone": [], "ours": []}

    class Rates(L.Callback):
        def __init__(self, key: str) -> None:
            self.key = key

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            rates[self.key].append(trainer.optimizers[0].param_groups[-1]["lr"])

    # After the step: ours writes the rate before a step, a scheduler after it.
    make = with_scheduler(SCHEDULERS[name])

    class Alone(Rates):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            rates[self.key].append(trainer.optimizers[0].param_groups[-1]["lr"])

        def on_train_batch_end(self, *_: Any) -> None:
            pass

    make_trainer(None, [Alone("alone")], max_epochs=4).fit(Photos(make), *loaders())
    make_trainer(None, [schedule("lp_ft"), Rates("ours")], max_epochs=4).fit(Photos(make), *loaders())
    assert rates["alone"] == rates["ours"]
    assert len(set(rates["ours"])) > 1
    weights, again, _, _ = unbroken_and_resumed(tmp_path, 14, name="lp_ft", make=make)
    assert weights == again


def test_lightnings_own_callbacks_work_beside_it(tmp_path: Path) -> None:
    plan, best = schedule(), ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=1)
    stop = EarlyStopping("val_loss", patience=1, min_delta=100.0)
    monitor = LearningRateMonitor()
    trainer = make_trainer(
        None, [plan, best, stop, monitor], max_epochs=4, logger=CSVLogger(tmp_path), log_every_n_steps=1,
        accumulate_grad_batches=2, gradient_clip_val=0.5,
    )  # fmt: skip
    trainer.fit(Photos(with_scheduler(SCHEDULERS["cosine by epoch"])), *loaders())
    assert len(plan.history) == 2
    assert Path(best.best_model_path).exists()
    assert Photos.load_from_checkpoint(best.best_model_path, weights_only=True) is not None


def test_early_stopping_says_which_phases_were_not_reached(caplog: pytest.LogCaptureFixture) -> None:
    stop = EarlyStopping("val_loss", patience=1, min_delta=100.0)
    make_trainer(None, [schedule(), stop], max_epochs=4).fit(Photos(), *loaders())
    assert "depth 2, depth 3" in caplog.text


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}], ids=str)
def test_accumulated_and_clipped_gradients_resume_exactly(options: dict[str, Any], tmp_path: Path) -> None:
    stop = 7 if "accumulate_grad_batches" in options else 14
    weights, again, _, _ = unbroken_and_resumed(tmp_path, stop, trainer=options)
    assert weights == again


def test_a_phase_ends_when_a_metric_of_the_modules_stalls_and_hands_on_its_best_weights(tmp_path: Path) -> None:
    until = {"metric": "val_loss", "patience": 1, "min_delta": 100.0}
    phases = [
        {"unfreeze_depth": "all", "epochs": 9, "until": until, "at_end": "restore_best"},
        {"unfreeze_depth": 0, "epochs": 2},
    ]
    plan, shots = schedule(phases), Snapshots()
    make_trainer(None, [plan, shots], max_epochs=11).fit(Photos(), *loaders())
    assert len(plan.history) == 4
    assert {name.split(".")[0] for name in moved(shots.taken[1], shots.taken[-1])} == {"classifier"}
    for checkpoint in {}, {"save_on_train_epoch_end": False}:
        folder = tmp_path / str(len(checkpoint))
        weights, again, _, _ = unbroken_and_resumed(folder, 8, checkpoint, phases, trainer={"max_epochs": 11})
        assert weights == again


def test_validation_twice_an_epoch_resumes_exactly(tmp_path: Path) -> None:
    weights, again, _, _ = unbroken_and_resumed(
        tmp_path, 16, {"monitor": "val_loss"}, trainer={"val_check_interval": 3}
    )
    assert weights == again


def refused(module: L.LightningModule, plan: FreezeSchedule, *more: L.Callback, **options: Any) -> str:
    """The one line that is said before the first step."""
    with pytest.raises(ConfigError) as caught:
        make_trainer(None, [plan, *more], **{"max_epochs": 4, **options}).fit(module, *loaders())
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


class Tied(Photos):
    """The second stage shares its weights with the first one's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder.layer1[1].weight = self.encoder.stem[1].weight


class Frozen(Photos):
    """A stage that the module has frozen itself."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder.stem.requires_grad_(False)


def only_head(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.classifier.parameters(), lr=0.1)  # type: ignore[union-attr]


def two_optimizers(module: nn.Module) -> Any:
    return [only_head(module), torch.optim.SGD(module.encoder.parameters(), lr=0.1)]  # type: ignore[union-attr]


def a_strangers_weights(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([*module.parameters(), nn.Parameter(torch.zeros(1))], lr=0.1)


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "nothing of that name": (
        lambda: refused(Photos(), schedule(stages=["encoder.steam", *STAGES[1:]])),
        "stages[0]: 'encoder.steam' is no submodule of Photos (did you mean 'encoder.stem'?)",
    ),
    "a pattern that matches nothing": (
        lambda: refused(Photos(), schedule(stages=["body.*"])),
        "stages[0]: 'body.*' is no submodule of Photos; it has encoder, classifier",
    ),
    "named twice": (
        lambda: refused(Photos(), schedule(stages=["encoder.stem", *STAGES])),
        "stages: 'encoder.stem' is named twice; each submodule is in one stage",
    ),
    "one within another": (
        lambda: refused(Photos(), schedule(stages=["encoder", "encoder.layer2"])),
        "stages: 'encoder.layer2' is in 'encoder' and in 'encoder.layer2'; each submodule is in one stage",
    ),
    "in no stage": (
        lambda: refused(Photos(), schedule(stages=STAGES[:2])),
        "'encoder.layer2': in no stage, though training would move it; add it to a stage in `stages`, or to `head`",
    ),
    "no stages": (
        lambda: refused(Photos(), FreezeSchedule("lp_ft", head="classifier")),
        "stages: Photos needs it: names of its submodules, such as ['encoder.layer1', 'encoder.layer2']",
    ),
    "no head": (
        lambda: refused(Photos(), FreezeSchedule("lp_ft", stages=STAGES)),
        "head: Photos needs it: names of its submodules, such as 'fc'",
    ),
    "no submodule": (
        lambda: refused(Photos(), schedule(stages=[nn.Linear(1, 1)])),
        "stages[0]: the Linear is no submodule of Photos",
    ),
    "tied weights": (
        lambda: refused(Tied(), schedule()),
        "'encoder.stem.1.weight' is in the stages encoder.stem and encoder.layer1; what shares weights belongs to one "
        "stage",
    ),
    "frozen by the module": (
        lambda: refused(Frozen(), schedule()),
        "'encoder.stem' has no parameter that needs a gradient: the module freezes it itself; take out the line that "
        "does, the schedule will freeze it",
    ),
    "an optimizer that lacks parameters": (
        lambda: refused(Photos(only_head), schedule()),
        "configure_optimizers: the optimizer lacks 'encoder.stem.0.weight', 'encoder.stem.0.bias', "
        "'encoder.stem.1.weight' and 9 more; give it all parameters of the module (self.parameters()), the schedule "
        "says which are trained when",
    ),
    "parameters of nothing": (
        lambda: refused(Photos(a_strangers_weights), schedule()),
        "configure_optimizers: 1 parameters of the optimizer are of no submodule of Photos; make what they belong to "
        "an attribute of it",
    ),
    "two optimizers": (
        lambda: refused(TwoOptimizers(two_optimizers), schedule()),
        "configure_optimizers: a freeze schedule needs one optimizer, but TwoOptimizers has 2",
    ),
    "LBFGS": (
        lambda: refused(Photos(lambda module: torch.optim.LBFGS(module.parameters())), schedule()),
        "configure_optimizers: LBFGS takes one parameter group; use another optimizer",
    ),
    "longer than max_epochs": (
        lambda: refused(Photos(), schedule(epochs=9)),
        "epochs: the schedule has 9 epochs, but the trainer's max_epochs is 4; shorten the one or raise the other",
    ),
    "more phases than epochs": (
        lambda: refused(Photos(), schedule(), max_epochs=2),
        "freeze.epochs: `gradual` has 4 phases on this backbone and needs at least 4 epochs, but got 2; raise it, or "
        "write the phases yourself with `schedule: phases`",
    ),
    "two sources of rates": (
        lambda: refused(Photos(with_scheduler(SCHEDULERS["a function"])), schedule(lr=0.1)),
        "lr: the module's scheduler (LambdaLR) sets the rates; leave lr out, or the scheduler",
    ),
    "a scheduler that Lightning cannot resume": (
        lambda: refused(Photos(on_plateau), schedule()),
        "configure_optimizers: Lightning writes checkpoints before ReduceLROnPlateau steps, so a resumed run would "
        "miss a step; end a phase with `until` instead",
    ),
    "weight averaging": (
        lambda: refused(Photos(), schedule(), StochasticWeightAveraging(swa_lrs=1e-2)),
        "StochasticWeightAveraging: it sets its own rates, averages over phases and moves the statistics of frozen "
        "norm layers; leave it out",
    ),
    "another that freezes": (
        lambda: refused(Photos(), schedule(), NothingFrozen()),
        "NothingFrozen: it freezes and unfreezes too; keep one of the two",
    ),
    "no such stage in a phase": (
        lambda: refused(Photos(), schedule([{"stages": ["layer9"], "epochs": 1}])),
        "freeze.phases[0].stages: there is no stage 'layer9' (did you mean 'encoder.layer2'?); stages: encoder.stem, "
        "encoder.layer1, encoder.layer2",
    ),
}


class TwoOptimizers(Photos):
    """As a GAN has them."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        raise AssertionError


class NothingFrozen(BaseFinetuning):
    """Lightning's own, doing nothing."""

    def freeze_before_training(self, pl_module: L.LightningModule) -> None:
        pass

    def finetune_function(self, pl_module: L.LightningModule, epoch: int, optimizer: Any) -> None:
        pass


def on_plateau(module: nn.Module) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "val_loss"}}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_before_the_first_step(case: str) -> None:
    make, line = BAD[case]
    assert make() == line


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: schedule("graduall"), "freeze.schedule: 'graduall' is unknown (did you mean 'gradual'?)"),
        (lambda: schedule("lp_ft", probe=3), "freeze.probe: unknown key (did you mean 'probe_epochs'?)"),
        (lambda: schedule("lora"), "schedule: 'lora' is for backbones of experiments; add adapters to the module"),
        (
            lambda: schedule([{"unfreeze_depth": 0, "epochs": 1, "lr": 0.1, "name": "x"}]),
            "lr: is needed, since phase 'x'",
        ),
        (lambda: schedule([{"unfreeze_depth": 0}]), "freeze.phases[0].epochs: give it or fraction"),
    ],
)
def test_a_bad_schedule_is_refused_when_it_is_written(make: Callable[[], FreezeSchedule], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.problems[0].startswith(line)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, [], max_epochs=1).fit(Photos(), *loaders())
    with pytest.raises(ConfigError, match="was written without a freeze schedule"):
        make_trainer(None, [schedule()], max_epochs=4).fit(Photos(), *loaders(), ckpt_path=tmp_path / "last.ckpt")
    other = tmp_path / "other"
    whole = FreezeSchedule("full", stages=["encoder"], head="classifier")
    make_trainer(other, [whole], max_epochs=1).fit(Photos(), *loaders())
    with pytest.raises(
        ConfigError, match=r"the checkpoint has the stages encoder, head, but the schedule encoder\.stem"
    ):
        make_trainer(None, [schedule()], max_epochs=4).fit(Photos(), *loaders(), ckpt_path=other / "last.ckpt")


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_line(tmp_path: Path) -> None:
    make_trainer(tmp_path, [schedule()], max_epochs=4).fit(Photos(), *loaders())
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del checkpoint["callbacks"]["FreezeSchedule"]["entered"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(ConfigError) as caught:
        make_trainer(None, [schedule()], max_epochs=4).fit(Photos(), *loaders(), ckpt_path=tmp_path / "old.ckpt")
    assert caught.value.problems == (
        "ckpt_path: the checkpoint lacks entered, so it is of another version of tlresearch; go on with that version, "
        "or load the checkpoint's weights into the module and train anew",
    )


def named(module: L.LightningModule, stages: Any, head: Any = "classifier") -> dict[str, list[str]]:
    """Parameters of each stage, as `find_parts` finds them."""
    return {name: [key for key, _ in part.named_parameters()] for name, part in find_parts(module, stages, head)}


def test_stages_are_names_patterns_submodules_or_a_mapping() -> None:
    module = Photos()
    by_name = named(module, STAGES)
    assert list(by_name) == [*STAGES, "head"]
    assert named(module, ["encoder.stem", "encoder.layer*"]) == by_name
    assert named(module, [module.encoder.stem, module.encoder.layer1, module.encoder.layer2]) == by_name
    assert named(module, STAGES, module.classifier) == by_name
    both = named(module, {"low": ["encoder.stem", "encoder.layer1"], "high": "encoder.layer2"})
    assert both == {
        "low": [*by_name["encoder.stem"], *by_name["encoder.layer1"]],
        "high": by_name["encoder.layer2"],
        "head": by_name["head"],
    }
    assert list(named(module, [["encoder.stem", "encoder.layer1"], "encoder.layer2"])) == [*STAGES[::2], "head"]


class Listed(nn.Module):
    """Cut by its structure, since it cannot be traced; the stages run copies of layers that share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 64)
        self.second = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.first(x.flatten(1))
        return self.second(hidden + 1 if x.sum() > 0 else hidden)


class Branches(nn.Module):
    """Batch norm in a stage that is a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.branches = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(x)
        return torch.stack([branch(hidden) for branch in self.branches] if x.shape[0] else []).sum(dim=0).flatten(1)


@pytest.mark.parametrize(("network", "way"), [(Encoder, "graph"), (Listed, "structure"), (Branches, "structure")])
def test_stages_can_be_those_that_a_network_is_cut_into(network: type[nn.Module], way: str) -> None:
    module = Photos()
    module.encoder = network()  # type: ignore[assignment]
    cut = stages(module.encoder, torch.zeros(2, 1, 4, 4))
    assert cut.way == way
    parts = find_parts(module, cut, "classifier")
    assert parts.names == (*cut.stage_names, "head")
    assert {len(list(part.parameters())) for part in parts.modules[:-1]} - {0}
    plan = FreezeSchedule("depth", unfreeze_depth=1, stages=cut, head="classifier")
    before = copy(module)
    make_trainer(None, [plan], max_epochs=1).fit(module, *loaders())
    last = {id(tensor) for tensor in (*cut.stages[-1].parameters(), *cut.stages[-1].buffers())}
    trained = {
        name
        for name, tensor in module.state_dict(keep_vars=True).items()
        if id(tensor) in last or name.startswith("classifier")
    }
    assert moved(before, copy(module)) == trained


def test_stages_of_another_network_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        find_parts(Photos(), stages(Encoder(), torch.zeros(2, 1, 4, 4)), "classifier")
    assert caught.value.problems[0].endswith(
        "its weights are not those of Photos; give `tl.stages` the network that is in it"
    )


class Token(Photos):
    """A parameter of the encoder's own, one that never trains, and a teacher beside."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder.shift = nn.Parameter(torch.zeros(1))
        self.encoder.layer1.register_parameter("fixed", nn.Parameter(torch.ones(4), requires_grad=False))
        self.teacher = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.encoder.shift)


def test_a_parameter_can_be_in_a_stage_and_what_the_module_keeps_fixed_stays_so() -> None:
    module = Token()
    before = copy(module)
    stages = {"stem": ["encoder.stem", "encoder.shift"], "rest": ["encoder.layer1", "encoder.layer2"]}
    make_trainer(None, [schedule("full", stages=stages)], max_epochs=1).fit(module, *loaders())
    still = set(before) - moved(before, copy(module))
    assert still == {"encoder.layer1.fixed", "teacher.weight", "teacher.bias"}


def unbroken_and_resumed(
    folder: Path, stop: int, checkpoint: dict[str, Any] | None = None, name: Any = "gradual", make: Any = None,
    trainer: dict[str, Any] | None = None, **options: Any,
) -> tuple[str, str, Any, Any]:  # fmt: skip
    ends = []
    for part in ("unbroken", "resumed"):
        keep = ModelCheckpoint(folder / part, **{"save_last": True, **(checkpoint or {})})
        settings = {"max_epochs": 4, **(trainer or {})}
        if part == "resumed":
            with pytest.raises(StoppedError):
                make_trainer(None, [schedule(name, **options), keep, StopAt(stop)], **settings).fit(
                    Photos(make), *loaders()
                )
            torch.manual_seed(12345)  # another process has other random numbers
            keep = ModelCheckpoint(folder / part, **{"save_last": True, **(checkpoint or {})})
        module, plan = Photos(make), schedule(name, **options)
        path = folder / part / "last.ckpt" if part == "resumed" else None
        make_trainer(None, [plan, keep], **settings).fit(module, *loaders(), ckpt_path=path, weights_only=True)
        ends.append((digest(module), plan.history))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


@pytest.mark.parametrize("stop", [8, 14, 20])
@pytest.mark.parametrize(
    "checkpoint",
    [
        {},
        {"save_on_train_epoch_end": False},
        {"monitor": "val_loss"},
        {"every_n_train_steps": 1},
        {"every_n_train_steps": 4},
        {"every_n_train_steps": 6},
    ],
    ids=str,
)
def test_a_resumed_run_ends_as_the_unbroken_one(tmp_path: Path, checkpoint: dict[str, Any], stop: int) -> None:
    weights, again, history, repeated = unbroken_and_resumed(tmp_path, stop, checkpoint)
    assert weights == again
    both = [(row["val_loss"], row2["val_loss"]) for row, row2 in zip(history, repeated, strict=True) if row2]
    assert all(first == second for first, second in both)
    assert len(both) >= len(history) - 1
