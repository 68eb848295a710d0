"""Layers whose outputs are the same units, while it is followed what reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

UNREAD = "read by nothing"


@dataclass(eq=False)
class Source:
    """Layers whose outputs are the same units, and what was found of these so far."""

    layers: list[str]
    number: int
    rows: int = 1
    norms: dict[str, None] = field(default_factory=dict)
    readers: dict[str, int] = field(default_factory=dict)  # columns of each unit, by name of the weight
    obstacle: str = ""

    def take(self, other: Source) -> None:
        """Adds what was found of another, whose units are these too."""
        self.norms |= other.norms
        for reader, columns in other.readers.items():
            self.read_by(reader, columns)
        self.obstacle = self.obstacle or other.obstacle

    def read_by(self, reader: str, columns: int) -> None:
        """Notes that a weight reads the units."""
        if self.readers.setdefault(reader, columns) != columns:
            self.left_out("read as channels and as numbers")

    def left_out(self, reason: str) -> None:
        """Notes why the units cannot be replaced; the first reason stays."""
        self.obstacle = self.obstacle or reason
