"""Measure in a process that has done nothing before: it prints one marked line, and everything else is ignored."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import samx
from samx.artifacts import strict_json as read
from samx.errors import SamxError

TIMEOUT_S = 1800.0
TAIL_CHARACTERS = 300  # of the child's last words, in an error line
MARK = "samx-fresh:"  # begins the one line that is read; libraries print what they like


def print_report(found: Mapping[str, Any]) -> None:
    """Say in the child what was measured."""
    print(MARK + json.dumps(found))  # noqa: T201 - this is how it answers


def report_of(command: Sequence[str], fields: Sequence[str], variables: Mapping[str, str] | None = None) -> Any:
    """Run a command with more environment variables, and read its report with these fields.

    Raises: SamxError naming how it ended when it did not report.
    """
    paths = [str(Path(samx.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(variables or {})}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environment,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as cause:
        raise _refusal(f"it did not finish in {TIMEOUT_S:g} s", "") from cause
    lines = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode != 0 or len(lines) != 1:
        raise _refusal(f"exit code {done.returncode}", " ".join(done.stderr.split())[-TAIL_CHARACTERS:])
    return read.fields(read.parse(lines[0].encode(), "its report"), fields, "its report")


def _refusal(what: str, words: str) -> SamxError:
    found = f"{what}; its last words: {words}" if words else what
    return SamxError("a fresh process gave no measurement", found=found, expected="exit code 0 and one report")
