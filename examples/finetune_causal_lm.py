"""A small language model that reads one kind of text after the other, with and without a memory.

    python examples/finetune_causal_lm.py --data-dir DIR --model scratch  # without a callback, then with EWC
    python examples/finetune_causal_lm.py --data-dir DIR --model distilgpt2
    python examples/finetune_causal_lm.py --data-dir DIR --model scratch --methods er lwf running er+ewc
    python examples/finetune_causal_lm.py --data-dir DIR --model scratch --domains yelp5 dbpedia14 ag_news
    python examples/finetune_causal_lm.py --model gpt2 --domains dair-ai/emotion fancyzhx/ag_news

Each domain is a data set with a column ``text``: a folder of DIR with train.parquet and test.parquet, or,
without DIR, the name of a set on the hub. The default domains are two of the five of Zhang et al. 2015 (arXiv
1509.01626): amazon5 (reviews; the measurements are of a subset of 6,875) and dbpedia14 (first sentences of
an encyclopedia; fancyzhx/dbpedia_14 on the hub, whose ``title`` and ``content`` make the text). The others
are ag_news (fancyzhx/ag_news), yelp5 (Yelp/yelp_review_full) and yahoo10 (questions and answers).

The model is any causal one that transformers can load, or with ``--model scratch`` a small GPT-2 that knows
nothing yet and has a tokeniser trained on the training texts: the first domain is then what it is pretrained
on. One Trainer trains it in one ``fit``; all that differs between the methods is the list of callbacks. The
score is the perplexity on the test texts: lower is better. Needs ``pip install
'.[transformers]'``. Writes a W&B run for each method, offline unless you are logged in.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import warnings
from functools import partial
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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cl_callbacks import (
    EWC,
    L2SP,
    MAS,
    DarkExperienceReplay,
    Distillation,
    ExperienceReplay,
    RetentionGuard,
    RWalk,
    SequentialFineTuner,
    SynapticIntelligence,
    TaskEvaluation,
    TextTasks,
    WeightMerging,
)
from cl_callbacks.data.data_source import load_splits

METHODS: Methods = {
    "none": None,
    # A text is one sample: its exact Fisher information would sum over all texts that could be.
    "ewc": (partial(EWC, estimator="sampled", samples=100), "strength"),
    "si": (SynapticIntelligence, "strength"),
    "l2sp": (L2SP, "strength"),
    "mas": (partial(MAS, samples=100), "strength"),
    "rwalk": (RWalk, "strength"),
    "sfa": (partial(WeightMerging, share=0.25, every_n_steps=20), "share"),
    "wise": (partial(WeightMerging, share=0.5), "share"),
    "running": (partial(WeightMerging, share="running"), "share"),
    "merged": (partial(WeightMerging, weighted_by="ewc"), "share"),  # beside ewc: merged+ewc
    "er": (partial(ExperienceReplay, 240), "weight"),  # a tenth of the texts of a domain
    "der": (partial(DarkExperienceReplay, 240), "alpha"),
    "lwf": (Distillation, "strength"),
    "guard": (partial(RetentionGuard, "val_perplexity", "min", tolerance=20.0), "tolerance"),
}


def sources_of(args: argparse.Namespace) -> list[str]:
    """What TextTasks reads; a single file is divided, four fifths to train and one to look at."""
    file = "train.parquet" if args.split == "validation" else ""
    return [
        domain if args.data_dir is None else str(args.data_dir / domain / file) for domain in args.domains
    ]


def from_scratch(args: argparse.Namespace) -> str:
    """Saves a GPT-2 that knows nothing, with a tokeniser of these texts; returns the folder."""
    folder = args.out / f"scratch-seed{args.seed}"
    tokeniser = Tokenizer(models.BPE())
    tokeniser.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokeniser.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=args.vocabulary,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [load_splits(source, seed=args.seed)["train"]["text"] for source in sources_of(args)]
    tokeniser.train_from_iterator((text for domain in texts for text in domain), trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokeniser,
        eos_token=end,
        pad_token=end,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    ends = {f"{which}_token_id": tokeniser.token_to_id(end) for which in ("bos", "eos", "pad")}
    config = transformers.GPT2Config(
        vocab_size=tokeniser.get_vocab_size(),
        n_positions=args.max_length,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=4,
        initializer_range=0.06,  # so narrow a network learns faster from wider weights than GPT-2's
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **ends,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def run(method: str, args: argparse.Namespace) -> dict[str, Any]:
    seed_everything(args.seed, verbose=False)
    name = from_scratch(args) if args.model == "scratch" else args.model
    data = TextTasks(
        sources_of(args),
        tokenizer=name,
        kind="causal_lm",
        scenario="domain",
        max_length=args.max_length,
        epochs_per_task=1,
        batch_size=args.batch_size,
        eval_batch_size=32,
        seed=args.seed,
    )
    model = SequentialFineTuner(name, kind="causal_lm", lr=args.lr, warmup_steps=args.warmup)
    rules = callbacks_of(METHODS, method, args.strength)
    strength = strength_of(METHODS, method, rules)
    evaluation = TaskEvaluation("val_perplexity", mode="min", names=args.domains, untrained=False)
    logger = WandbLogger(
        name=f"{method}-seed{args.seed}",
        project="cl_callbacks-causal-lm",
        save_dir=args.out,
        offline=not logged_in_to_wandb(),
        config=vars(args) | {"method": method, "strength": strength},
    )
    trainer = Trainer(
        limit_train_batches=args.steps,
        limit_val_batches=args.eval_batches,
        num_sanity_val_steps=0,
        callbacks=[*rules, evaluation],
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
    wandb.finish()
    matrix = evaluation.record.table()[1:]  # row 0 would be of the network before any training
    return {
        "strength": strength,
        "matrix": matrix,
        "forgotten": matrix[-1][0] - matrix[0][0],
        "domains": args.domains,
        "seconds": seconds,
    }


def logged_in_to_wandb() -> bool:
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    known = file.is_file() and any("wandb" in host for host in netrc(str(file)).hosts)
    return known or bool(os.environ.get("WANDB_API_KEY"))


def show_summary(console: Console, results: dict[str, dict[str, Any]]) -> None:
    domains = next(iter(results.values()))["domains"]
    table = Table(title="perplexity on each domain after the last")
    for column in ("method", "strength", *domains, f"{domains[0]}: worse by", "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method, result in results.items():
        table.add_row(
            method,
            f"{result['strength']:g}",
            *(f"{perplexity:.1f}" for perplexity in result["matrix"][-1]),
            f"{result['forgotten']:.1f}",
            f"{result['seconds']:.0f}",
        )
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", type=chosen_from(METHODS), default=["none", "ewc"])
    parser.add_argument("--data-dir", type=Path, help="folder with a folder for each domain")
    parser.add_argument("--domains", nargs="+", default=["amazon5", "dbpedia14"])
    parser.add_argument("--model", required=True, help="a name on the hub, a folder, or `scratch`")
    parser.add_argument("--layers", type=int, default=2, help="of the model from scratch")
    parser.add_argument("--width", type=int, default=128, help="of the model from scratch")
    parser.add_argument("--vocabulary", type=int, default=2000, help="of the model from scratch")
    parser.add_argument("--max-length", type=int, default=64, help="of a text in tokens")
    parser.add_argument("--steps", type=int, default=300, help="in each domain")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3, help="of AdamW")
    parser.add_argument("--warmup", type=int, default=20, help="steps, in each domain")
    parser.add_argument("--eval-batches", type=int, default=8, help="of 32 texts, of each domain")
    parser.add_argument(
        "--split",
        choices=("validation", "test"),
        default="test",
        help="that is evaluated; for validation a fifth of the training texts is held out",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strength", type=float, help="of the methods; default: that of each rule")
    parser.add_argument("--json", type=Path, help="write perplexities to this file")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of logs and models")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    if len(args.domains) < 2:
        parser.error("a sequence to forget in has at least 2 domains")
    if args.split == "validation" and args.data_dir is None:
        parser.error("--split validation holds out texts of DIR/DOMAIN/train.parquet: give --data-dir DIR")
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
