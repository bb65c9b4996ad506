"""Write an artifact whole or not at all: build it beside its target, seal it, rename it into place."""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from samx.artifacts import strict_json
from samx.artifacts.manifest import FORMAT, MANIFEST_NAME, FileEntry, Manifest, check_file_names
from samx.artifacts.store import Artifact, digest, manifest_bytes, unlisted_files
from samx.errors import ArtifactError, WriteError

# Locks that the kernel drops with the process; Windows has none that a directory takes.
fcntl: Any = importlib.import_module("fcntl") if find_spec("fcntl") else None
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAILING = (errno.EIO, errno.EROFS)  # of a disk; where no path is told, reading tells one, so that it was a write
MIB = 1024 * 1024
# renameat2(2), Linux: swap two names in one step. The numbers are part of the kernel's interface.
AT_FDCWD, RENAME_EXCHANGE = -100, 2
STAGED, ASIDE = "new", "old"


@contextmanager
def staging(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a directory to fill and seal(); it becomes `target` on normal exit and vanishes on any exception.

    Raises: WriteError when the target exists and may not be replaced, or the disk does not take it.
    """
    target = Path(os.path.abspath(target))
    with _as_write_error(target):
        made_parent = _make_parent(target.parent)
        try:
            _recover(target)
            _check_target(target, overwrite)
            staged, lock = _locked_directory(target)
            try:
                yield staged
                _commit(staged, target, overwrite)
            finally:  # after the commit: the old artifact, or nothing
                shutil.rmtree(staged, ignore_errors=True)
                _unlock(lock)
        except BaseException:
            if made_parent:
                with suppress(OSError):
                    target.parent.rmdir()
            raise


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a target that exists and may not be replaced.

    Raises: WriteError.
    """
    _check_target(Path(os.path.abspath(target)), overwrite)


def seal(
    directory: Path, manifest: Manifest, roles: Mapping[str, str], known: Mapping[str, FileEntry] | None = None
) -> Manifest:
    """Hash the files, give each its role, and write the manifest last. May be called again with more evidence.

    What `known` lists was hashed before, while it was written, and is not hashed again: staging() judges every byte
    once more before the artifact takes its place.
    Raises: WriteError when `roles` does not name exactly the files that are there, at any depth; ArtifactError when
    no artifact can hold their names.
    """
    check_file_names(roles, f"the export in {directory}")
    if extra := unlisted_files(directory, roles):
        raise WriteError(f"cannot seal {directory}: roles and files differ", found=extra, expected=sorted(roles))
    files = {
        name: replace(known[name], role=role) if known and name in known else _entry(directory / name, role)
        for name, role in roles.items()
    }
    sealed = replace(manifest, files=files)
    write_file(directory / MANIFEST_NAME, sealed.to_bytes())
    return sealed


def write_file(path: Path, data: bytes) -> None:
    """Replace one file whole or not at all.

    Raises: WriteError when the disk does not take it.
    """
    path = Path(os.path.abspath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with _as_write_error(path):
        try:
            temporary.write_bytes(data)
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _as_write_error(target: Path) -> Iterator[None]:
    """Translate the system's refusals about this path; leave everybody else's errors alone."""
    try:
        yield
    except OSError as cause:
        named = [os.fspath(name) for name in (cause.filename, cause.filename2) if isinstance(name, (str, Path))]
        at_large = cause.errno in NO_SPACE or (cause.errno in FAILING and not named)
        if not at_large and not any(_is_ours(name, target) for name in named):
            raise
        fix = "Nothing was left behind. Choose a place that can be written."
        if cause.errno in NO_SPACE:
            fix = f"Nothing was left behind. {_free_space(target)}; make room or choose another place."
        raise WriteError(f"cannot write {target}", found=cause.strerror or type(cause).__name__, fix=fix) from cause


def _is_ours(name: str, target: Path) -> bool:
    """Return whether this is one of our own paths, not a checkpoint that happens to lie beside the target."""
    path = Path(os.path.abspath(name))
    hidden = str(target.with_name(f".{target.name}."))
    return path == target.parent or path.is_relative_to(target) or str(path).startswith(hidden)


def _free_space(path: Path) -> str:
    while not path.exists():
        path = path.parent
    return f"{path} has {shutil.disk_usage(path).free / MIB:.1f} MiB free"


def _make_parent(parent: Path) -> bool:
    """Create the last level only: a longer missing path is a typing error."""
    if parent.is_dir():
        return False
    parent.mkdir()
    return True


def _check_target(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise WriteError(f"{target} exists already", fix="Use --force to replace it, or choose another name.")
    foreign = _foreign_content(target)
    if foreign:
        raise WriteError(
            f"{target} is not replaced, because samx did not write all of it", found=foreign,
            fix="Choose another name, or remove it yourself.",
        )  # fmt: skip


def _foreign_content(target: Path) -> str | None:
    """Return what would be lost that is no artifact. The manifest may be of another version, the files damaged."""
    if target.is_symlink() or not target.is_dir():
        return "a link" if target.is_symlink() else "a file"
    if not any(target.iterdir()):
        return None
    try:
        data = strict_json.parse(manifest_bytes(target), MANIFEST_NAME)
        manifest: dict[str, Any] = strict_json.take(dict[str, Any], data, MANIFEST_NAME)
    except ArtifactError:
        return f"no readable {MANIFEST_NAME}"
    files = manifest.get("files")
    if manifest.get("format") != FORMAT or not isinstance(files, dict):
        return f"a {MANIFEST_NAME} of something else"
    others = unlisted_files(target, files)
    return f"also {', '.join(others)}" if others else None


def _locked_directory(target: Path) -> tuple[Path, int | None]:
    """Make a hidden sibling that is locked while this process lives, where the system has such locks."""
    while True:
        staged = _sibling(target, STAGED)
        staged.mkdir()
        if fcntl is None:
            return staged, None
        with suppress(FileNotFoundError):  # another process took it for a leftover before it was locked: try again
            lock = os.open(staged, os.O_RDONLY)
            if _take_lock(lock) is not False and staged.exists():
                return staged, lock
            os.close(lock)


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _sibling(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.samx-{kind}-{os.getpid()}-{secrets.token_hex(4)}")


def _take_lock(descriptor: int) -> bool | None:
    """Lock without waiting. Returns None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _recover(target: Path) -> None:
    """Clear what killed runs left: restore an old artifact that lost its place, remove the rest.

    Without locks what is left cannot be told from what another process is writing, and stays.
    """
    if fcntl is None:
        return
    for left in sorted(target.parent.glob(f".{_escaped(target.name)}.samx-*-*-*")):
        try:
            lock = os.open(left, os.O_RDONLY)
        except OSError:  # gone meanwhile, or not ours to read
            continue
        if _take_lock(lock):
            if f".samx-{ASIDE}-" in left.name and not os.path.lexists(target):
                left.rename(target)
            else:
                shutil.rmtree(left, ignore_errors=True)
        os.close(lock)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _commit(staged: Path, target: Path, overwrite: bool) -> None:
    unlisted = unlisted_files(staged, Artifact.open(staged).manifest.files)  # sealed, and nothing was touched since
    if unlisted:
        raise WriteError(f"cannot write {target}: files were added after sealing", found=", ".join(unlisted))
    for path in [*sorted(staged.rglob("*"), reverse=True), staged]:  # a folder after what is in it
        _sync(path)
    _check_target(target, overwrite)  # again: an export takes minutes
    place(staged, target)
    _sync(target.parent)


def place(staged: Path, target: Path) -> None:
    """Give a directory its name; one that has it already is then gone, or where the new one was."""
    if not os.path.lexists(target):
        staged.rename(target)
    elif not _exchange(staged, target):
        _replace(staged, target)


def _exchange(staged: Path, target: Path) -> bool:
    """Swap the two names in one step, so that a target exists at every moment. False where the system cannot."""
    try:
        rename: Callable[..., Any] = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, TypeError, AttributeError):
        return False
    status: int = rename(AT_FDCWD, os.fsencode(staged), AT_FDCWD, os.fsencode(target), RENAME_EXCHANGE)
    return status == 0


def _replace(staged: Path, target: Path) -> None:
    """Replace in two steps. If this process dies between them, _recover() of the next run undoes the first."""
    aside = _sibling(target, ASIDE)
    target.rename(aside)
    try:
        staged.rename(target)
    except BaseException:
        if not os.path.lexists(target):
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _entry(path: Path, role: str) -> FileEntry:
    if path.is_symlink() or not path.is_file():
        found = "no regular file" if os.path.lexists(path) else "nothing"
        raise WriteError(f"cannot seal {path}", found=found, expected="a regular file")
    with path.open("rb") as file:
        return FileEntry(*digest(file), role)


def _sync(path: Path) -> None:
    """Push a file or directory to the disk. Windows opens no directory, and pushes what was opened to be written."""
    if fcntl is None and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if fcntl else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as cause:
        if cause.errno != errno.EINVAL:  # some file systems cannot sync a directory
            raise OSError(cause.errno, cause.strerror, str(path)) from cause
    finally:
        os.close(descriptor)
