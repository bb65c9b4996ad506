"""The files below a folder of this machine, and below those that links in it lead to."""

from __future__ import annotations

import os
from pathlib import Path

from samx.errors import InputError


def files_below(root: str) -> list[str]:
    """List the files at any depth, each folder's once: under its own name in `root`, else under the first link's.

    Links to a folder that `root` lies in are not followed.
    Raises: InputError for a folder that cannot be read; what is in it would be missed.
    """
    seen = {_identity(folder) for folder in Path(root).resolve().parents}
    found: list[str] = []
    starts = [root]
    for start in starts:  # links are added to the end, so that folders come before what leads to them
        for here, folders, names in os.walk(start, onerror=_refuse):
            if _identity(here) in seen:
                folders.clear()
                continue
            seen.add(_identity(here))
            folders.sort()
            found += [os.path.join(here, name) for name in names]
            starts += [path for path in (os.path.join(here, name) for name in folders) if os.path.islink(path)]
    return [path.replace(os.sep, "/") for path in found]


def _identity(folder: str | Path) -> tuple[int, int]:
    known = os.stat(folder)
    return known.st_dev, known.st_ino


def _refuse(error: OSError) -> None:
    fix = "Let it be read, or name folders that can be."
    raise InputError(f"folder '{error.filename}' cannot be read", found=error.strerror, fix=fix) from error
