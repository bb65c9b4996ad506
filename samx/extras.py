"""Optional libraries, imported where they are used and named with the extra that brings them."""

from __future__ import annotations

import importlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from samx.errors import MissingExtraError, UnavailableError

# What a library may bring along to report over the network that it was imported; it does without where it is missing.
REPORTER = "{library}_telemetry"
EXPORT = "export"  # the extra of what every export is made with
EXPORT_LIBRARIES = ("torch", "safetensors", "onnx")


def require(library: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional library, without what it logs about libraries and systems that samx does not need.

    Raises: MissingExtraError naming the extra that installs it.
    """
    name = library.split(".")[0]
    try:
        with quiet(name), _without(REPORTER.format(library=name)):
            return importlib.import_module(library)
    except ModuleNotFoundError as cause:
        if cause.name is None or cause.name.split(".")[0] != name:
            raise
        raise MissingExtraError(library, extra, purpose) from cause


def require_version(library: str, found: str, minimum: tuple[int, ...], fix: str) -> None:
    """Refuse a library that is too old.

    Raises: UnavailableError.
    """
    numbers = re.match(r"\d+(?:\.\d+)*", found)
    if tuple(map(int, numbers[0].split("."))) < minimum if numbers else True:
        expected = f"{'.'.join(map(str, minimum))} or newer"
        raise UnavailableError(f"{library} is too old", found=found, expected=expected, fix=fix)


def require_export(purpose: str) -> None:
    """Check that what every export is made with is installed.

    Raises: MissingExtraError.
    """
    for library in EXPORT_LIBRARIES:
        require(library, EXPORT, purpose)


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


@contextmanager
def silent(library: str) -> Iterator[None]:
    """Keep back what a library warns of, in its log and in Python; its errors still come."""
    with quiet(library), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _without(reporter: str) -> Iterator[None]:
    """Let a library look as if it had never been installed; the user's own program can still import it afterwards."""
    if reporter in sys.modules:
        yield
        return
    sys.modules[reporter] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[reporter]
