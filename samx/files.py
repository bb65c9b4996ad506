"""Read the files that somebody names: regular ones only, and no more of them than their kind justifies."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import BinaryIO

from samx.errors import InputError, SamxError

MIB, GIB = 1 << 20, 1 << 30
CONFIG_CAP_BYTES = 4 * MIB  # a model's config.json has a few KiB
INDEX_CAP_BYTES = 32 * MIB  # a name for each tensor of a model: 100 bytes, for 1000 tensors
REPORT_CAP_BYTES = 64 * MIB  # the samples of a long measurement take a few
GRAPH_CAP_BYTES = 2 * GIB  # the most that a protobuf may have
# O_NONBLOCK: a named pipe cannot hang us before we see what it is.
READ_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class ShellTemplate(Template):
    """A template that leaves shells and workflows their dollars."""

    delimiter = "@"


def open_regular(path: Path, what: str, error: type[SamxError] = InputError) -> BinaryIO:
    """Open a file for reading; a pipe or a device is refused at once, before it can hang or never end.

    Raises: `error` naming `what`.
    """
    try:
        descriptor = os.open(path, READ_FLAGS)
    except FileNotFoundError as cause:
        raise error(f"{what} does not exist", fix="Check the path.") from cause
    except OSError as cause:
        raise error(f"{what} cannot be read", found=cause.strerror, fix="Check the path.") from cause
    except ValueError as cause:  # a NUL in it, or what the file system has no bytes for
        raise error(f"{what} cannot be read", found=cause, expected="the path of a file") from cause
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        found = KINDS.get(stat.S_IFMT(mode), "something else")
        raise error(f"{what} cannot be read", found=found, expected="a regular file", fix="Copy it into one.")
    return os.fdopen(descriptor, "rb")


@contextmanager
def reading(what: str, error: type[SamxError] = InputError) -> Iterator[None]:
    """Turn the system's refusals to read on, such as a failing disk's, into one line."""
    try:
        yield
    except OSError as cause:
        raise error(f"{what} cannot be read", found=cause.strerror or type(cause).__name__) from cause


def read_file(path: Path, cap: int, what: str, error: type[SamxError] = InputError) -> bytes:
    """Read a whole file of at most `cap` bytes.

    Raises: `error` naming `what`: missing, no regular file, too large, or not readable to its end.
    """
    with open_regular(path, what, error) as file, reading(what, error):
        size = os.fstat(file.fileno()).st_size
        if size > cap:
            raise error(f"{what} is too large", found=f"{size} bytes", expected=f"at most {cap} bytes")
        data = file.read(size + 1)
    if len(data) != size:
        raise error(f"{what} changed while it was read", fix="Read it again when nobody writes it.")
    return data
