"""Optional libraries, imported where they are used and named with the extra that brings them."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from samx.errors import MissingExtraError


def require(library: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional library, without what it logs about libraries and systems that samx does not need.

    Raises: MissingExtraError naming the extra that installs it.
    """
    try:
        with quiet(library.split(".")[0]):
            return importlib.import_module(library)
    except ModuleNotFoundError as cause:
        if cause.name is None or cause.name.split(".")[0] != library.split(".")[0]:
            raise
        raise MissingExtraError(library, extra, purpose) from cause


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Keep back a library's warnings in its log; its errors still come."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
