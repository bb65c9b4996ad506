"""Measure in a process that has done nothing before: it prints marked lines, and everything else is ignored."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from samx import children
from samx.artifacts import strict_json as read
from samx.devices.adapter import Reading, unread
from samx.errors import SamxError

TIMEOUT_S = 1800.0
TAIL_CHARACTERS = 300  # of the child's last words, in an error line
STATUS = Path("/proc/self/status")
PEAK = "VmHWM"  # of this program alone: getrusage on Linux keeps the peak of the process that started it
KIB = 1024
MARK = "samx-fresh:"  # begins a line that is read; libraries print what they like


def print_report(found: Mapping[str, Any]) -> None:
    """Say in the child what was measured, at once: it may be stopped before it ends."""
    print(MARK + json.dumps(found), flush=True)  # noqa: T201 - this is how it answers


def report_of(command: Sequence[str], fields: Sequence[str], variables: Mapping[str, str] | None = None) -> Any:
    """Run a command with more environment variables, and read its one report with these fields.

    Raises: SamxError naming how it ended when it did not report.
    """
    lines, failure = _run(command, TIMEOUT_S, variables or {})
    if failure is None and len(lines) != 1:
        failure = f"exit code 0 and {len(lines)} reports"
    if failure is not None:
        raise SamxError("a fresh process gave no measurement", found=failure, expected="exit code 0 and one report")
    return _parse(lines[0], fields)


def reports_of(
    command: Sequence[str], fields: Sequence[str], limit_s: float
) -> tuple[list[dict[str, Any]], str | None]:
    """Run a command for at most `limit_s`, and read its reports; with them comes how it failed, if it did.

    What it had reported before it failed or was stopped counts.
    Raises: ArtifactError for a report with other fields.
    """
    lines, failure = _run(command, limit_s, {})
    return [_parse(line, fields) for line in lines], failure


def _parse(line: str, fields: Sequence[str]) -> dict[str, Any]:
    return read.fields(read.parse(line.encode(), "its report"), fields, "its report")


def _run(command: Sequence[str], limit_s: float, variables: Mapping[str, str]) -> tuple[list[str], str | None]:
    """Give the marked lines, and how the command failed; what it started is stopped with it."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=children.environment(variables),
            start_new_session=True,
        )  # fmt: skip
        try:
            child.wait(limit_s)
            failure = None if child.returncode == 0 else f"exit code {child.returncode}"
        except subprocess.TimeoutExpired:
            failure = f"it did not finish in {limit_s:.3g} s"
        finally:
            children.stop(child)
        printed, words = _text(out), " ".join(_text(err).split())[-TAIL_CHARACTERS:]
    whole = printed[: printed.rfind("\n") + 1].splitlines()  # not a line that was being written when it was stopped
    lines = [line.removeprefix(MARK) for line in whole if line.startswith(MARK)]
    return lines, f"{failure}; its last words: {words}" if failure and words else failure


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", errors="replace")


def peak_bytes(platform: str = sys.platform, status: Path = STATUS) -> Reading:
    """Read the most memory that this process has held."""
    if platform == "darwin":
        import resource

        return Reading(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "bytes")
    try:
        found = re.search(rf"^{PEAK}:\s*(\d+) ", status.read_text(), re.MULTILINE)
    except OSError as cause:
        return unread(f"{status} cannot be read: {cause.strerror}", "bytes")
    return Reading(int(found[1]) * KIB, "bytes") if found else unread(f"{status} has no {PEAK}", "bytes")
