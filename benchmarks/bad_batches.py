"""Batches whose loss or gradient is not finite, and the ways in which training goes on after them.

What ``benchmarks/faults.py --bad-batches`` counts and ``tests/test_faults.py`` samples. A bad batch must not
leave a trace in a rule's state: no tensor that is not finite, and none that has changed, but where a step was
really taken and the state follows the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F

from cl_callbacks import (
    BGD,
    EWC,
    MAS,
    MESU,
    BennaFusi,
    Cascade,
    EpochBoundaries,
    KFACLaplace,
    MetaplasticGate,
    RWalk,
    StreamingConsolidation,
    SynapticCallback,
    SynapticIntelligence,
)

RULES: dict[str, Callable[[], SynapticCallback]] = {
    "EWC": lambda: EWC(1.0, estimator="sampled"),
    "EWC, each": lambda: EWC(1.0, anchors="each", decay=0.9),
    "MAS": lambda: MAS(0.1),
    "KFACLaplace": lambda: KFACLaplace(1.0),
    "SynapticIntelligence": lambda: SynapticIntelligence(1.0),
    "RWalk": lambda: RWalk(1.0, window_steps=3),
    "Streaming, fisher": lambda: StreamingConsolidation(1.0, measure="fisher"),
    "Streaming, sensitivity": lambda: StreamingConsolidation(1.0, measure="sensitivity"),
    "Streaming, path": lambda: StreamingConsolidation(0.1, measure="path", importance_decay=0.9),
    "MetaplasticGate": lambda: MetaplasticGate(),
    "BennaFusi": lambda: BennaFusi(4, 0.1),
    "MESU": lambda: MESU(100),
    "MESU, 2 samples": lambda: MESU(100, draws=2),
    "MESU, chain": lambda: MESU(100, prior="chain", beakers=3, coupling=0.1),
    "BGD": lambda: BGD(),
    "Cascade": lambda: Cascade(3),
}
NOISY = {name for name in RULES if name.startswith(("MESU", "BGD"))}

KINDS = ["nan input", "infinite input", "infinite loss", "one infinite gradient"]
WAYS = ["skipped", "returns None", "zeroed", "clipped", "guarded", "end of task"]


def possible(way: str, kind: str) -> bool:
    """Whether there is such a fault: a loss that is finite is not returned as None."""
    if way == "end of task":
        return kind == "nan input"
    return not (way == "returns None" and kind == "one infinite gradient")


class Net(LightningModule):
    """Is told which batches are bad, and goes on after them in one of the ways."""

    def __init__(self, way: str, kinds: list[list[str]], features: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.way, self.kinds = way, kinds
        self.net = nn.Sequential(nn.Linear(features, 8), nn.Tanh(), nn.Linear(8, classes))
        self.net[0].weight.register_hook(self._one_infinite)
        self._kind = ""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def _one_infinite(self, gradient: Tensor) -> Tensor:
        if self._kind == "one infinite gradient":
            gradient = gradient.clone()
            gradient[0, 0] = torch.inf
        return gradient

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        x, y = batch
        self._kind = self.kinds[self.current_epoch][batch_idx]
        loss = F.cross_entropy(self(x), y)
        if self._kind == "infinite loss":
            loss = loss * torch.inf
        return loss if self.way != "returns None" or loss.isfinite() else None

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.way == "zeroed":
            for p in self.parameters():
                if p.grad is not None:
                    p.grad.nan_to_num_(0.0, 0.0, 0.0)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **options: Any) -> None:
        if self.way == "clipped":
            for p in self.parameters():
                if p.grad is not None:
                    p.grad.nan_to_num_()
            self.clip_gradients(optimizer, 1.0, "norm")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9 if self.way == "guarded" else 0.0)


class Guard(Callback):
    """A user's own: puts back what was there before a step that has destroyed the weights."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.weights = copy.deepcopy(module.state_dict())
        self.optimizer = copy.deepcopy(trainer.optimizers[0].state_dict())

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        found = trainer.optimizers[0].state_dict()["state"].values()
        moments = [t for moments in found for t in moments.values() if isinstance(t, Tensor)]
        if not all(t.isfinite().all() for t in [*module.parameters(), *moments]):
            module.load_state_dict(self.weights)
            trainer.optimizers[0].load_state_dict(self.optimizer)


class Poison(Callback):
    """Weights are not finite when a task ends, before the rules hear of it; afterwards they are again."""

    def __init__(self, witness: Witness) -> None:
        self.witness = witness

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.weights = copy.deepcopy(module.state_dict())
        self.witness.before = tensors(self.witness.rule)
        with torch.no_grad():
            for p in module.parameters():
                p.flatten()[0] = torch.nan

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch:
            module.load_state_dict(self.weights)


class Witness(Callback):
    """Compares a rule's state after each bad batch with that before it."""

    def __init__(self, rule: SynapticCallback, name: str, way: str) -> None:
        self.rule, self.name, self.way = rule, name, way
        self.met = 0
        self.corrupted: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, *args: Any) -> None:
        self.before = tensors(self.rule)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        kind = module.kinds[trainer.current_epoch][batch_idx]
        if kind:
            self.see(f"{kind}, batch {batch_idx}", follows(self.name, self.way, self.rule, kind))

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.way == "end of task":
            self.see(f"end of epoch {trainer.current_epoch}", frozenset())

    def see(self, where: str, moving: frozenset[str]) -> None:
        self.met += 1
        for key, value in tensors(self.rule).items():
            field = key.split("/")[1]
            if not value.isfinite().all():
                self.corrupted.append(f"{where}: {key} is not finite")
            elif field not in moving and not torch.equal(value, self.before[key]):
                self.corrupted.append(f"{where}: {key} has changed")


def follows(name: str, way: str, rule: SynapticCallback, kind: str) -> frozenset[str]:
    """Fields that rightly change with a bad batch: a step was taken, and they follow the weights.

    One infinite gradient leaves all other synapses their step, and so every field may change.
    """
    if kind == "one infinite gradient" and way != "skipped":
        return frozenset(rule.fields)
    if way in ("zeroed", "clipped", "guarded"):
        # A gradient of 0 is one more for an average, and time passes for what relaxes.
        if name.startswith(("Streaming", "BennaFusi", "MESU")):
            return frozenset(rule.fields)
        if isinstance(rule, RWalk):
            closed = rule.steps % rule.window_steps == 0
            return frozenset({"fisher", "start", "score", "path"} if closed else {"fisher"})
    return frozenset()


def tensors(rule: SynapticCallback) -> dict[str, Tensor]:
    """All tensors of a rule's state, flat; what it counts is left out, for it may count a bad step."""
    found: dict[str, Tensor] = {}

    def visit(path: str, value: Any) -> None:
        if isinstance(value, dict | list):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                visit(f"{path}/{key}".lstrip("/"), inner)
        elif isinstance(value, Tensor):
            found[path] = value.clone()

    visit("", rule.state_dict())
    return found


class Batches:
    """What a Trainer reads in order; a bare list would be a collection of loaders to it."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def batches(kind: str, good: int, bad: int, seed: int) -> list[tuple[Tensor, Tensor, str]]:
    """Good batches of unequal sizes, bad ones among them at random places."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    places = set(torch.randperm(good + bad, generator=torch.Generator().manual_seed(seed))[:bad].tolist())
    found = []
    for place in range(good + bad):
        if place in places:
            x = torch.randn(5, 6, generator=torch.Generator().manual_seed(place))
            if kind.endswith("input"):
                x = torch.full_like(x, torch.nan if kind == "nan input" else torch.inf)
            found.append((x, torch.zeros(5, dtype=torch.long), kind))
        else:
            x = torch.randn(8 if place % 3 else 4, 6, generator=generator)
            found.append((x, (x @ teacher).argmax(1), ""))
    return found


def train(name: str, way: str, epochs: list[list[Any]], rule: SynapticCallback) -> tuple[Net, Witness]:
    torch.manual_seed(0)
    model = Net(way, [[kind for *_, kind in epoch] for epoch in epochs])
    witness = Witness(rule, name, way)
    plugins = None
    if way == "skipped":
        # Scales are powers of two and so exact, however many steps are skipped.
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**16))
        plugin.precision = "bf16-mixed"  # which the CPU can compute in
        plugins = [plugin]
    first: list[Callback] = [Poison(witness)] if way == "end of task" else []
    last: list[Callback] = [Guard()] if way == "guarded" else []
    trainer = Trainer(
        max_epochs=len(epochs),
        callbacks=[*first, rule, EpochBoundaries(1), *last, witness],
        plugins=plugins,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        reload_dataloaders_every_n_epochs=1,
    )
    model.train_dataloader = lambda: Batches([(x, y) for x, y, _ in epochs[trainer.current_epoch]])
    trainer.fit(model)
    return model, witness


def inject(name: str, way: str, kind: str, bad: int, seed: int = 0) -> tuple[int, list[str]]:
    """Trains two tasks with ``bad`` bad batches in all; returns how many there were, and what was hurt."""
    if way == "end of task":
        epochs = [batches("", 12, 0, seed + k) for k in range(bad)]
    else:
        epochs = [batches(kind, 12, n, seed + k) for k, n in enumerate((bad // 2, bad - bad // 2))]
    rule = RULES[name]()
    model, witness = train(name, way, epochs, rule)
    corrupted = list(witness.corrupted)
    if not all(p.isfinite().all() for p in model.parameters()) and way != "end of task":
        corrupted.append("the weights are not finite")
    if comparable(name, way, kind):
        spared = RULES[name]()
        other, _ = train(name, way, [[b for b in epoch if not b[2]] for epoch in epochs], spared)
        expected = tensors(spared) | dict(other.state_dict())
        found = tensors(rule) | dict(model.state_dict())
        corrupted += [
            f"at the end: {key} is not that of a run without bad batches"
            for key, value in expected.items()
            if not torch.equal(value, found[key])
        ]
    return witness.met, corrupted


def comparable(name: str, way: str, kind: str) -> bool:
    """Whether a run in which the bad batches never came must end with the same state.

    Not where the rule reads the data again and the bad batches are good to it; and not where each batch has
    draws of the weights' noise of its own, which a skipped one uses up.
    """
    if way not in ("skipped", "returns None"):
        return False
    reads_data = name.startswith(("EWC", "MAS", "KFAC")) and not kind.endswith("input")
    uses_draws = name in NOISY and (way == "skipped" or name == "MESU, 2 samples")
    return not reads_data and not uses_draws
