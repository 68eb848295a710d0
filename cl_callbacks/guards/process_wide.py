"""Settings of the whole process that several threads change for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any


class ProcessWide:
    """A context of a setting of the whole process, which the first thread makes and the last one undoes.

    Two threads that each make and undo it may end with it made: the second takes what the first has set for
    what was there before.

    Args:
        setting: makes the context of the setting.

    Example:
        >>> from contextlib import contextmanager
        >>> @contextmanager
        ... def setting():
        ...     print("made"); yield; print("undone")
        >>> shared = ProcessWide(setting)
        >>> with shared, shared:
        ...     print("in use")
        made
        in use
        undone
    """

    def __init__(self, setting: Callable[[], AbstractContextManager[Any]]) -> None:
        self._setting = setting
        self._lock = threading.RLock()  # since a signal's handler may come here, too
        self._users = 0
        self._made: AbstractContextManager[Any]

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._made = self._setting()
                self._made.__enter__()
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._made.__exit__(None, None, None)
