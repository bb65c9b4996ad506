"""Write what gates an export in a repository of the user's: a script with the steps, and a workflow that calls it."""

from __future__ import annotations

import re
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

from samx import __version__
from samx.artifacts.commit import write_file
from samx.errors import UsageError, WriteError
from samx.files import ShellTemplate
from samx.processing.images import check_free
from samx.registry import DEFAULT_TARGET, GRAPH_DEVICE, Backend, backend

SCRIPT, WORKFLOW = "samx-ci.sh", ".github/workflows/samx.yml"
WHEEL = "wheels/samx-*.whl"
BRANCH = re.compile(r"[\w][\w./-]*", re.ASCII)


def init_ci(
    repository: Path, checkpoint: Path | None = None, *, target: str = DEFAULT_TARGET, precision: str | None = None,
    wheel: str | None = None, branch: str = "main", overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write both files, or neither where one is there already; return them with what to do next.

    checkpoint: in the repository; None: the demo model. wheel: where samx's wheel lies in it, a pattern.
    Raises: UsageError, WriteError.
    """
    entry = backend(target)
    precision = precision or entry.default_precision
    entry.check_precision(precision)
    if not repository.is_dir():
        raise UsageError("there is no such repository", found=f"'{repository}'", expected="a folder")
    if not BRANCH.fullmatch(branch):
        raise UsageError("this is no branch's name", found=repr(branch), expected="letters, digits and . / - _")
    values = {
        "checkpoint": shlex.quote(_inside(checkpoint, repository)), "target": target, "precision": precision,
        "wheel": shlex.quote(wheel or WHEEL), "branch": branch, "extras": ",".join(_extras(entry)),
        "measured": "yes" if entry.graph is None else "no",
    }  # fmt: skip
    written = {repository / name: _filled(Path(name).name, values) for name in (SCRIPT, WORKFLOW)}
    for path in written:
        check_free(path, overwrite)
    try:
        (repository / WORKFLOW).parent.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise WriteError(f"cannot make the folder of '{repository / WORKFLOW}'", found=cause.strerror) from cause
    for path, text in written.items():
        write_file(path, text.encode())
    next_step = (
        f"Put samx's wheel at '{wheel or WHEEL}' ('make wheel' builds it), try 'bash {SCRIPT}', then commit them."
    )
    return {
        "files": [str(path) for path in written], "samx": __version__,
        "summary": f"Wrote {' and '.join(map(str, written))}. {next_step}",
    }  # fmt: skip


def _inside(checkpoint: Path | None, repository: Path) -> str:
    """Return a checkpoint's path as the script names it; empty for the demo model.

    Raises: UsageError for one that the repository does not hold.
    """
    if checkpoint is None:
        return ""
    found, root = checkpoint.resolve(), repository.resolve()
    if not found.exists() or not found.is_relative_to(root):
        raise UsageError(
            "the checkpoint is not in the repository", found=f"'{checkpoint}'", expected=f"a file below '{repository}'",
            fix="Put it there (Git LFS holds large files), or set CHECKPOINT where the script runs.",
        )  # fmt: skip
    return found.relative_to(root).as_posix()


def _extras(entry: Backend) -> list[str]:
    """List what samx is installed with: what exports, and what runs the target or its graph."""
    return sorted({"export", entry.extra, entry.runner(GRAPH_DEVICE).extra})


def _filled(name: str, values: dict[str, str]) -> str:
    return ShellTemplate((files("samx.commands") / "templates" / name).read_text(encoding="utf-8")).substitute(values)
