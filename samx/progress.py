"""How a long step tells what it is at: a line, and how far it is where that is known."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Take what is being done, and the number of it of how many."""

    def __call__(self, text: str, done: int = 0, total: int = 0, /) -> None:
        """Show it."""


def silent(text: str, done: int = 0, total: int = 0, /) -> None:
    """Show nothing."""
