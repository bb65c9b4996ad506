"""coremltools: opened late, quietly, and only in a version that samx knows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from samx.errors import MissingExtraError, UnavailableError
from samx.extras import quiet as keep_quiet
from samx.extras import require

LIBRARY, EXTRA = "coremltools", "coreml"
MINIMUM = 9  # the first release that reads and writes iOS 26 programs, and that runs with NumPy 2
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
    check_version(str(library.__version__))
    return library


def check_version(version: str) -> None:
    """Refuse a version that is too old.

    Raises: UnavailableError.
    """
    number = re.match(r"\d+", version)
    if number is None or int(number[0]) < MINIMUM:
        raise UnavailableError("coremltools is too old", found=version, expected=f"{MINIMUM}.0 or newer", fix=UPDATE)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back its warnings: off a Mac it misses its own prediction library, and no user can change that."""
    with keep_quiet(LIBRARY):
        yield
