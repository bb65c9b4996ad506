"""Export the Segment Anything mask decoder to devices, with proof that it still computes the same masks."""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

# Names that need heavy libraries, imported when they are first asked for; __init__.pyi tells type checkers.
LAZY = {"load": "samx.commands.load"}


def __getattr__(name: str) -> object:
    if name not in LAZY:
        raise AttributeError(f"module 'samx' has no attribute {name!r}")
    return getattr(importlib.import_module(LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})
