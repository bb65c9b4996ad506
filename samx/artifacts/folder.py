"""Write a folder of files whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from samx.artifacts.commit import place
from samx.errors import WriteError


def write_folder(target: Path, files: Iterable[tuple[str, bytes]], check: Callable[[], None]) -> None:
    """Write files by their relative paths into a folder that takes its name once it is whole.

    check: refuses what may not be replaced; asked when all is written.
    Raises: WriteError, and what check() raises; what was there then still is.
    """
    target = Path(os.path.abspath(target))
    staged = target.with_name(f".{target.name}.new-{secrets.token_hex(4)}")
    try:
        staged.mkdir()
        for name, data in files:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_bytes(data)
        check()
        place(staged, target)
    except OSError as cause:
        fix = "Nothing was left behind. Choose a place that can be written."
        raise WriteError(f"cannot write {target}", found=cause.strerror or type(cause).__name__, fix=fix) from cause
    finally:
        shutil.rmtree(staged, ignore_errors=True)
