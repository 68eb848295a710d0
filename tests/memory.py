"""Writes docs/memory.md from what rules really hold: `python -m tests.memory`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cl_callbacks import UPGD, Cascade, KFACLaplace, ShrinkAndPerturb, SynapticCallback
from tests.every_rule import DISTILLING, MATRICES_ONLY, REHEARSING, RULES, VARIANTS, make
from tests.small import Net, fit_tasks, plain_net

PAGE = Path(__file__).parent.parent / "docs" / "memory.md"

INTRODUCTION = """\
# What the rules hold in memory

Written by `python -m tests.memory` from trainings of two tasks in which the tensors were counted, and
compared with them by `tests/test_memory.py`; do not edit. Bytes for each selected parameter of float32. For
comparison: a weight with its gradient takes 8, and Adam's moments 8 more.
"""

NOTES = """\
- **State** is what a checkpoint holds: importance and anchor, paths, beakers, standard deviations. It is
  there only for the parameters that `parameters` and `exclude` select, and so is everything else here.
- **Snapshots** are there while training: the task's gradient, the weights before the step, the gradient
  with its pulls, the gradient times the noise. All rules of a Trainer share them: what several need is
  taken once.
- **Noise** is there while training with drawn weights: the means, the noise, and what several draws have
  gathered; of `Cascade`, the random numbers of a step; of `UPGD` and `ShrinkAndPerturb` their noise.
- `KFACLaplace` keeps, beside the table, two factors of each linear or convolutional layer with I inputs (of
  a convolution: channels times kernel size; one more with a bias) and O outputs: 4 (I² + O²) bytes, for
  every task with `accumulate="list"`. A layer's parameters are I · O. `proximal=True` keeps their
  eigenvectors beside them.
- `ExperienceReplay` and `DarkExperienceReplay` keep no state of weights. They keep samples, on the CPU: at
  most `memory` of them and `max_bytes`, in every process ([rehearsal.md](rehearsal.md)). In a step there is
  one more gradient for each selected parameter, beside that of the task.
- `Distillation(teacher="last_task")` keeps a copy of the weights that are trained, and of all buffers, from
  the end of the first task on: 4 bytes for each trained parameter (of a network with adapters, those are the
  adapters); other teachers take nothing. In a step there are up to two more gradients for each selected
  parameter: the sum over batches that are accumulated, and that of the present batch until it has a loss.
- `DriftBoundaries` keeps up to two copies of the trainable weights and of what rules have gathered in the
  task.
- Not counted is what is there for a moment: within a pull or a rewrite a few tensors of the size of a block
  of the parameters (131,072 on a CPU, 67 million on an accelerator, 17 million with `CompileRules`, 8
  million with `state_device="cpu"`; all of them if `KFACLaplace` or a rule of your own that does not say
  `local` takes part), and what measuring the importance at the end of a task takes. While a task ends there
  is a copy of the state of each rule, on its device, and with `WeightMerging` or `RetentionGuard` of the
  weights, to go back to if [something fails](fits.md#when-the-end-of-a-task-fails).

## Less of it

- `parameters="…"` and `exclude="…"`: state for these only. Of a large network that is fine-tuned by
  adapters, only the adapters require a gradient, and nothing else has a state.
- `state_dtype="bfloat16"` halves importance and anchor of the rules that change them at the end of a task
  only. Its eight binary digits round an importance and an anchor by up to 0.4 %: a weight is pulled to
  where it nearly was. What grows in small steps, such as the path of `SynapticIntelligence`, would stand
  still in it and is kept in float32. Rules of which that is all refuse it, those marked "refused".
  `"float16"` takes as much, and importances below 6e-8, which are common, are 0 in it.
- `state_device="cpu"` keeps the state in the memory of the CPU, pinned if there is an accelerator; snapshots
  and noise stay beside the parameters. The weights are the same, bit for bit, and so are checkpoints. Before
  a rule does something, what it asks for of its state is copied to the parameters, and afterwards back if it
  may have changed, on streams of their own: while it works on one block of the parameters, here of 8 million,
  the state of the next is on its way there and that of the one before on its way back. Two blocks of a rule's
  state are on the accelerator at most, within the step, when the activations are gone, and none between the
  steps. The host waits for no copy; the accelerator waits for that of a step's first block, and copies the
  last one back while it computes the next forward. A step still takes as long as the transfer of its bytes,
  which is longer than the rule's own work: both ways at once for rules that rewrite the update or follow each
  step, one way for `EWC` and `MAS` from the second task on, and none in the first. Not overlapped are
  `KFACLaplace` and rules beside it, which work on all parameters at once, the standard deviations for each
  draw of `BGD` and `MESU`, the end of a window of `RWalk`, and a gate's importance. Tested with copies within
  the CPU, and on a pretend device that finds copies out of order and waits of the host; it has not run on
  CUDA yet, so what the overlap saves is not measured. Under FSDP2 on an accelerator it is refused; there each
  process has only its shard of the state.
"""


@dataclass
class Bytes:
    """For each selected parameter."""

    state: float = 0.0
    snapshots: float = 0.0
    noise: float = 0.0
    factors: int = 0
    """In all, of a whole network."""


class Weighing(Callback):
    """Counts what a rule holds after each batch."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.found = Bytes()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        rule: Any = self.rule
        parameters = sum(p.numel() for p in rule.synapses.view.parameters)
        buffers = [t for kind in rule._step._buffers.values() for t in kind._found.values()]
        noise: list[Tensor] = []
        if rule.weight_noise is not None:
            noise = [
                *rule.weight_noise._means.values(),
                *rule.weight_noise._noise.flats,
                *rule.weight_noise._gathered_flat,
            ]
        elif isinstance(rule, Cascade):
            noise = rule._uniform.flats
        elif isinstance(rule, ShrinkAndPerturb | UPGD):
            noise = rule._noise._draws.flats
        self.found = Bytes(
            size(t for named in rule.synapses.state_dict().values() for t in named.values()) / parameters,
            size(buffers) / parameters,
            size(noise) / parameters,
            size(t for flat in factors(rule).values() for t in flat),
        )


def factors(rule: Any) -> dict[str, list[Tensor]]:
    return rule.memory.state_dict() if isinstance(rule, KFACLaplace) else {}


def size(tensors: Iterable[Tensor]) -> int:
    return sum(t.nbytes for t in tensors)


def measured(rule: SynapticCallback, tasks: int = 2) -> Bytes:
    """In a training of a small network; in the last task, of which nothing is consolidated yet."""
    weighing = Weighing(rule)
    fit_tasks(Net(plain_net()), rule, weighing, tasks=tasks)
    return weighing.found


def state_in(rule: str, dtype: str) -> str:
    if rule in MATRICES_ONLY:
        return "–"  # no state, or whole numbers
    try:
        memory = make(rule, state_dtype=dtype)
    except ValueError:
        return "refused"
    return f"{measured(memory).state:g}"


FORMS = VARIANTS | {
    "benna-fusi": "`beakers=4`",
    "mesu chain": f"{VARIANTS['mesu chain']}, `beakers=3`",
}


def page() -> str:
    # Forms of a class that take the same are one row.
    found: dict[tuple[str, ...], list[str]] = {}
    for rule in RULES:
        if rule in {*REHEARSING, *DISTILLING}:
            continue  # samples, and nothing for a weight
        memory = make(rule)
        taken = [f"{value:g}" for value in astuple(measured(memory))[:3]]
        states = [taken[0], state_in(rule, "float32"), state_in(rule, "bfloat16")]
        found.setdefault((f"`{type(memory).__name__}`", *states, *taken[1:]), []).append(rule)
    kinds = [key[0] for key in found]
    head = ["", "state", "in float32", "in bfloat16", "snapshots", "noise"]
    lines = [head, ["---"] * len(head)]
    for (kind, *numbers), rules in found.items():
        forms = "" if kinds.count(kind) == 1 and rules[0] not in {"benna-fusi"} else _forms(rules)
        lines.append([kind + forms, *numbers])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{INTRODUCTION}\n{table}\n\n{NOTES}"


def _forms(rules: list[str]) -> str:
    return ", " + " or ".join(FORMS[rule] for rule in rules)


if __name__ == "__main__":
    PAGE.write_text(page())
