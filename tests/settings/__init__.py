"""The settings under which every rule is run; a new one joins with one entry in the table of its family."""

from tests.settings import memory_layout, networks, optimization, precision, processes, together

SETTINGS = [
    *optimization.SETTINGS,
    *precision.SETTINGS,
    *networks.SETTINGS,
    *memory_layout.SETTINGS,
    *together.SETTINGS,
    *processes.SETTINGS,
]
