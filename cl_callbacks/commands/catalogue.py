"""The public callbacks of the package, by the room that each lives in."""

from __future__ import annotations

import sys

from lightning.pytorch import Callback

from cl_callbacks.boundaries.task_boundaries import TaskBoundaries
from cl_callbacks.rules.synaptic_callback import SynapticCallback

_BASES = (SynapticCallback, TaskBoundaries)
_PACKAGE = __name__.partition(".")[0]


def callbacks() -> dict[str, type[Callback]]:
    """All public callbacks by name, but for the bases of others."""
    package = sys.modules[_PACKAGE]  # which imports this; what it has been given later counts, too
    public = {name: getattr(package, name) for name in package.__all__}
    return {
        name: kind
        for name, kind in public.items()
        if isinstance(kind, type) and issubclass(kind, Callback) and kind not in _BASES
    }


def rooms() -> dict[str, list[type[Callback]]]:
    """Callbacks by the package that exports each; the families of rules first, and those of no room last.

    Example:
        >>> [kind.__name__ for kind in rooms()["cl_callbacks.rules.averaging"]]
        ['WeightMerging']
    """
    found: dict[str, list[type[Callback]]] = {}
    for kind in sorted(callbacks().values(), key=lambda kind: kind.__name__.lower()):
        room = kind.__module__.rpartition(".")[0]
        exports = getattr(sys.modules[room], "__all__", ())
        found.setdefault(room if kind.__name__ in exports else "", []).append(kind)
    return dict(sorted(found.items(), key=lambda room: (-room[0].count("."), room[0])))
