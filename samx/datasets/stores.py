"""Folders on this machine and in object stores, through fsspec."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samx.artifacts.commit import write_file
from samx.datasets.local_folders import files_below
from samx.errors import InputError, SamxError, UnavailableError, UsageError, WriteError
from samx.extras import require
from samx.files import read_file

DATASET = "dataset"  # the extra of what data sets are read and written with
CHAIN = "::"  # of fsspec's URLs: zip://*.png::s3://bucket/photos.zip
FILE_URL = "file://"
OWN_MEMORY = "memory"  # the protocol of files that live in one process


@dataclass(frozen=True)
class Store:
    """A folder, or a file, of one file system; `root` is its path there."""

    fs: Any
    root: str

    @classmethod
    def of(cls, url: str) -> Store:
        """Return what a path of this machine or a URL names.

        Raises: MissingExtraError; UnavailableError for a protocol whose library is missing; UsageError for no protocol;
        InputError for a store that cannot be opened.
        """
        core = require("fsspec.core", DATASET, "reading data sets")
        if CHAIN in url:
            return cls._with_chain(url, core)
        try:
            with store_errors(f"'{url}'", passing=(ImportError, ValueError)):
                fs, root = core.url_to_fs(url)
        except ImportError as cause:
            raise UnavailableError(f"'{url}' needs a library that is not installed", found=cause) from cause
        except ValueError as cause:
            raise UsageError(f"'{url}' is no place that can be read", found=cause) from cause
        return cls(fs, root)

    @classmethod
    def _with_chain(cls, url: str, core: Any) -> Store:
        """Return what a name with the sign of a chain names, where it is a path of this machine.

        Raises: UsageError for a chain: a file of one has no name of its own, by which another process would find it.
        """
        if "://" in url and not url.startswith(FILE_URL):
            fix = "Unpack it, or name the place itself."
            raise UsageError(f"'{url}' is a chain of places", expected="a path or a plain URL", fix=fix)
        return cls(core.filesystem("file"), Path(os.path.abspath(url.removeprefix(FILE_URL))).as_posix())

    @property
    def is_local(self) -> bool:
        """Whether it lies on a file system of this machine."""
        return "file" in self._protocols

    @property
    def is_own_memory(self) -> bool:
        """Whether no other process sees it."""
        return OWN_MEMORY in self._protocols

    @property
    def _protocols(self) -> tuple[str, ...]:
        given = self.fs.protocol
        return (given,) if isinstance(given, str) else tuple(given)

    @property
    def uri(self) -> str:
        """Return its full name."""
        return str(self.fs.unstrip_protocol(self.root))

    def at(self, name: str) -> Store:
        """Return what a name in this folder stands for."""
        return Store(self.fs, f"{self.root.rstrip('/')}/{name}")

    def files(self) -> list[str]:
        """List the files below this folder, at any depth, by their names in it; links of this machine are followed.

        Raises: InputError.
        """
        with store_errors(f"folder '{self.uri}'"):
            self.fs.invalidate_cache()
            is_here = self.is_local and self.fs.isdir(self.root)
            paths = files_below(self.root) if is_here else self.fs.find(self.root)
            return sorted(path[len(self.root.rstrip("/")) :].lstrip("/") for path in paths)

    def names(self) -> list[str]:
        """List what lies in this folder itself; a folder that is not there holds nothing."""
        with store_errors(f"folder '{self.uri}'"):
            self.fs.invalidate_cache()
            if not self.fs.isdir(self.root):
                return []
            return sorted(str(path).rstrip("/").rpartition("/")[2] for path in self.fs.ls(self.root, detail=False))

    def read(self, cap: int, what: str, error: type[SamxError] = InputError) -> bytes:
        """Read a whole file of at most `cap` bytes.

        Raises: `error` naming `what`.
        """
        if self.is_local:
            return read_file(Path(self.root), cap, what, error)
        with store_errors(what, error):
            data: bytes = self.fs.cat_file(self.root, start=0, end=cap + 1)
        if len(data) > cap:
            raise error(f"{what} is too large", expected=f"at most {cap} bytes")
        return data

    def write(self, data: bytes) -> None:
        """Write a file whole or not at all; its folder is made where it is missing.

        Raises: WriteError.
        """
        if self.is_local:
            _make_folder(Path(self.root).parent)
            write_file(Path(self.root), data)
            return
        folder, _, name = self.root.rpartition("/")
        temporary = f"{folder}/.{name}.{secrets.token_hex(4)}.tmp"
        with suppress(Exception):  # most object stores know no folders, and what is really wrong comes next
            self.fs.makedirs(folder, exist_ok=True)
        try:
            try:
                self.fs.pipe_file(temporary, data)
                self.fs.mv(temporary, self.root)
            except BaseException:
                with suppress(Exception):  # the first error is the one to tell
                    self.fs.rm_file(temporary)
                raise
        except Exception as cause:  # each store has its own kinds
            raise WriteError(f"cannot write '{self.uri}'", found=words_of(cause)) from cause

    def check_writable(self) -> None:
        """Refuse a folder of this machine that could not be written, before the work.

        Raises: WriteError.
        """
        there = Path(self.root) if Path(self.root).exists() else Path(self.root).parent
        if self.is_local and not (there.is_dir() and os.access(there, os.W_OK)):
            found = "no permission" if there.is_dir() else f"no folder '{there}'"
            raise WriteError(f"cannot write '{self.root}'", found=found, fix="Choose another place, or make it first.")

    def remove(self) -> None:
        """Remove a file.

        Raises: WriteError.
        """
        try:
            self.fs.rm_file(self.root)
        except Exception as cause:
            raise WriteError(f"cannot remove '{self.uri}'", found=words_of(cause)) from cause


def _make_folder(folder: Path) -> None:
    """Make the last level alone: a longer missing path is a typing error."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as cause:
        raise WriteError(f"cannot make '{folder}'", found=cause.strerror, fix="Choose another place.") from cause


@contextmanager
def store_errors(
    what: str, error: type[SamxError] = InputError, passing: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn whatever a store says into one line, but for what is `passing`."""
    try:
        yield
    except (SamxError, MemoryError):
        raise
    except passing:
        raise
    except FileNotFoundError as cause:
        raise error(f"{what} does not exist", fix="Check the path.") from cause
    except Exception as cause:  # each store has its own kinds
        raise error(f"{what} cannot be read", found=words_of(cause)) from cause


def words_of(cause: BaseException) -> str:
    """Say what went wrong where the kind may be anybody's."""
    told = getattr(cause, "strerror", None) or str(cause)
    return f"{type(cause).__name__}: {told}" if told else type(cause).__name__
