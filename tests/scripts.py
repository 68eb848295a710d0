"""Scripts as a user runs them, but in this process: a process takes most of their time to begin."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import runpy
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import datasets
import pytest
import torch
import transformers
import wandb
from matplotlib import pyplot as plt

import cl_callbacks
from tests.processes import forkserver

LOGGERS = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")


def run_script(script: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a process of its own would have said; an exception is raised here."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    if wandb.run is not None:  # of another test; one whose service was torn down cannot be finished any more
        wandb.finish()
    wandb.teardown()  # its service takes relative paths from the folder that it was started in
    threads, levels = torch.get_num_threads(), [logging.getLogger(name).level for name in LOGGERS]
    with (
        pytest.MonkeyPatch.context() as patch,
        mock.patch.dict(os.environ, logged_out(folder), clear=True),
        warnings.catch_warnings(),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(script), *arguments])
        patch.setattr(sys, "path", [str(script.parent), *sys.path])
        # Real processes, but such as begin at once.
        patch.setattr(multiprocessing, "get_context", lambda kind: forkserver())
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            wandb.teardown()
            plt.close("all")
            torch.set_num_threads(threads)
            for name, level in zip(LOGGERS, levels, strict=True):
                logging.getLogger(name).setLevel(level)
            datasets.enable_progress_bars()
            transformers.utils.logging.enable_progress_bar()
    return subprocess.CompletedProcess([str(script), *arguments], code, out.getvalue(), err.getvalue())


def logged_out(folder: Path) -> dict[str, str]:
    """The environment, in which nobody is logged in, whatever the machine that runs the tests."""
    return {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"NETRC": str(folder / "no")}


def installed() -> bool:
    """Whether the package is that of a wheel, and not of this clone."""
    return Path(cl_callbacks.__file__).parents[1] != Path(__file__).parents[1]
