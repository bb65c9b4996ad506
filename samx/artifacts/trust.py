"""Engines and compiled packages are executable code: only those that this user built or named are loaded."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from samx.artifacts import strict_json as read
from samx.artifacts.commit import fcntl, write_file
from samx.artifacts.manifest import utc_now
from samx.errors import ArtifactError, UnavailableError, WriteError
from samx.files import open_regular

HEADER = {"format": "samx-trusted-engines", "schema_version": 1}


def trust_file() -> Path:
    """Name the file that holds the hashes of this user's engines."""
    return state_directory() / "trusted-engines.json"


def remember(sha256: str, what: str) -> None:
    """Add an engine's hash to this user's list.

    Raises: WriteError; ArtifactError when the list is damaged or was open to others.
    """
    path = trust_file()
    with exclusive(path):
        engines = {**_engines(path), sha256: {"what": what, "since": utc_now()}}
        write_private(path, (json.dumps({**HEADER, "engines": engines}, indent=2) + "\n").encode())


def is_trusted(sha256: str) -> bool:
    """Return whether this user built or named an engine.

    Raises: ArtifactError when the list is damaged or was open to others.
    """
    return sha256 in _engines(trust_file())


def require_trusted(sha256: str, path: Path, what: str = "engine", build: str = "samx build") -> None:
    """Refuse code that this user neither built nor named; `build` is the command that makes it here.

    Raises: ArtifactError saying how to name it or build it.
    """
    if not is_trusted(sha256):
        raise ArtifactError(
            f"the {what} of {path} was neither built nor named by this user, and it is executable code",
            found=f"sha256 {sha256}",
            fix=f"Build it here with '{build} {path}', or, if you know where it comes from, 'samx trust {path}'.",
        )


def _engines(path: Path) -> Mapping[str, Any]:
    data = read_private(path)
    if data is None:
        return {}
    where = f"the list of trusted engines {path}"
    shape = {"engines": Mapping[read.Sha256, Any]}
    try:
        engines: Mapping[str, Any] = read.contents(read.parse(data, where), HEADER, shape, where)["engines"]
    except ArtifactError as cause:
        fix = "Remove it, and build or name your engines again."
        raise ArtifactError(cause.what, found=cause.found, expected=cause.expected, fix=fix) from cause
    return engines


FILE_MODE, DIRECTORY_MODE = 0o600, 0o700
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
LOCK_TRIES, LOCK_WAIT_S = 100, 0.1
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
        if not os.path.lexists(path):
            return None
        with open_regular(path, str(path), ArtifactError) as file:
            _check_ours(path.parent, path.parent.stat())
            _check_ours(path, os.fstat(file.fileno()))
            return file.read()
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


def cache_path(kind: str, target: str, *facts: str) -> Path | None:
    """Return where something is kept that holds for these facts alone, by a name that any file system takes.

    None: this user has no home directory.
    """
    try:
        folder = cache_directory()
    except UnavailableError:
        return None
    return folder / kind / f"{target}-{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:16]}.cache"


def read_cached(path: Path | None) -> bytes | None:
    """Read what write_cached() wrote; None where there is none or where any of it changed."""
    try:
        data = None if path is None else read_private(path)
    except ArtifactError:
        return None
    if data is None or hashlib.sha256(data[DIGEST_LENGTH:]).digest() != data[:DIGEST_LENGTH]:
        return None
    return data[DIGEST_LENGTH:]


def write_cached(path: Path | None, data: bytes) -> str | None:
    """Keep something that can be made again. Gives None, or why it could not be kept: that stops nobody's work."""
    if path is None:
        return "this user has no home directory to keep it in"
    try:
        write_private(path, hashlib.sha256(data).digest() + data)
    except WriteError as cause:
        return str(cause)
    return None


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock beside a file while it is read, changed and written.

    Raises: WriteError.
    """
    lock = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, FILE_MODE) if fcntl else _made(lock)
    except OSError as cause:
        raise WriteError(f"cannot write {path}", found=cause.strerror or type(cause).__name__) from cause
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
        if not fcntl:
            lock.unlink()


def _made(lock: Path) -> int:
    """Wait until a lock's file can be made: without locks of the system, the file itself is the lock.

    Raises: WriteError where it stays: whoever made it may have been killed.
    """
    for _ in range(LOCK_TRIES):
        with suppress(FileExistsError):
            return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE)
        time.sleep(LOCK_WAIT_S)
    fix = "If no other samx is at work, remove it."
    raise WriteError(f"{lock} stays locked", found=f"still there after {LOCK_TRIES * LOCK_WAIT_S:.0f} s", fix=fix)


def _base(variable: str, default: str) -> Path:
    """Follow the XDG rule: a value that is no absolute path counts as none."""
    value = os.environ.get(variable, "")
    if os.path.isabs(value):
        return Path(value)
    try:
        return Path.home() / default
    except RuntimeError as cause:
        fix = f"Set HOME, or {variable} to a directory of this user's."
        raise UnavailableError("this user has no home directory", found=cause, fix=fix) from cause


def _check_ours(path: Path, found: os.stat_result) -> None:
    if sys.platform == "win32":
        return
    if found.st_uid != os.getuid() or found.st_mode & WRITABLE_BY_OTHERS:
        who = f"owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}"
        raise ArtifactError(
            f"{path} could have been written by somebody else", found=who, expected="this user's, writable by no other",
            fix="Look at it, then remove it; samx makes it again.",
        )  # fmt: skip
