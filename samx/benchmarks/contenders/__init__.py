"""Other people's exports of the same decoder, built from their own code, to be measured beside ours."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from samx.errors import UnavailableError


def require_peer(library: str) -> ModuleType:
    """Import somebody else's package.

    Raises: UnavailableError naming the command that sets all of them up.
    """
    if importlib.util.find_spec(library) is None:
        raise UnavailableError(
            f"comparing with '{library}' needs its package, which is not installed",
            fix="'make compare' installs it into an environment of its own.",
        )  # fmt: skip
    return importlib.import_module(library)
