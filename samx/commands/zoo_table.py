"""ZooTable: which checkpoints were exported for which targets and precisions, and what came of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from samx.artifacts.manifest import Level
from samx.artifacts.strict_json import Count, Document, Sha256, Time

FORMAT, SCHEMA_VERSION = "samx-zoo", 1
Outcome = Literal["passed", "failed", "refused", "not here", "broke"]
MEANINGS: Mapping[str, str] = {
    "passed": "exported, and the masks are PyTorch's within the precision's bounds",
    "failed": "the export computes something else; nothing was kept",
    "refused": "samx does not take the file, or not in this precision",
    "not here": "this machine has not what the target needs",
    "broke": "the process ended, or an error that should not be",
}
HEADINGS = ("target", "precision", "result", "mask IoU", "least", "encoder's", "MiB", "s")
MIB = 1 << 20
Key = tuple[str, str | None, str | None]  # of what was exported: the file's hash or name, target, precision


@dataclass(frozen=True)
class Row(Document):
    """Keep what came of one file, or of one export of it."""

    file: str  # below the folder
    sha256: Sha256 | None  # None: it could not be read
    taken_for: str | None
    encoder: str | None  # its architecture, where one was exported
    target: str | None
    precision: str | None
    outcome: Outcome
    reason: str | None
    levels: tuple[Level, ...]
    metrics: Mapping[str, float]  # the worst of each; an encoder's begin with "encoder, "
    bytes: Count | None
    seconds: float
    tools: Mapping[str, str]
    machine: Mapping[str, str]
    created: Time

    @property
    def key(self) -> Key:
        """Name what is not done again."""
        return self.sha256 or self.file, self.target, self.precision


@dataclass(frozen=True)
class ZooTable(Document):
    """Keep rows, and the export that is under way, if it did not end."""

    HEADER = {"format": FORMAT, "schema_version": SCHEMA_VERSION}

    rows: tuple[Row, ...] = ()
    under_way: Row | None = None

    def has(self, key: Key, version: str) -> bool:
        """Tell whether this samx did an export, and has nothing to gain from another try."""
        return any(row.key == key and row.machine["samx"] == version and row.outcome != "not here" for row in self.rows)

    def with_row(self, row: Row) -> ZooTable:
        """Add a row, in the place of an earlier one of the same export."""
        kept = [one for one in self.rows if one.key != row.key]
        return ZooTable(tuple(sorted([*kept, row], key=_order)))

    def begin(self, row: Row) -> ZooTable:
        """Note an export before it begins: what ends the process does not end it again."""
        return replace(self, under_way=row)

    def count(self) -> dict[str, int]:
        """Count the rows by outcome."""
        return {outcome: sum(row.outcome == outcome for row in self.rows) for outcome in MEANINGS}

    def to_markdown(self) -> str:
        """Write the rows file by file, and what ran where."""
        parts = [_of_file(list(rows)) for _, rows in groupby(self.rows, lambda row: row.file)]
        machines = {_machine(row): None for row in self.rows}
        said = ", ".join(f"{count} {outcome}" for outcome, count in self.count().items() if count)
        return "\n\n".join([f"{said}. Ran on: {'; '.join(machines)}.", *parts]) + "\n"


def _order(row: Row) -> tuple[str, ...]:
    return row.file, row.target or "", row.precision or ""


def _machine(row: Row) -> str:
    facts = row.machine
    return f"{facts['cpu']} ({facts['machine']}), samx {facts['samx']}, {row.created[:10]}"


def _of_file(rows: list[Row]) -> str:
    first = rows[0]
    encoder = next((row.encoder for row in rows if row.encoder), None)
    title = f"### {first.file}"
    if first.target is None:
        return f"{title}\n\n{first.outcome}: {first.reason}"
    kind = f"{first.taken_for}; image encoder: {encoder or 'none was exported'}; sha256 {(first.sha256 or '')[:12]}"
    lines = [_line(HEADINGS), _line(["---"] * len(HEADINGS)), *(_line(_cells(row)) for row in rows)]
    reasons = [f"- {row.target}, {row.precision}: {row.reason}" for row in rows if row.reason]
    return "\n".join([title, "", kind, "", *lines, *(["", *reasons] if reasons else [])])


def _cells(row: Row) -> list[str]:
    shown = [row.metrics.get(name) for name in ("mask_iou_mean", "mask_iou_min", "encoder, mask_iou_mean")]
    levels = f" ({', '.join(row.levels)})" if row.levels else ""
    size = "" if row.bytes is None else f"{row.bytes / MIB:.1f}"
    metrics = ["" if value is None else f"{value:.4f}" for value in shown]
    return [row.target or "", row.precision or "", row.outcome + levels, *metrics, size, f"{row.seconds:.0f}"]


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
