"""What the command line does where nobody foresaw it: one line, and the traceback in a file."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOWrapper
from typing import Any

from samx.errors import InputError, NoMemoryError, SamxError, WriteError

STOPPED = 128 + signal.SIGTERM
# What the system refuses without any fault of samx; the first are of writing alone.
NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
NOT_TAKEN = (errno.EIO, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE)
# How libraries in C++ tell that there is no more memory.
NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "bad_alloc", "bad allocation", "out of memory",
             "failed to map segment", "failed to allocate memory")  # fmt: skip
SHOWN_CHARACTERS = 200
LESS = "Close other programs, choose a smaller model or fewer threads, or raise the limit (ulimit -v)."


def prepare() -> None:
    """Show any text on any terminal, and end on SIGTERM as on an error: with nothing left behind."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # also a file's name that is no text
    signal.signal(signal.SIGTERM, _stop)


def _stop(*_: Any) -> None:
    raise SystemExit(STOPPED)


def stdout_error() -> OSError | None:
    """Return why what was printed so far did not arrive; None where it did."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as cause:
        return cause
    except ValueError:  # closed
        return None
    return None


def mute_stdout() -> None:
    """Let nothing more be written, so that Python's own last flush does not fail."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def unwritten(cause: OSError) -> WriteError:
    """Say that the standard output takes nothing."""
    return WriteError("the standard output cannot be written", found=cause.strerror, fix="Send it somewhere else.")


def no_memory() -> int:
    """Say that there is too little memory even to say so in colours; gives the exit code."""
    with suppress(OSError):
        os.write(2, b"error: there is not enough memory for this\n")
    return NoMemoryError.exit_code


def in_words(error: Exception) -> SamxError:
    """Say in one line what nobody foresaw."""
    if any(map(_is_memory, _chain(error))):
        return NoMemoryError("there is not enough memory for this", found=_words(error), fix=LESS)
    number = error.errno if isinstance(error, OSError) else None
    if number in (*NOT_WRITTEN, *NOT_TAKEN):
        kind, verb = (WriteError, "write") if number in NOT_WRITTEN else (InputError, "read or write")
        name = getattr(error, "filename", None)
        return kind(f"cannot {verb} {name or 'a file or the standard output'}", found=getattr(error, "strerror", None))
    return SamxError("samx met what it did not foresee", found=_words(error), fix=_report(error))


def _is_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _words(error: BaseException) -> str:
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return words if len(words) <= SHOWN_CHARACTERS else f"{words[:SHOWN_CHARACTERS]}..."


def _report(error: Exception) -> str:
    """Write the traceback into a file, and ask for a report of it."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="samx-fault-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError as cause:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}:{last.lineno} (no file for the traceback: {cause.strerror})"
        return f"Please report it as a bug of samx, with {where}."
    return f"Please report it as a bug of samx, with {file.name}."
