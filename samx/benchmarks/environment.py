"""What surrounds a measurement: the machine, other work on it, libraries; and processes of their own to measure in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import samx
from samx.artifacts import strict_json as read
from samx.devices import cpu
from samx.devices.adapter import Reading, unread
from samx.devices.files import Tree
from samx.errors import SamxError
from samx.validators.report import environment

LIBRARIES = ("onnxruntime", "torch", "onnx", "segment-anything")
UNKNOWN = "unknown"
HERE = Tree()
STATUS = Path("/proc/self/status")
PEAK = "VmHWM"  # of this program alone: getrusage on Linux keeps the peak of the process that started it
KIB = 1024
TIMEOUT_S = 1800.0
TAIL_CHARACTERS = 300  # of the child's last words, in an error line
MARK = "samx-measured:"  # begins the one line that is read; libraries print what they like


def benchmark_environment(tree: Tree = HERE) -> dict[str, str]:
    """Describe this machine and its state, in words."""
    load = cpu.load_1min(tree, is_mac=sys.platform == "darwin")
    return {
        **environment(),
        "isa": " ".join(cpu.isa(tree)) or UNKNOWN,
        "governor": _words(cpu.governor(tree)),
        "cpus_usable": str(cpu.usable_cpus()),
        "load_1min": _words(load),
        **{library: _version(library) for library in LIBRARIES},
    }


def busy(facts: Mapping[str, str]) -> bool:
    """Tell whether something else was running when the environment was read."""
    if facts["load_1min"] == UNKNOWN:
        return False
    return cpu.busy(float(facts["load_1min"]), int(facts["cpus_usable"]))


def _words(reading: Reading) -> str:
    return UNKNOWN if reading.value is None else str(reading.value)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


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


def print_report(found: Mapping[str, Any]) -> None:
    """Print in the child what was measured."""
    print(MARK + json.dumps(found))  # noqa: T201 - this is how it answers


def report_of(command: Sequence[str], fields: Sequence[str], variables: Mapping[str, str] | None = None) -> Any:
    """Run a command with more environment variables, and read its report with these fields.

    Raises: SamxError naming how it ended when it did not report.
    """
    paths = [str(Path(samx.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(variables or {})}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=surroundings,
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
