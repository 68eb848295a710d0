"""Builds the pretend device, once for each version of it and of torch."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "native"


def compiler() -> str | None:
    """The C++ compiler of this machine, if there is one."""
    return shutil.which("c++") or shutil.which("g++")


def library() -> Path:
    """Builds the library if it has not been built yet; half a minute on a slow machine.

    Processes that ask at the same time wait for the first one.
    """
    files = sorted(SOURCES.iterdir())
    content = b"".join(f.read_bytes() for f in files) + torch.__version__.encode()
    folder = Path(tempfile.gettempdir()) / f"pretend-device-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    built = folder / f"{hashlib.sha256(content).hexdigest()[:16]}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            _compile(built)
    return built


def _compile(target: Path) -> None:
    found = compiler()
    if found is None:
        raise RuntimeError("the pretend device needs a C++ compiler (c++ or g++)")
    root = Path(torch.__file__).parent
    part = target.with_suffix(".part")
    includes = [f"-I{root / 'include' / folder}" for folder in ("", "torch/csrc/api/include")]
    libraries = [f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    options = ["-O1", "-std=c++20", "-fPIC", "-shared", "-w"]
    command = [
        found,
        *options,
        *includes,
        str(SOURCES / "pretend_device.cpp"),
        "-o",
        str(part),
        *libraries,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the pretend device does not compile:\n{done.stderr[-4000:]}")
    part.replace(target)
