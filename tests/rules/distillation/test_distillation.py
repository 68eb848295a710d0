"""Learning without forgetting in a real Trainer, against a plain loop."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from cl_callbacks import Distillation, SynapticCallback
from cl_callbacks.functional import Reading, distillation_loss, positions_with_label
from tests.processes import train_together
from tests.references.distillation import without_forgetting
from tests.small import CLASSES, FEATURES, Net, fit_tasks, loader, make_trainer, plain_net, task, weights

BATCH = 4
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
}


def model(optimizer: str = "sgd", kind: Any = Net) -> Any:
    torch.manual_seed(0)
    return kind(plain_net(), OPTIMIZERS[optimizer]).double()


def data(number: int, samples: int = 24) -> tuple[Tensor, Tensor]:
    x, y = task(number, samples)
    return x.double(), y


def fit(net: Any, rule: Any, tasks: int = 2, *others: Callback, **options: Any) -> Any:
    trainer = make_trainer(rule, *others, **options)
    for number in range(tasks):
        trainer.fit_loop.max_epochs = number + 1
        trainer.fit(net, loader(*data(number), batch_size=BATCH))
    return trainer


def plain(net: Any, tasks: int = 2, **options: Any) -> None:
    batches = [
        list(zip(x.split(BATCH), y.split(BATCH), strict=True)) for x, y in (data(n) for n in range(tasks))
    ]
    steps = len(batches[0]) // options.get("accumulate", 1)
    without_forgetting(net.net, Renewed(net, steps), batches, **options)


class Renewed:
    """An optimizer that begins anew with each fit, as Lightning's does."""

    def __init__(self, net: Any, steps: int) -> None:
        self.net, self.every, self.steps = net, steps, 0

    def step(self) -> None:
        if self.steps % self.every == 0:
            self.optimizer = self.net.configure_optimizers()
        self.steps += 1
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.net.zero_grad()


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_equals_a_plain_loop(optimizer: str, accumulate: int) -> None:
    found, wanted = model(optimizer), model(optimizer)
    fit(found, Distillation(0.7, temperature=3.0), tasks=3, accumulate_grad_batches=accumulate)
    plain(wanted, tasks=3, strength=0.7, temperature=3.0, accumulate=accumulate)
    torch.testing.assert_close(weights(found), weights(wanted), rtol=1e-12, atol=1e-12)


def test_a_given_teacher_counts_from_the_first_step() -> None:
    """Here as a squared distance of what a layer returns, with another network of that layer."""
    net, wanted = model(), model()
    torch.manual_seed(1)
    teacher = Net(plain_net()).double()
    rule = Distillation(0.5, teacher=teacher, on="features", feature_layer="net.0")
    fit(net, rule, tasks=1)
    optimizer = wanted.configure_optimizers()
    x, y = data(0)
    for now_x, now_y in zip(x.split(BATCH), y.split(BATCH), strict=True):
        optimizer.zero_grad()
        distance = F.mse_loss(wanted.net[0](now_x), teacher.net[0](now_x).detach())
        (F.cross_entropy(wanted(now_x), now_y) + 0.5 * distance).backward()
        optimizer.step()
    torch.testing.assert_close(weights(net), weights(wanted), rtol=1e-12, atol=1e-12)
    assert rule.state_dict()["teacher"] is None
    assert teacher.training, "its mode is restored"


def test_a_batch_without_a_loss_counts_nothing() -> None:
    class Skipping(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 and self.skips else super().training_step(batch, batch_idx)

    found = []
    for skips in (True, False):
        net = model(kind=Skipping)
        net.skips = skips
        x, y = data(0, 2 * BATCH)
        if not skips:
            x, y = x[:BATCH], y[:BATCH]
        teacher = Net(plain_net()).double()
        with torch.no_grad():
            for p in teacher.parameters():
                p.fill_(0.3)
        fitting = make_trainer(Distillation(1.0, teacher=teacher), accumulate_grad_batches=2)
        fitting.fit(net, loader(x, y, batch_size=BATCH))
        found.append(weights(net))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)


def test_nothing_before_a_task_has_ended_and_batch_norm_and_numbers_as_without_it() -> None:
    found = []
    for callbacks in ([], [Distillation(5.0)]):
        torch.manual_seed(0)
        net = Net()
        fit_tasks(net, *callbacks, tasks=1)
        found.append(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(f.values() for f in found), strict=True))


def test_other_rules_see_the_gradient_of_the_task_alone() -> None:
    found = []
    for strength in (0.0, 0.5):
        seen: list[Tensor] = []

        class Looking(SynapticCallback):
            needs = frozenset({"gradients"})

            def observe(self, step: Any, seen: list[Tensor] = seen) -> None:
                seen.append(torch.cat([g.flatten() for g in step.gradients]).clone())

        net = model()
        net.optimizer = lambda p: torch.optim.SGD(p, lr=0.0)
        fit(net, Distillation(strength), 2, Looking())
        found.append(seen)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and len(found[0]) == 12


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "32-true"])
def test_the_teacher_is_the_network_as_it_was(precision: Any) -> None:
    """Where weights stay, its outputs are the network's; where they move, its outputs stay what they were."""

    class Watching(Distillation):
        def _divergence(self, new: Tensor, labels: Any, old: Tensor) -> Tensor:
            self.seen.append((new.detach().clone(), old.clone()))  # type: ignore[attr-defined]
            return super()._divergence(new, labels, old)

    torch.manual_seed(0)
    net, rule = Net(plain_net()), Watching(0.1)
    rule.seen = []  # type: ignore[attr-defined]
    trainer = make_trainer(rule, precision=precision)
    trainer.fit(net, loader(*task(0)))
    rule.seen.clear()  # type: ignore[attr-defined]
    trainer.fit_loop.max_epochs = 4
    x, y = task(1, 8)
    trainer.fit(net, loader(x, y))
    seen = rule.seen[1:]  # type: ignore[attr-defined]
    assert len(seen) == 3 and torch.equal(*seen[0])
    assert all(torch.equal(old, seen[0][1]) for _, old in seen)
    assert not torch.equal(*seen[-1])


class Recurrent(nn.Module):
    """Its weights are also in a list of the layer's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(FEATURES, 5, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.unsqueeze(1))[0][:, 0])


@pytest.mark.parametrize("kind", [Recurrent, lambda: Net().net])
def test_the_teacher_equals_a_frozen_copy(kind: Any) -> None:
    """Also with weights that are referred to twice, and with BatchNorm."""
    torch.manual_seed(0)
    net, rule = Net(kind()), Distillation(1.0)
    fit_tasks(net, rule, tasks=1)
    copied = copy.deepcopy(net).eval()
    x, _ = task(5)
    wanted = copied(x)
    make_trainer(rule).fit(net, loader(*task(1)))
    before, modes = net.state_dict(), [m.training for m in net.modules()]
    before = {name: value.clone() for name, value in before.items()}
    again = Distillation(1.0)
    again.load_state_dict(copy.deepcopy(rule.state_dict()))
    kept = again._teacher
    kept.load_state_dict({  # of the first boundary
        "weights": {n: p.detach() for n, p in copied.named_parameters()},
        "buffers": dict(copied.named_buffers()), "frozen": [],
    })  # fmt: skip
    kept.prepare(net, rule.synapses.view, torch.device("cpu"))
    with torch.no_grad(), kept.network(net) as teacher:
        assert torch.equal(teacher(x), wanted)
    assert all(torch.equal(before[n], v) for n, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes


# -- heads -------------------------------------------------------------------------------------------------


def test_a_grown_head_is_compared_by_the_outputs_that_there_were() -> None:
    class Growing(Net):
        def on_train_start(self) -> None:
            if self.trainer.current_epoch == 1:
                old, self.net[2] = self.net[2], nn.Linear(8, CLASSES + 2).double()
                with torch.no_grad():
                    self.net[2].weight[:CLASSES], self.net[2].bias[:CLASSES] = old.weight, old.bias
                self.trainer.optimizers[0].add_param_group({"params": list(self.net[2].parameters())})

    found = model(kind=Growing)
    fit(found, Distillation(0.5))
    assert weights(found).isfinite().all()
    assert len(found.net[2].weight) == CLASSES + 2


class Heads(LightningModule):
    """A head for each task, of which a batch's task chooses one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, 8)
        self.heads = nn.ModuleList(nn.Linear(8, CLASSES) for _ in range(3))
        self.now = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[self.now](self.body(x).tanh())

    def on_train_start(self) -> None:
        self.now = self.trainer.current_epoch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class AllHeads(Distillation):
    def outputs(self, pl_module: Any, batch: Any) -> Any:
        body = pl_module.body(batch[0]).tanh()
        return torch.cat([head(body) for head in pl_module.heads], 1), batch[1]


class EachHead(Distillation):
    def outputs(self, pl_module: Any, batch: Any) -> Any:
        body = pl_module.body(batch[0]).tanh()
        return torch.stack([head(body) for head in pl_module.heads], 1)


@pytest.mark.parametrize(
    "rule",
    [
        AllHeads(1.0),
        EachHead(1.0, likelihood="categorical", class_dim=-1),
        EachHead(1.0, likelihood="gaussian"),
    ],
)
def test_heads_that_no_task_has_trained_are_left_out(rule: Any) -> None:
    """In the second task there is one old head, and a softmax over it alone."""
    found, wanted = [Heads().double() for _ in range(2)]
    wanted.load_state_dict(found.state_dict())
    fit(found, rule, tasks=2)
    old: Any = None
    for number in range(2):
        wanted.now = number
        x, y = data(number)
        for now_x, now_y in zip(x.split(BATCH), y.split(BATCH), strict=True):
            loss = F.cross_entropy(wanted(now_x), now_y)
            if old is not None:
                z, kept = (m.heads[0](m.body(now_x).tanh()) for m in (wanted, old))
                gaussian = rule.likelihood == "gaussian"
                loss = loss + distillation_loss(
                    z, kept.detach(), likelihood="gaussian" if gaussian else "categorical"
                )
            wanted.zero_grad()
            loss.backward()
            with torch.no_grad():
                for name, p in wanted.named_parameters():
                    if p.grad is not None and not (number and name.startswith("heads.0")):
                        p.sub_(p.grad, alpha=0.1)
        old = copy.deepcopy(wanted)
    torch.testing.assert_close(weights(found), weights(wanted), rtol=1e-12, atol=1e-12)


def test_a_head_that_the_teacher_does_not_have_is_said() -> None:
    net = Heads().double()
    with pytest.raises(ValueError, match=r"no task before has trained \(heads\.1\.weight.* all heads"):
        fit(net, Distillation(1.0))
    rule = Distillation(1.0, on="features", feature_layer="body")
    fit(Heads().double(), rule)
    assert rule.tasks == 2


# -- tokens ------------------------------------------------------------------------------------------------


class Tokens(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]).flatten(0, 1), batch[1].flatten())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_positions_without_a_label_count_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randint(1, 7, (8, 4))
    y = x.roll(1, 1)
    y[:, :2] = -100
    x[:, :2] = 0  # tokens that are at these positions alone
    torch.manual_seed(1)
    teacher = Tokens()
    net = Tokens()
    before = net.embed.weight[0].clone()
    make_trainer(Distillation(1.0, teacher=teacher)).fit(net, loader(x, y))
    assert torch.equal(net.embed.weight[0], before)
    make_trainer(Distillation(1.0, teacher=teacher, ignore_index=-1)).fit(net, loader(x, y.clamp_min(0)))
    assert not torch.equal(net.embed.weight[0], before)


# -- adapters ----------------------------------------------------------------------------------------------


def adapted() -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    net = Net(plain_net(), OPTIMIZERS["sgd"])
    base = copy.deepcopy(net.net)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["0", "2"], lora_dropout=0.0)
    net.net = peft.get_peft_model(net.net, config)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_B" in name:
                p.normal_()
    return net.double(), base.double()


def test_a_network_with_its_adapters_off_equals_a_frozen_copy() -> None:
    (off, base), (given, _) = adapted(), adapted()
    required = [p.requires_grad for p in off.parameters()]
    rule = Distillation(1.0, teacher="adapters_off")
    fit(off, rule)
    fit(given, Distillation(1.0, teacher=base))
    assert torch.equal(weights(off), weights(given))
    assert [p.requires_grad for p in off.parameters()] == required
    assert rule.state_dict()["teacher"] is None
    without = adapted()[0]
    fit(without, Distillation(0.0))
    assert not torch.equal(weights(off), weights(without))


def test_of_adapters_the_last_task_is_kept_alone() -> None:
    net, rule = adapted()[0], Distillation(1.0)
    fit(net, rule)
    kept = rule.state_dict()["teacher"]["weights"]
    assert kept and all("lora_" in name for name in kept)


def test_a_tiny_language_model_with_adapters(tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    from tests.tiny_transformers import tiny_language_model

    class Language(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            network = transformers.AutoModelForCausalLM.from_pretrained(folder)
            config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
            self.net = peft.get_peft_model(network, config)

        def forward(self, input_ids: Tensor) -> Any:
            return self.net(input_ids=input_ids)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(input_ids=batch["input_ids"], labels=batch["labels"]).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.5)

    folder = tiny_language_model(tmp_path)
    tokens = torch.randint(4, 12, (4, 6), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[:, :2] = -100
    batches: Any = DataLoader([{"input_ids": tokens, "labels": labels}] * 4, batch_size=None)  # type: ignore[arg-type]
    moved = []
    for strength in (0.0, 50.0):
        torch.manual_seed(0)
        net = Language()
        make_trainer(Distillation(strength, teacher="adapters_off")).fit(net, batches)
        net.eval()
        with torch.no_grad():
            now = net(tokens).logits
            with net.net.disable_adapter():
                base = net(tokens).logits
        moved.append(float((now - base).square().mean()))
    assert moved[1] < 0.8 * moved[0]


# -- processes ---------------------------------------------------------------------------------------------


def together(rank: int, folder: str) -> None:
    net = model()
    trainer = make_trainer(
        Distillation(0.7), strategy="ddp", devices=2, use_distributed_sampler=False, accelerator="cpu"
    )
    for number in range(2):
        trainer.fit_loop.max_epochs = number + 1
        x, y = (t[rank::2] for t in data(number))
        trainer.fit(net, loader(x, y, batch_size=BATCH // 2))
    if rank == 0:
        torch.save(weights(net), Path(folder) / "weights.pt")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    train_together(2, together, str(tmp_path))
    wanted = model()
    plain(wanted, strength=0.7)
    torch.testing.assert_close(torch.load(tmp_path / "weights.pt"), weights(wanted), rtol=1e-12, atol=1e-12)


# -- what cannot work --------------------------------------------------------------------------------------


class Manual(Net):
    automatic_optimization = False


class Detached(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).detach()


@pytest.mark.parametrize(
    ("net", "rule", "error", "sentence"),
    [
        (Manual, Distillation(), MisconfigurationException, "use automatic optimization"),
        (Detached, Distillation(), ValueError, "carry no gradient"),
        (Net, Distillation(teacher="adapters_off"), MisconfigurationException, "wrap its network with peft"),
        (Net, Distillation(on="features", feature_layer="no"), ValueError, "is no module of Net"),
        (Net, Distillation(likelihood="bernoulli"), ValueError, "leave `likelihood` out"),
        (Net, Distillation(teacher=nn.Linear(FEATURES, 9)), ValueError, "but not fewer"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_step(
    net: Any, rule: Any, error: Any, sentence: str
) -> None:
    trainer, built = make_trainer(rule), net()
    with pytest.raises(error, match=sentence):
        trainer.fit(built, loader(*task(0)))
    assert trainer.global_step == 0


def test_a_teacher_that_is_trained_is_refused() -> None:
    for part in (lambda net: net, lambda net: net.net):
        net = Net()
        with pytest.raises(MisconfigurationException, match="the teacher is being trained"):
            make_trainer(Distillation(teacher=part(net))).fit(net, loader(*task(0)))


def test_a_head_beside_the_adapters_is_refused() -> None:
    net, _ = adapted()
    net.net = nn.Sequential(net.net, nn.Linear(CLASSES, CLASSES).double())
    with pytest.raises(MisconfigurationException, match="modules_to_save"):
        fit(net, Distillation(teacher="adapters_off"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"on": "weights"}, "on must be 'outputs'"),
        ({"direction": "both"}, "direction must be 'forward'"),
        ({"teacher": "ema"}, "teacher must be 'last_task'"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"on": "features"}, "feature_layer names"),
        ({"feature_layer": "net"}, "feature_layer names"),
        ({"on": "features", "feature_layer": "net", "likelihood": "gaussian"}, "squared distance"),
        ({"likelihood": "poisson"}, "likelihood must be 'categorical'"),
    ],
)
def test_arguments_that_cannot_work(arguments: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Distillation(**arguments)


class Labelled(Heads):
    """Tells the outputs of all heads, with classes as labels."""

    def outputs_of_all_heads(self, batch: Any) -> Any:
        body = self.body(batch[0]).tanh()
        outputs = torch.stack([head(body) for head in self.heads], 1)
        return outputs, batch[1].view(-1, 1, 1).expand(-1, len(self.heads), 1)


def test_outputs_of_classes_may_be_compared_as_numbers() -> None:
    found, wanted = Labelled().double(), Heads().double()
    wanted.load_state_dict(found.state_dict())
    fit(found, Distillation(1.0, likelihood="gaussian"), tasks=2)
    fit(wanted, EachHead(1.0, likelihood="gaussian"), tasks=2)
    assert torch.equal(weights(found), weights(wanted))


def test_positions_without_a_label_do_not_count_among_numbers() -> None:
    outputs, labels = torch.zeros(2, 3, 4), torch.tensor([[0, -100, 2], [1, 1, -100]])
    for given in (labels, labels.unsqueeze(-1)):
        mask = positions_with_label(outputs, given, Reading("gaussian"))
        assert mask is not None and mask.shape == outputs.shape
        assert torch.equal(mask.all(-1), labels >= 0) and torch.equal(mask.any(-1), labels >= 0)
    assert positions_with_label(outputs, torch.zeros(2, 3, 4), Reading("gaussian")) is None
