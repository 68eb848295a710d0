"""Refuses what processes that share shards would wait for each other in: heads that samples choose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from cl_callbacks.data.multi_head import MultiHead


@contextmanager
def refusing_heads_of_samples(rule: str, module: nn.Module) -> Iterator[None]:
    """Raises at the end if each sample of a batch has chosen its head, as drawn ones do of any tasks.

    Under FSDP2 a head is put together by all processes, and the samples of one may need another head than
    those of the next.

    Args:
        rule: its name, for the error.
        module: that runs within.
    """
    chosen = False

    def note(heads: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal chosen
        task = kwargs["task"] if "task" in kwargs else args[1]
        chosen |= not isinstance(task, int | str)

    with ExitStack() as stack:
        for part in module.modules():
            if isinstance(part, MultiHead) and len(part) > 1:
                stack.callback(part.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield
    if chosen:
        raise MisconfigurationException(
            f"{rule} draws samples of several tasks, of which each chooses its head, and under FSDP2 all "
            f"processes have to run the same heads: use strategy='ddp_find_unused_parameters_true', one head "
            f"for all tasks, or batches with the task as one number."
        )
