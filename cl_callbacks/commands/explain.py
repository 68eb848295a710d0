"""``cl-callbacks explain``: says in words what a configuration would do, without doing it."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint

from cl_callbacks.boundaries.epoch_boundaries import EpochBoundaries
from cl_callbacks.boundaries.fit_boundaries import FitBoundaries
from cl_callbacks.boundaries.task_boundaries import TaskBoundaries, refuse_two_boundaries
from cl_callbacks.commands.docstrings import first_sentence
from cl_callbacks.data.task_sequence import TaskSequence
from cl_callbacks.guards.few import shown
from cl_callbacks.rules.compatibility import refuse_two_owners
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.training.same_state_key import refuse_same_state_key

_PACKAGE = __name__.partition(".")[0]
_TOLD_IN_WORDS = {
    *("callbacks", "logger", "enable_checkpointing", "fast_dev_run", "max_epochs", "max_steps", "max_time"),
    *("limit_train_batches", "check_val_every_n_epoch", "reload_dataloaders_every_n_epochs"),
}


def explain(config: Mapping[str, Any]) -> None:
    """Prints what a ``fit`` with a parsed configuration would do.

    Raises:
        ValueError: callbacks of this package refuse their arguments.
        MisconfigurationException: they refuse each other.
    """
    from rich.console import Console, Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    _refuse_what_callbacks_refuse(_entries(config["trainer"]["callbacks"]))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for topic, lines in explanation(config):
        # What is indented stays so where it is wrapped.
        table.add_row(
            topic, Group(*(Padding(Text(s.strip()), (0, 0, 0, len(s) - len(s.lstrip()))) for s in lines))
        )
    Console(highlight=False).print(table)


def explanation(config: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Topics, and lines on each, of a parsed configuration of ``fit``."""
    trainer = config["trainer"]
    callbacks = [(_kind(entry), entry) for entry in _entries(trainer["callbacks"])]
    boundaries = [entry for kind, entry in callbacks if issubclass(kind, TaskBoundaries)]
    epochs = _epochs_per_task(config["data"])
    if epochs and not boundaries:  # the sequence adds them
        boundaries = [{"class_path": "cl_callbacks.EpochBoundaries", "init_args": {"every_n_epochs": epochs}}]
    rules = [entry for kind, entry in callbacks if issubclass(kind, SynapticCallback)]
    saving = [entry for kind, entry in callbacks if issubclass(kind, Checkpoint)]
    others = [entry for _, entry in callbacks if not any(entry is e for e in (*boundaries, *rules, *saving))]
    yield "model", _described(config["model"])
    yield "data", _described(config["data"])
    for key in ("optimizer", "lr_scheduler"):
        if config.get(key):
            yield key.replace("_", " "), _described(config[key])
    yield "length", _length(trainer, epochs)
    yield "tasks", _tasks(boundaries, trainer["max_epochs"])
    yield "rules", _all_described(rules) or ["none: nothing protects what was learned"]
    if others:
        yield "callbacks", _all_described(others)
    yield "loggers", _loggers(trainer["logger"])
    yield "checkpoints", _checkpoints(saving, trainer["enable_checkpointing"], config.get("ckpt_path"))
    if more := _given(trainer, Trainer, _TOLD_IN_WORDS):
        yield "Trainer", [f"Trainer({more})"]
    seed = config["seed_everything"]
    yield "seed", ["drawn anew each time" if seed is True else "none" if seed is False else str(seed)]


def _epochs_per_task(data: Any) -> int | None:
    """What a sequence of this package says of a task's epochs; an argument of other data means nothing."""
    follows = data and issubclass(_kind(data), TaskSequence)
    return _arguments(data).get("epochs_per_task") if follows else None


def _length(trainer: Mapping[str, Any], epochs_per_task: int | None) -> list[str]:
    if trainer["fast_dev_run"]:
        return [f"a trial of {int(trainer['fast_dev_run'])} batches, without loggers and checkpoints"]
    limits = {"epochs": trainer["max_epochs"], "steps": trainer["max_steps"], "of time": trainer["max_time"]}
    given = [f"{limit} {unit}" for unit, limit in limits.items() if limit not in (None, -1)]
    default = "without end" if trainer["max_epochs"] == -1 else "1000 epochs, Lightning's default"
    if epochs_per_task and trainer["max_epochs"] in (None, -1):
        some = "one epoch" if epochs_per_task == 1 else f"{epochs_per_task} epochs"
        given = [f"{some} for each task of the data", *given]
    lines = [" or ".join(given) or default]
    if (batches := trainer["limit_train_batches"]) is not None:
        counted = isinstance(batches, int) or batches > 1  # a parser may have made 4.0 of 4
        some = f"at most {int(batches)}" if counted else f"{batches:.0%}"
        lines.append(f"{some} of the batches of an epoch")
    for what, key in (
        ("validation", "check_val_every_n_epoch"),
        ("the data's loaders are made anew", "reload_dataloaders_every_n_epochs"),
    ):
        if every := trainer[key]:
            lines.append(f"{what} after every {'epoch' if every == 1 else f'{every} epochs'}")
    return lines


def _tasks(boundaries: Sequence[Any], epochs: int | None) -> list[str]:
    if not boundaries:
        return [first_sentence(FitBoundaries)]
    lines = _described(boundaries[0])
    each = _arguments(boundaries[0]).get("every_n_epochs")
    if _kind(boundaries[0]) is EpochBoundaries and each and epochs and epochs > 0:
        lines.append(f"{epochs} epochs, {each} for each task: {-(-epochs // each)} tasks")
    return lines


def _loggers(given: Any) -> list[str]:
    if given is None or given is True:
        return ["Lightning's default: TensorBoard if it is installed, or a CSV file, in lightning_logs"]
    return _all_described(_entries(given)) or ["none: curves and figures go nowhere"]


def _checkpoints(saving: Sequence[Any], enabled: bool | None, resumed: Any) -> list[str]:
    lines = [f"training goes on from {resumed}"] if resumed else []
    if enabled is False:
        return [*lines, "none are written"]
    return [*lines, *(_all_described(saving) or ["Lightning's default: that of the latest epoch"])]


def _all_described(entries: Sequence[Any]) -> list[str]:
    return [line for entry in entries for line in _described(entry)]


def _described(entry: Any) -> list[str]:
    """The call that makes an object, and the first sentence of its class's docstring."""
    kind = _kind(entry)
    known = kind.__module__.partition(".")[0] in (_PACKAGE, "lightning", "torch")
    name = kind.__name__ if known else entry["class_path"]
    sentence = first_sentence(kind)
    return [f"{name}({_given(_arguments(entry), kind)})", *([f"  {sentence}"] if sentence else [])]


def _given(arguments: Mapping[str, Any], kind: type, but: Collection[str] = ()) -> str:
    """The arguments that are not defaults, as in a call."""
    known = inspect.signature(kind).parameters
    defaults = {name: known[name].default if name in known else None for name in arguments}
    given = {name: value for name, value in arguments.items() if value != defaults[name] and name not in but}
    return ", ".join(f"{name}={_value(value)}" for name, value in given.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping) and "class_path" in value:
        kind = _kind(value)
        return f"{kind.__name__}({_given(_arguments(value), kind)})"
    return shown(value)


def _entries(given: Any) -> list[Any]:
    return [] if not given else list(given) if isinstance(given, list | tuple) else [given]


def _kind(entry: Mapping[str, Any]) -> type:
    made: type = pkgutil.resolve_name(entry["class_path"])
    return made


def _arguments(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**(entry.get("init_args") or {}), **(entry.get("dict_kwargs") or {})}


def _refuse_what_callbacks_refuse(entries: Sequence[Any]) -> None:
    """Builds the callbacks of this package, which look at their arguments then, and at each other."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[Callback])
    own = [entry for entry in entries if _kind(entry).__module__.startswith(f"{_PACKAGE}.")]
    callbacks = parser.instantiate(parser.parse_object({"callbacks": own})).callbacks
    refuse_same_state_key(callbacks)
    refuse_two_boundaries(callbacks)
    refuse_two_owners([callback for callback in callbacks if isinstance(callback, SynapticCallback)], [])
