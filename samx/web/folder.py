"""Refuses a folder that may not be replaced: only what samx wrote is."""

from __future__ import annotations

import json
import os
from pathlib import Path

from samx.errors import WriteError
from samx.web.site import CONFIGURATION, FORMAT

SITE = (CONFIGURATION, FORMAT)  # the file that lists the others, and the format that it names


def check_folder(target: Path, overwrite: bool, listing: tuple[str, str] = SITE) -> None:
    """Refuse a folder that may not be written, or that holds what samx did not write.

    Raises: WriteError.
    """
    if not os.path.lexists(target):
        return
    if not overwrite and not (target.is_dir() and not any(target.iterdir())):
        raise WriteError(f"{target} exists already", fix="Use --force to replace it, or choose another name.")
    if others := _foreign(target, listing):
        raise WriteError(
            f"{target} is not replaced, because samx did not write all of it", found=others,
            fix="Choose another name, or remove it yourself.",
        )  # fmt: skip


def _foreign(target: Path, listing: tuple[str, str]) -> str:
    """Say what would be lost that is not samx's."""
    if target.is_symlink() or not target.is_dir():
        return "a link" if target.is_symlink() else "a file"
    there = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    if not there:
        return ""
    try:
        facts = json.loads((target / listing[0]).read_bytes())
        listed = set(facts["files"]) if facts["format"] == listing[1] else set()
    except (OSError, ValueError, KeyError, TypeError):
        listed = set()
    others = sorted(there - listed)
    return ", ".join(others[:3]) + (" and more" if len(others) > 3 else "")
