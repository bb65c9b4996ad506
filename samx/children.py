"""Processes of samx's own: how one is started, from a package, a checkout or samx.pyz, and how it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import samx


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
