"""Export each checkpoint of a folder for every target and precision, judge it, and keep a table of what came of it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import samx
from samx.artifacts.commit import write_file
from samx.artifacts.manifest import utc_now
from samx.commands.export import ExportRequest, ExportResult, export
from samx.commands.zoo_table import Outcome, Row, ZooTable
from samx.errors import ArtifactError, ParityError, SamxError, UnavailableError, UsageError, WriteError
from samx.extras import require_export
from samx.files import read_file
from samx.progress import Progress, silent
from samx.registry import BACKENDS, backend
from samx.validators.report import environment

TABLE, PAGE, WORK = "zoo.json", "zoo.md", ".work"
TABLE_CAP_BYTES = 1 << 26
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".h5")
HUGGING_FACE = "config.json"  # what a folder with weights has that is one model
BROKE_OFF = "The process ended while this was exported: not enough memory, or it was stopped."
FAILED = "some exports do not compute what PyTorch computes"


def zoo(
    folder: Path, out: Path, targets: Sequence[str] = (), precisions: Sequence[str] = (), again: bool = False,
    progress: Progress = silent,
) -> ZooTable:  # fmt: skip
    """Fill a table, export by export; what it has is not done again.

    targets, precisions: none: all that there are. again: do what was asked anew; other rows stay.
    Raises: UsageError for a folder without checkpoints, and for unknown names; ArtifactError for another table.
    """
    require_export("zoo")
    wanted, files = _wanted(targets, precisions), checkpoints(folder)
    if not files:
        raise UsageError(
            f"no checkpoint in '{folder}'", expected=f"files that end in {', '.join(SUFFIXES)}",
            fix="Name the folder that holds them.",
        )  # fmt: skip
    keeper = _Keeper(out)
    for number, file in enumerate(files):
        name = str(file.relative_to(folder))
        progress(f"Reading {name}", number, len(files))
        read = _recognised(file, name)
        if read.outcome == "refused":
            keeper.keep(read)
            continue
        for target, precision in wanted:
            row = replace(read, target=target, precision=precision)
            if again or not keeper.table.has(row.key, samx.__version__):
                progress(f"{name} for {target}, {precision}", number, len(files))
                keeper.run(row, partial(_export, file, row, out / WORK))
    return keeper.table


def require_passed(table: ZooTable) -> None:
    """Raise ParityError where an export computed something else."""
    wrong = [f"{row.file} for {row.target}, {row.precision}" for row in table.rows if row.outcome == "failed"]
    if wrong:
        raise ParityError(FAILED, found=", ".join(wrong), fix="The table says what differs.")


def checkpoints(folder: Path) -> list[Path]:
    """List weight files below a folder, and folders that hold one model, in the order of their names.

    Raises: UsageError where there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError("no such folder", found=f"'{folder}'", expected="a folder with checkpoints")
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders.sort()
        weights = [name for name in names if name.lower().endswith(SUFFIXES)]
        if weights and HUGGING_FACE in names:
            yield Path(here)
        else:
            yield from (Path(here, name) for name in weights)


def _wanted(targets: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    entries = [backend(target) for target in targets] or list(BACKENDS)
    known = {name for entry in entries for name in entry.precisions}
    unknown = [name for name in precisions if name not in known]
    if unknown:
        raise UsageError("no target has this precision", found=", ".join(unknown), expected=" or ".join(sorted(known)))
    return [(one.target, name) for one in entries for name in one.precisions if name in precisions or not precisions]


def _recognised(file: Path, name: str) -> Row:
    """Say what samx takes a file for; a file that it does not take has no other row than this."""
    from samx.models.checkpoint import load_checkpoint

    row = Row(name, None, None, None, None, None, "broke", None, (), {}, None, 0.0, {}, environment(), utc_now())
    try:
        loaded = load_checkpoint(file)
    except SamxError as error:
        return replace(row, outcome="refused", reason=str(error))
    spec = loaded.spec
    return replace(row, sha256=loaded.sha256, taken_for=f"{loaded.kind} ({spec.image_size} px, {loaded.dtype})")


def _export(file: Path, row: Row, out: Path) -> ExportResult:
    assert row.target is not None
    return export(ExportRequest(out, file, target=row.target, precision=row.precision, overwrite=True))


class _Keeper:
    """Keep the table on disk, up to date with every export."""

    def __init__(self, out: Path) -> None:
        self.out = out
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise WriteError(f"cannot make the folder '{out}'", found=cause.strerror) from cause
        path = out / TABLE
        if not path.exists() and any(out.iterdir()):
            raise WriteError(
                f"'{out}' holds other files", expected=f"a new folder, or one with {TABLE}",
                fix="Name another: --output.",
            )  # fmt: skip
        found = None if not path.exists() else ZooTable.from_bytes(
            read_file(path, TABLE_CAP_BYTES, f"table '{path}'", ArtifactError), str(path)
        )  # fmt: skip
        self.table = found or ZooTable()
        if self.table.under_way is not None:
            self.keep(replace(self.table.under_way, outcome="broke", reason=BROKE_OFF))

    def keep(self, row: Row) -> None:
        """Add a row."""
        self._write(self.table.with_row(row))

    def run(self, row: Row, work: Callable[[], ExportResult]) -> None:
        """Export, and keep what came of it. An interruption leaves no row."""
        self._write(self.table.begin(row))
        begin = time.monotonic()
        try:
            found = _done(row, work())
        except KeyboardInterrupt:
            self._write(replace(self.table, under_way=None))
            raise
        except Exception as error:  # other people's compilers raise nearly anything; the next export may do
            found = replace(row, outcome=_outcome(error), reason=_reason(error), metrics=_metrics(error))
        finally:
            shutil.rmtree(self.out / WORK, ignore_errors=True)
        self.keep(replace(found, seconds=round(time.monotonic() - begin, 1), created=utc_now()))

    def _write(self, table: ZooTable) -> None:
        self.table = table
        write_file(self.out / TABLE, table.to_bytes())
        write_file(self.out / PAGE, table.to_markdown().encode())


def _done(row: Row, result: ExportResult) -> Row:
    manifest = result.manifest
    return replace(
        row, outcome="passed", levels=tuple(dict.fromkeys(one.level for one in manifest.evidence)),
        encoder=None if manifest.encoder is None else manifest.encoder.architecture, metrics=_worst(result.report),
        bytes=sum(file.bytes for file in manifest.files.values()), tools=dict(manifest.tools),
    )  # fmt: skip


def _outcome(error: Exception) -> Outcome:
    kinds: dict[type[Exception], Outcome] = {ParityError: "failed", UnavailableError: "not here", SamxError: "refused"}
    return next((outcome for kind, outcome in kinds.items() if isinstance(error, kind)), "broke")


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if isinstance(error, SamxError) else f"{type(error).__name__}: {words}"


def _metrics(error: Exception) -> dict[str, float]:
    report: Any = getattr(error, "report", None)
    return {} if report is None else _worst(report)


def _worst(report: Any) -> dict[str, float]:
    return {
        f"{prefix}{name}": float(value)
        for prefix, part in report.parts().items()
        for name, (value, _) in part.worst().items()
        if isfinite(value)
    }
