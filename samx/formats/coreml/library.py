"""coremltools: opened late, quietly, and only in a version that samx knows."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from samx.errors import MissingExtraError, UnavailableError
from samx.extras import require, require_version

LIBRARY, EXTRA = "coremltools", "coreml"
MINIMUM = (9, 0)  # the first release that reads and writes iOS 26 programs, and that runs with NumPy 2
UPDATE = "Update it with: pip install --upgrade 'coremltools>=9'"


def open_coremltools(purpose: str) -> ModuleType:
    """Import coremltools and check its version.

    Raises: MissingExtraError; UnavailableError when it does not load or is too old.
    """
    try:
        library = require(LIBRARY, EXTRA, purpose)
    except MissingExtraError:
        raise
    except (ImportError, OSError) as cause:
        raise UnavailableError("coremltools does not load", found=cause, fix=UPDATE) from cause
    require_version(LIBRARY, str(library.__version__), MINIMUM, UPDATE)
    return library


@contextmanager
def quiet() -> Iterator[None]:
    """Keep its log and its warnings from the user; its exceptions still come."""
    logger = logging.getLogger(LIBRARY)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def parse_model(data: bytes, purpose: str) -> Any:
    """Parse a package's specification, which is a protobuf."""
    return open_coremltools(purpose).proto.Model_pb2.Model.FromString(data)


def program_of(functions: Mapping[str, Any], purpose: str) -> Any:
    """Join MIL functions to a program of coremltools'."""
    program = open_coremltools(purpose).converters.mil.mil.Program()
    for name, function in functions.items():
        program.add_function(name, function)
    return program
