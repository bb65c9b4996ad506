"""Processes of samx's own: how one is started, from a package, a checkout or samx.pyz, and how it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import samx

TAIL_CHARACTERS = 300  # of a child's last words, in an error line


def command(module: str) -> tuple[str, ...]:
    """Return what runs a module of samx, in the environment below."""
    return (sys.executable, "-m", module)


def environment(variables: Mapping[str, str] = {}) -> dict[str, str]:
    """Return this process's environment, changed so that the child finds this very samx: a folder, or a zip file."""
    home = Path(samx.__file__).absolute().parents[1]
    paths = [str(home), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables}


def stop(child: subprocess.Popen[bytes]) -> None:
    """Stop a process that leads a session of its own, with whatever it started and left."""
    if sys.platform == "win32":
        child.kill()
    else:
        with suppress(ProcessLookupError, PermissionError):  # it ended, and left nobody
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run(command: Sequence[str], output: Path, timeout_s: float | None = None) -> tuple[int | None, str]:
    """Run a command that writes into a file; return its exit code (None: timed out) and its last words."""
    with output.open("w+b") as words:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=environment(),
            start_new_session=True,
        )
        try:
            code: int | None = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also when the user interrupts
            stop(child)
    return code, " ".join(output.read_text(errors="replace").split())[-TAIL_CHARACTERS:]


def ending(code: int | None) -> str:
    """Say how a process ended."""
    if code is None:
        return "it did not finish in time and was stopped"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"it was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was killed by signal {-code}"
