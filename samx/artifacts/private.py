"""Files of this user that nobody else may write: what is in them decides which code is run."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from samx.artifacts.commit import write_file
from samx.errors import ArtifactError, WriteError

if sys.platform != "win32":
    import fcntl

FILE_MODE, DIRECTORY_MODE = 0o600, 0o700
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
DIGEST_LENGTH = hashlib.sha256().digest_size


def state_directory() -> Path:
    """Name the directory for what must be kept: $XDG_STATE_HOME/samx."""
    return _base("XDG_STATE_HOME", ".local/state") / "samx"


def cache_directory() -> Path:
    """Name the directory for what can be made again: $XDG_CACHE_HOME/samx."""
    return _base("XDG_CACHE_HOME", ".cache") / "samx"


def read_private(path: Path) -> bytes | None:
    """Read a file of ours; None where there is none.

    Raises: ArtifactError when somebody else owns it, or could have written it.
    """
    try:
        with path.open("rb") as file:
            _check_ours(path.parent, path.parent.stat())
            _check_ours(path, os.fstat(file.fileno()))
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise ArtifactError(f"cannot read {path}", found=cause.strerror) from cause


def write_private(path: Path, data: bytes) -> None:
    """Replace a file of ours whole or not at all, readable and writable by this user alone.

    Raises: WriteError.
    """
    try:
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        path.parent.chmod(DIRECTORY_MODE)  # nobody else reaches the file, also before its own mode is set
        write_file(path, data)
        path.chmod(FILE_MODE)
    except OSError as cause:
        raise WriteError(f"cannot write {path}", found=cause.strerror or type(cause).__name__) from cause


def read_cached(path: Path) -> bytes | None:
    """Read what write_cached() wrote; None where there is none or where any of it changed."""
    try:
        data = read_private(path)
    except ArtifactError:
        return None
    if data is None or hashlib.sha256(data[DIGEST_LENGTH:]).digest() != data[:DIGEST_LENGTH]:
        return None
    return data[DIGEST_LENGTH:]


def write_cached(path: Path, data: bytes) -> str | None:
    """Keep something that can be made again. Gives None, or why it could not be kept: that stops nobody's work."""
    try:
        write_private(path, hashlib.sha256(data).digest() + data)
    except WriteError as cause:
        return str(cause)
    return None


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep a lock beside a file while it is read, changed and written.

    Raises: WriteError.
    """
    lock = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, FILE_MODE)
    except OSError as cause:
        raise WriteError(f"cannot write {path}", found=cause.strerror or type(cause).__name__) from cause
    try:
        if sys.platform != "win32":
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _base(variable: str, default: str) -> Path:
    """Follow the XDG rule: a value that is no absolute path counts as none."""
    value = os.environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else Path.home() / default


def _check_ours(path: Path, found: os.stat_result) -> None:
    if sys.platform == "win32":
        return
    if found.st_uid != os.getuid() or found.st_mode & WRITABLE_BY_OTHERS:
        who = f"owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}"
        raise ArtifactError(
            f"{path} could have been written by somebody else", found=who, expected="this user's, writable by no other",
            fix="Look at it, then remove it; samx makes it again.",
        )  # fmt: skip
