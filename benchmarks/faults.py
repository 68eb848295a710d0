"""Training that is killed or preempted and goes on, and batches that are not finite.

    python benchmarks/faults.py [--kills 20] [--signals 20] [--bad-batches 1000] [--json FILE]

Each round trains an MLP on permutations of scikit-learn's digits, four tasks in one fit, writes two
checkpoints in every epoch, is killed (SIGKILL) and resumes from the newest whole one, until weights,
optimizer and the state of every rule can be compared, bit for bit, with those of a run that nobody
disturbed. The rounds go through sets of rules that cover every public one, and "none", which says what
Lightning by itself does. Kills fall at a random moment, or while a checkpoint is being written. The
processes are forked from one that has imported everything and started no thread.

How Lightning writes a checkpoint: serialised in memory, through fsspec to a temporary file in ``TMPDIR``,
which is then moved to its name. Within one file system the move is a rename: a file is there whole or not
at all, and ``last.ckpt`` is the old one or the new one. From one file system to another the move is a copy,
and a kill leaves a part of a file, also under the name of a ``last.ckpt`` that was whole before. So every
second time a set writes to another file system than that of the temporary files, where there is one
(``--elsewhere``), and a checkpoint is whole if ``torch.load(weights_only=True)`` reads it.

With ``--signals`` a training is preempted: by SIGUSR1 in a SLURM job with auto-requeue, whose checkpoint
Lightning writes within the handler, at whatever line that is, and by SIGTERM, after which it raises an
exception and ``OnExceptionCheckpoint`` writes one. The signal comes at a random moment, or at a random line
of this package or of Lightning in a random batch or end of an epoch. The weights in the checkpoint must be
among those that the undisturbed run had between two steps, and the resumed run must end as that one does, bit
for bit. The network has no BatchNorm: its statistics would count a batch twice that is preempted after its
forward, since Lightning runs that batch again.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from bad_batches import KINDS, RULES, WAYS, inject, possible
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from cl_callbacks import (
    BGD,
    EWC,
    FIRE,
    MAS,
    MESU,
    UPGD,
    BennaFusi,
    Cascade,
    ContinualBackprop,
    DarkExperienceReplay,
    Distillation,
    DriftBoundaries,
    EpochBoundaries,
    ExperienceReplay,
    KFACLaplace,
    L2Init,
    MetaplasticGate,
    ReDo,
    RWalk,
    SelfNormalizedResets,
    ShrinkAndPerturb,
    StreamingConsolidation,
    SynapticCallback,
    SynapticIntelligence,
    TaskBoundaries,
    WeightMerging,
)
from cl_callbacks.drift import CUSUM

TASKS, EPOCHS, WIDTH = 4, 2, 32
SETS: dict[str, Callable[[], list[SynapticCallback]]] = {
    "none": lambda: [],
    "EWC, SI, RWalk": lambda: [EWC(50.0, estimator="sampled"), SynapticIntelligence(1.0), RWalk(1.0)],
    "MESU of 2 samples": lambda: [MESU(1e4, draws=2)],
    "MAS, KFAC, streaming, Benna–Fusi, gate": lambda: [
        MAS(0.01),
        KFACLaplace(1.0),
        StreamingConsolidation(0.05),
        BennaFusi(4, 0.01),
        MetaplasticGate(),
    ],
    "cascade": lambda: [Cascade()],
    "BGD": lambda: [BGD()],
}
MORE_SETS: dict[str, Callable[[], list[SynapticCallback]]] = {
    "merging, EWC, SI": lambda: [SynapticIntelligence(1.0), EWC(50.0), WeightMerging(0.2)],
    "replay, distillation": lambda: [ExperienceReplay(100, batch_size=32), Distillation(1.0)],
    "dark replay, MESU": lambda: [DarkExperienceReplay(100, batch_size=32), MESU(1e4)],
    "UPGD": lambda: [UPGD()],
    "EWC, initial values, noise, new units": lambda: [
        EWC(),
        L2Init(),
        ShrinkAndPerturb(0.99, 0.01, every_n_steps=10),
        ContinualBackprop(0.01),
        ReDo(0.1, every_n_steps=20),
        SelfNormalizedResets(),
    ],
    "FIRE, shrinking before a task": lambda: [FIRE(), ShrinkAndPerturb()],
}
BOUNDARIES: dict[str, Callable[[], TaskBoundaries]] = {
    "epochs": lambda: EpochBoundaries(EPOCHS),
    "drift": lambda: DriftBoundaries(CUSUM(5.0), min_task_batches=20, independent=True),
}


class Net(LightningModule):
    def __init__(self, ballast: int, statistics: bool = True) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(WIDTH) if statistics else nn.Identity()
        self.net = nn.Sequential(nn.Linear(64, WIDTH), norm, nn.ReLU(), nn.Linear(WIDTH, 10))
        self.register_buffer("ballast", torch.rand(ballast))  # for checkpoints that take a while to write

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(PermutedDigits(), 64, sampler=OfTheEpoch(self.trainer))


class PermutedDigits(Dataset):
    """Of which an index names task and image."""

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return X[index[1], ORDERS[index[0]]], Y[index[1]]


class OfTheEpoch(Sampler):
    """Reads the epoch when it begins, and begins with the first batch that is not completed.

    A checkpoint keeps no random numbers, so the order must follow from the epoch; and Lightning calls
    ``iter`` on a loader once in the first epoch of a fit and twice in later ones, each of which moves a
    generator that the loader was given.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.trainer.current_epoch
        first = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        order = torch.randperm(len(X), generator=torch.Generator().manual_seed(1000 + epoch))
        yield from ((epoch // EPOCHS, i) for i in order[64 * first :].tolist())

    def __len__(self) -> int:
        return len(X)


pixels, labels = load_digits(return_X_y=True)
X, Y = torch.tensor(pixels / 16.0, dtype=torch.float), torch.tensor(labels)
ORDERS = [torch.randperm(64, generator=torch.Generator().manual_seed(task)) for task in range(TASKS)]


def train(
    rules: str,
    folder: Path,
    ballast: int,
    resumed: Path | None,
    boundaries: str = "epochs",
    statistics: bool = True,
    others: Sequence[Callback] = (),
    plugins: Sequence[Any] = (),
) -> None:
    """To the end, whose state is written to ``final.pt``."""
    torch.manual_seed(0)
    model, callbacks = Net(ballast, statistics), (SETS | MORE_SETS)[rules]()
    saving = ModelCheckpoint(
        folder,
        "{epoch}",
        monitor="step",
        mode="max",
        save_top_k=2,
        save_last=True,
        save_on_train_epoch_end=True,
    )
    first, last = others[:1], others[1:]
    trainer = Trainer(
        max_epochs=TASKS * EPOCHS,
        callbacks=[*first, *callbacks, BOUNDARIES[boundaries](), *last, saving],
        plugins=list(plugins),
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, ckpt_path=resumed, weights_only=True)
    found = {
        "weights": model.net.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "rules": [rule.state_dict() for rule in callbacks],
    }
    torch.save(found, folder / "part.pt")
    os.replace(folder / "part.pt", folder / "final.pt")


def forked(folder: Path, temporary: Path, *arguments: Any, work: Callable[..., None] = train) -> int:
    """A process of its own that trains; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        tempfile.tempdir = str(temporary)
        work(*arguments)
        code = 0
    except BaseException:
        logging.exception("training broke off")
    finally:
        os._exit(code)


def kill_at_random(
    child: int, folder: Path, temporary: Path, seconds: float, size: int, rng: random.Random
) -> str:
    time.sleep(rng.uniform(0.05, seconds))
    os.kill(child, signal.SIGKILL)
    return "at random"


def kill_in_a_write(
    child: int, folder: Path, temporary: Path, seconds: float, size: int, rng: random.Random
) -> str:
    """As soon as one more file, temporary or final, is seen to grow."""
    target = rng.choice(["temporary", "named", "last.ckpt"])
    until = time.perf_counter() + rng.uniform(0.05, seconds)
    while time.perf_counter() < until and not os.waitid(
        os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
    ):
        time.sleep(0.001)
    place, pattern = {
        "temporary": (temporary, "tmp*"),
        "named": (folder, "epoch*.ckpt"),
        "last.ckpt": (folder, "last*.ckpt"),
    }[target]
    whole = (
        {path.name for path in place.glob(pattern) if path.stat().st_size >= size}
        if target == "named"
        else set()
    )
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        for entry in os.scandir(place):
            if Path(entry.name).match(pattern) and entry.name not in whole:
                try:
                    found = entry.stat().st_size
                except FileNotFoundError:  # renamed meanwhile
                    continue
                if found < size:
                    os.kill(child, signal.SIGKILL)
                    return f"in a write of {target}"
    os.kill(child, signal.SIGKILL)
    return "at random"


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, and the names of those that are there in part."""
    parts = []
    for path in sorted(folder.glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns, reverse=True):
        try:
            torch.load(path, weights_only=True, mmap=False)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):  # as torch reads a part of a file
            parts.append(path.name)
        else:
            return path, parts
    return None, parts


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and a.keys() == b.keys():
        return list(itertools.chain(*(differences(a[key], b[key], f"{path}/{key}") for key in a)))
    if isinstance(a, list | tuple) and len(a) == len(b):
        return list(
            itertools.chain(
                *(differences(x, y, f"{path}/{i}") for i, (x, y) in enumerate(zip(a, b, strict=True)))
            )
        )
    same = torch.equal(a, b) if isinstance(a, Tensor) else a == b
    return [] if same else [path]


def fresh(parent: Path, name: str) -> Path:
    shutil.rmtree(parent / name, ignore_errors=True)
    (parent / name).mkdir(parents=True)
    return parent / name


def finish(child: int, folder: Path) -> dict[str, Any]:
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError((folder / "log").read_text()[-3000:])
    return torch.load(folder / "final.pt", weights_only=True)


def rounds(args: argparse.Namespace, here: Path, elsewhere: Path | None) -> list[dict[str, Any]]:
    rng, found, kills = random.Random(args.seed), [], 0
    expected: dict[str, tuple[dict[str, Any], float, int]] = {}
    for number in itertools.count():
        if kills >= args.kills:
            return found
        rules = list(SETS)[number % len(SETS)]
        temporary = fresh(here, "temporary")
        if rules not in expected:
            folder, start = fresh(here, "undisturbed"), time.perf_counter()
            final = finish(forked(folder, temporary, rules, folder, args.ballast, None), folder)
            size = min(path.stat().st_size for path in folder.glob("*.ckpt"))
            expected[rules] = (final, time.perf_counter() - start, size)
        final, seconds, size = expected[rules]
        away = elsewhere is not None and number // len(SETS) % 2 == 0
        folder = fresh(elsewhere if away and elsewhere is not None else here, "killed")
        resumed, row = None, {"rules": rules, "other file system": away, "kills": [], "parts": [], "from": []}
        for _ in range(min(args.kills - kills, 1 + number % 3)):
            child = forked(folder, temporary, rules, folder, args.ballast, resumed)
            kill = kill_in_a_write if rng.random() < 0.6 else kill_at_random
            row["kills"].append(kill(child, folder, temporary, seconds, size, rng))
            os.waitpid(child, 0)
            kills += 1
            resumed, parts = newest_whole(folder)
            row["parts"] += [name for name in parts if name not in row["parts"]]
            row["from"].append(resumed.name if resumed else "the beginning")
        again = finish(forked(folder, temporary, rules, folder, args.ballast, resumed), folder)
        row["different"] = differences(final, again)
        found.append(row)
        verdict = "bit-identical" if not row["different"] else f"DIFFERENT in {row['different'][:3]}"
        place = "another file system" if away else "the same"
        print(f"{rules:40} {place:20} {verdict}: killed {', '.join(row['kills'])}; ", end="")
        print(
            f"resumed from {', '.join(row['from'])}; in part: {', '.join(row['parts']) or 'none'}", flush=True
        )
    return found


class AllWeights(Callback):
    """Writes down the weights between any two steps, the last callback in the list."""

    def __init__(self, file: Path) -> None:
        self.file, self.seen = file, set[str]()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.seen.add(fingerprint(pl_module.state_dict()))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *arguments: Any) -> None:
        self.seen.add(fingerprint(pl_module.state_dict()))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.seen.add(fingerprint(pl_module.state_dict()))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.file.write_text(json.dumps(sorted(self.seen)))


class AtALine(Callback):
    """Sends this process a signal at a line of a batch or of the end of an epoch, the first in the list."""

    def __init__(self, number: signal.Signals, step: int, line: int, in_epoch_end: bool) -> None:
        self.number, self.step, self.line, self.in_epoch_end = number, step, line, in_epoch_end

    def on_train_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        if not self.in_epoch_end and trainer.global_step >= self.step:
            sys.settrace(self.trace)

    def on_train_epoch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if self.in_epoch_end and trainer.global_step >= self.step:
            sys.settrace(self.trace)

    def trace(self, frame: Any, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if "cl_callbacks" not in name and f"lightning{os.sep}pytorch" not in name:
            return None
        if event == "line":
            self.line -= 1
            if self.line == 0:
                sys.settrace(None)
                os.kill(os.getpid(), self.number)
        return self.trace


def fingerprint(state: dict[str, Tensor]) -> str:
    weights = torch.cat([value.flatten() for name, value in state.items() if name != "ballast"])
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()


def preempted(
    slurm: bool, at: tuple[int, int, bool] | None, rules: str, folder: Path, boundaries: str, resumed: Any
) -> None:
    """A training in a process of its own, in a SLURM job or not, to which a signal comes at a line."""
    plugins: list[Any] = []
    if slurm:
        job = {"JOB_ID": 1, "NTASKS": 1, "JOB_NAME": "x", "LOCALID": 0, "NODEID": 0, "PROCID": 0}
        os.environ.update({f"SLURM_{name}": str(value) for name, value in job.items()})
        os.environ["SLURM_JOB_NODELIST"] = "localhost"
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
        (folder / "scontrol").write_text("#!/bin/sh\nkill -9 $PPID\n")  # as the job is ended and begun anew
        (folder / "scontrol").chmod(0o755)
        plugins = [SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1)]
    number = signal.SIGUSR1 if slurm else signal.SIGTERM
    first: Callback = AtALine(number, *at) if at else Callback()
    others = [first, OnExceptionCheckpoint(folder)]
    train(rules, folder, 1000, resumed, boundaries, False, others, plugins)


def signals(total: int, seed: int, here: Path) -> list[dict[str, Any]]:
    rng, found = random.Random(seed), []
    expected: dict[tuple[str, str], tuple[dict[str, Any], set[str], float]] = {}
    cases = [(rules, boundaries) for boundaries in BOUNDARIES for rules in SETS | MORE_SETS]
    temporary = fresh(here, "temporary")
    while len(found) < total:
        case = rules, boundaries = cases[len(found) % len(cases)]
        if case not in expected:
            folder, start = fresh(here, "undisturbed"), time.perf_counter()
            others = [Callback(), AllWeights(folder / "weights.json")]
            child = forked(folder, temporary, rules, folder, 1000, None, boundaries, False, others)
            final = finish(child, folder)
            seconds = time.perf_counter() - start
            expected[case] = final, set(json.loads((folder / "weights.json").read_text())), seconds
        final, known, seconds = expected[case]
        slurm, at = rng.random() < 0.7, None
        if rng.random() < 0.7:
            ends = rng.random() < 0.3
            at = rng.randrange(1, TASKS * EPOCHS * 29), rng.randrange(1, 4000 if ends else 1500), ends
        folder = fresh(here, "preempted")
        child = forked(folder, temporary, slurm, at, rules, folder, boundaries, None, work=preempted)
        if at is None:
            time.sleep(rng.uniform(0.3, max(0.4, seconds)))
            os.kill(child, signal.SIGUSR1 if slurm else signal.SIGTERM)
        os.waitpid(child, 0)
        saved = next(iter([*folder.glob("hpc_ckpt_*.ckpt"), *folder.glob("on_exception.ckpt")]), None)
        where = (
            "a random moment" if at is None else f"line {at[1]} of {'an epoch end' if at[2] else 'a batch'}"
        )
        row = {"rules": rules, "boundaries": boundaries, "signal": "SIGUSR1" if slurm else "SIGTERM"}
        row |= {"at": where, "saved": saved is not None, "unknown weights": False, "different": []}
        if saved is not None:
            state = torch.load(saved, weights_only=True)["state_dict"]
            row["unknown weights"] = fingerprint(state) not in known
        if not (folder / "final.pt").exists():  # a signal that came after the training leaves it as it is
            resumed = saved or newest_whole(folder)[0]
            again = forked(folder, temporary, rules, folder, 1000, resumed, boundaries, False)
            row["different"] = differences(final, finish(again, folder))
        found.append(row)
        verdict = "bit-identical" if not row["different"] else f"DIFFERENT in {row['different'][:3]}"
        weights = "none written" if saved is None else "OF NO STEP" if row["unknown weights"] else "present"
        print(
            f"{rules:40} {boundaries:8} {row['signal']} at {where}: {verdict}; weights {weights}", flush=True
        )
    return found


def bad_batches(total: int) -> list[dict[str, Any]]:
    cases = [(w, k, r) for r in RULES for w in WAYS for k in KINDS if possible(w, k)]
    found = []
    for i, (way, kind, rule) in enumerate(cases):
        share = total * (i + 1) // len(cases) - total * i // len(cases)
        if share:
            met, hurt = inject(rule, way, kind, share, seed=i)
            found.append({"rule": rule, "way": way, "kind": kind, "bad": met, "corrupted": hurt})
    for way in WAYS:
        rows = [row for row in found if row["way"] == way]
        hurt = sorted({row["rule"] for row in rows if row["corrupted"]})
        print(f"{way:14} {sum(row['bad'] for row in rows):5} bad batches, states corrupted: {hurt or 'none'}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signals", type=int, default=20)
    parser.add_argument("--bad-batches", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ballast", type=int, default=4_000_000, help="floats that each checkpoint carries")
    parser.add_argument(
        "--elsewhere", type=Path, default=Path("/dev/shm"), help="a folder on another file system"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as here:
        other = args.elsewhere.is_dir() and os.stat(args.elsewhere).st_dev != os.stat(here).st_dev
        with tempfile.TemporaryDirectory(dir=args.elsewhere if other else here) as elsewhere:
            found["kills"] = rounds(args, Path(here), Path(elsewhere) if other else None)
            found["signals"] = signals(args.signals, args.seed, Path(here))
    found["bad batches"] = bad_batches(args.bad_batches)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False))
    kills = [kill for row in found["kills"] for kill in row["kills"]]
    print(
        f"{len(kills)} kills, {sum(k != 'at random' for k in kills)} of them in a write, "
        f"{sum(len(row['parts']) for row in found['kills'])} files in part; "
        f"{sum(bool(row['different']) for row in found['kills'])} of {len(found['kills'])} runs differ; "
        f"{len(found['signals'])} signals, {sum(row['saved'] for row in found['signals'])} checkpoints, "
        f"{sum(row['unknown weights'] for row in found['signals'])} of them of drawn or old weights; "
        f"{sum(bool(row['different']) for row in found['signals'])} runs differ; "
        f"{sum(row['bad'] for row in found['bad batches'])} bad batches, "
        f"{sum(bool(row['corrupted']) for row in found['bad batches'])} states corrupted"
    )


if __name__ == "__main__":
    main()
