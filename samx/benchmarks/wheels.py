"""Import packages that lie in a folder as wheels: unpacked for as long as a program runs, never installed."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from samx.errors import InputError, UsageError

MOST_BYTES = 4 << 30  # unpacked, of one wheel; the largest that is of use here has 700 MB
PATH_VARIABLE = "PYTHONPATH"


@contextmanager
def wheels_on_path(folder: Path | None) -> Iterator[list[str]]:
    """Unpack every wheel of a folder, and let this process and its children import them first; yield their names.

    Raises: UsageError for a folder that is none or holds no wheel; InputError for a wheel that cannot be unpacked.
    """
    if folder is None:
        yield []
        return
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if not wheels:
        raise UsageError("no wheels to bring along", found=f"'{folder}'", expected="a folder with files *.whl")
    before_path, before_variable = list(sys.path), os.environ.get(PATH_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="samx-wheels-") as target:
        for wheel in wheels:
            unpack(wheel, Path(target))
        sys.path.insert(0, target)
        os.environ[PATH_VARIABLE] = os.pathsep.join(filter(None, (target, before_variable)))
        importlib.invalidate_caches()
        try:
            yield [wheel.name for wheel in wheels]
        finally:
            sys.path[:] = before_path
            os.environ.pop(PATH_VARIABLE)
            if before_variable is not None:
                os.environ[PATH_VARIABLE] = before_variable


def unpack(wheel: Path, target: Path) -> None:
    """Unpack a wheel into a folder.

    Raises: InputError when it is damaged, leads out of the folder, or is far too large.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            _check_names(wheel, archive.namelist())
            size = sum(entry.file_size for entry in archive.infolist())
            if size > MOST_BYTES:
                raise InputError(
                    f"wheel '{wheel}' is too large", found=f"{size} bytes", expected=f"at most {MOST_BYTES}"
                )
            archive.extractall(target)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as cause:
        raise InputError(f"wheel '{wheel}' cannot be unpacked", found=cause, fix="Bring it again.") from cause


def _check_names(wheel: Path, names: list[str]) -> None:
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise InputError(f"wheel '{wheel}' is not unpacked: a file of it leads elsewhere", found=repr(name))
