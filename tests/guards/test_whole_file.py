"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cl_callbacks.guards.whole_file import whole_file

KILLED = """
import os, sys
from cl_callbacks.guards.whole_file import whole_file
with whole_file(sys.argv[1]) as part:
    with part.open("w") as file:
        file.write("half"); file.flush(); os.fsync(file.fileno())
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_an_error_leaves_the_older_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    file = tmp_path / "a.txt"
    file.write_text("older")
    with pytest.raises(type(error)), whole_file(file) as part:
        part.write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "older"


def test_a_killed_process_leaves_the_older_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("older")
    subprocess.run([sys.executable, "-c", KILLED, file], check=False)
    assert file.read_text() == "older"
    with whole_file(file) as part:
        part.write_text("newer")
    assert file.read_text() == "newer"


def test_a_name_of_any_length_that_the_folder_takes(tmp_path: Path) -> None:
    with whole_file(tmp_path / ("a" * 255)) as part:
        part.write_text("all")
    assert (tmp_path / ("a" * 255)).read_text() == "all"


WRITING = """
import json, sys
from cl_callbacks.guards.whole_file import whole_file
for size in range(400):
    with whole_file(sys.argv[1]) as part:
        part.write_text(json.dumps([int(sys.argv[2])] * (100 * size)))
"""


def test_of_two_processes_that_write_one_file_the_last_wins_and_it_is_always_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("[]")
    writers = [subprocess.Popen([sys.executable, "-c", WRITING, file, str(number)]) for number in (1, 2)]
    seen: set[int] = set()
    while any(writer.poll() is None for writer in writers):
        found = json.loads(file.read_text())
        assert len(set(found)) <= 1  # of one of them
        seen |= set(found)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen == {1, 2}
    assert len(json.loads(file.read_text())) == 39_900
    assert list(tmp_path.iterdir()) == [file]
