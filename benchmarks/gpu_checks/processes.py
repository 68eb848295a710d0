"""Several processes: as many as there are GPUs, or two on one GPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from gpu_checks.check import Skip
from gpu_checks.place import Place
from gpu_checks.together import EPOCHS, Outcome, data, module, settings_on
from gpu_checks.training import distance
from gpu_checks.waits import allowed

FEW = ("none", "EWC", "MESU")
SECONDS = {"ddp": 80, "fsdp2": 50}


def ddp(place: Place) -> str:
    """DDP: all processes have the same weights and state, those of one process, and rules add no waits.

    Over NCCL with as many GPUs as there are, or with two processes on one GPU, over gloo.
    """
    return train_together(place, "ddp")


def fsdp2(place: Place) -> str:
    """FSDP2 (ModelParallelStrategy): weights and state are those of one process on the CPU, to 1e-8."""
    return train_together(place, "fsdp2")


def train_together(place: Place, kind: str) -> str:
    if place.device == "pretend" and kind == "fsdp2":
        raise Skip("its processes have no collectives for shards")
    gpus = torch.cuda.device_count() if place.device == "cuda" else 0
    processes, backend = max(2, gpus), "nccl" if gpus > 1 else "gloo"
    names = [name for name in settings_on(kind, place.device) if name in FEW or not place.quick]
    with tempfile.TemporaryDirectory() as folder:
        said = run(place.device, kind, names, processes, backend, Path(folder))
        if "error" in said["none"]:
            raise Skip(f"{backend} with {processes} processes fails without a rule: {said['none']['error']}")
        wrong = [found for name in names if (found := fault(name, said[name], said["none"]["waits"]))]
        largest = 0.0
        for name, setting in settings_on(kind, place.device).items():
            if name in names and setting.as_one and "error" not in said[name]:
                apart = distance(torch.load(Path(folder) / f"{name}.pt"), alone(place, kind, name, processes))
                largest = max(largest, apart)
                if apart > (1e-5 if "KFAC" in name else 1e-8):
                    wrong.append(f"{name}: differs from one process by {apart:.1e}")
    assert not wrong, f"{backend}, {processes} processes: " + "; ".join(wrong)
    return f"{backend}, {processes} processes, {len(names)} settings, largest difference {largest:.1e}"


def fault(name: str, row: dict[str, Any], waits_without: str | None) -> str | None:
    if "error" in row:
        return f"{name}: {row['error']}"
    if row["differ"]:
        return f"{name}: the processes differ in {row['differ']}"
    watching = "Boundaries" in name  # they read losses, and labels of batches
    if waits_without is None or watching:
        return None
    if per_step(row["waits"]) > per_step(waits_without) + allowed(name):
        return f"{name}: {row['waits']} waits a step, without a rule {waits_without}"
    return None


def per_step(waits: str) -> float:
    return float(waits.split()[0])


def alone(place: Place, kind: str, name: str, processes: int) -> dict[str, torch.Tensor]:
    """What one process on the CPU learns from batches that are as large as those of all together."""
    setting = settings_on(kind, place.device)[name]
    callbacks = setting.make()
    kept = Outcome(callbacks)
    trainer = place.on_cpu.trainer(*callbacks, kept, max_epochs=EPOCHS)
    trainer.fit(module(setting), data(setting, processes, dealt=False))
    return kept.found


def run(
    device: str, kind: str, names: list[str], processes: int, backend: str, folder: Path
) -> dict[str, dict[str, Any]]:
    """Starts the processes, and returns what the first says of each setting, or why there is nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gpu_checks.together", kind, "--device", device, "--backend", backend]
    command += ["--processes", str(processes), "--folder", str(folder), "--seconds", str(SECONDS[kind])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "NODE_RANK": "0",
    }
    files = [folder / f"{rank}.txt" for rank in range(processes)]
    started = []
    for rank, file in enumerate(files):
        place = {"LOCAL_RANK": str(rank), "RANK": str(rank)}
        with file.open("w") as out:
            options: dict[str, Any] = {"env": environment | place, "stdout": out, "stderr": out}
            started.append(subprocess.Popen([*command, "--rank", str(rank), "--settings", *names], **options))
    for process in started:
        process.wait()  # each ends by its alarm at the latest
    spoken = [file.read_text().splitlines() for file in files]
    rows = [json.loads(line) for line in spoken[0] if line.startswith("{")]
    found = {row["setting"]: row for row in rows if "setting" in row}
    begun = [row["begins"] for row in rows if "begins" in row]
    last_words = [lines[-1] for lines in spoken if lines]
    for name in names:
        if name not in found:
            did = f"not over within {SECONDS[kind]} s" if name in begun[-1:] else "not begun"
            found[name] = {"error": f"{did}; the processes said last: {last_words}"[:600]}
    return found
