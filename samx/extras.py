"""Optional libraries, imported where they are used and named with the extra that brings them."""

from __future__ import annotations

import importlib
from types import ModuleType

from samx.errors import MissingExtraError


def require(library: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional library.

    Raises: MissingExtraError naming the extra that installs it.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as cause:
        if cause.name is None or cause.name.split(".")[0] != library.split(".")[0]:
            raise
        raise MissingExtraError(library, extra, purpose) from cause
