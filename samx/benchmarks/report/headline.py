"""Devices by precisions: the table that a reader looks at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from samx.benchmarks.report.runs import Entry, Run, all_entries, precisions, scenarios
from samx.benchmarks.report.words import NO_VALUE, share, short, spaced
from samx.benchmarks.results import Result

SHOWN_FIRST = "click"  # what a person waits for; another scenario only where none measured it
MEAN_IOU, LEAST_IOU = "mask_iou_mean", "mask_iou_min"


@dataclass(frozen=True)
class Cell:
    """Hold what stands of one artifact in the table."""

    entry: Entry
    result: Result
    fastest: Result | None  # the one with the most prompts a second
    share_of_slowest: float

    @property
    def chips(self) -> list[str]:
        """Warn of this artifact's result and of its run."""
        return list(dict.fromkeys([*graver(self.entry.run), *self.result.flags]))


@dataclass(frozen=True)
class Headline:
    """Hold the table: for each run, for each column, the artifacts that belong there."""

    scenario: str
    columns: list[str]
    rows: list[tuple[Run, list[list[Cell]]]]

    @property
    def best(self) -> Cell | None:
        """The fastest cell."""
        cells = [cell for _, row in self.rows for column in row for cell in column]
        return min(cells, key=lambda cell: cell.result.summary.median_ms, default=None)


def headline(runs: Sequence[Run]) -> Headline | None:
    """Build the table; None where nothing was measured steadily."""
    measured = scenarios(runs)
    if not measured:
        return None
    scenario = SHOWN_FIRST if SHOWN_FIRST in measured else measured[0]
    medians = [found.summary.median_ms for entry in all_entries(runs) if (found := entry.find(scenario))]
    heads = precisions(runs)
    rows = [(run, [_cells(run, column, scenario, max(medians)) for column in heads]) for run in runs]
    return Headline(scenario, heads, rows)


def title(found: Headline | None) -> str:
    """Say the most important thing in one line."""
    best = None if found is None else found.best
    if found is None or best is None:
        return "No result"
    what = "a click" if found.scenario == SHOWN_FIRST else f"in {spaced(found.scenario)}"
    return f"{short(best.result.summary.median_ms)} ms {what}"


def graver(run: Run) -> list[str]:
    """Name the kinds of doubt about a whole run."""
    return list(dict.fromkeys(doubt.kind for doubt in run.doubts if doubt.grave))


def proof(entry: Entry) -> tuple[str, str]:
    """Give how far masks agree with PyTorch's: the mean, and the worst."""
    found = entry.subject.parity.metrics
    mean, worst = (share(found[name]) if name in found else NO_VALUE for name in (MEAN_IOU, LEAST_IOU))
    return mean, worst


def agreement(entry: Entry) -> str:
    """Say how far masks agree with PyTorch's."""
    mean, worst = proof(entry)
    return f"{mean}, worst {worst}"


def _cells(run: Run, column: str, scenario: str, slowest: float) -> list[Cell]:
    entries = [entry for entry in run.entries if entry.precision == column]
    return [Cell(entry, result, _fastest(entry), result.summary.median_ms / slowest)
            for entry in entries if (result := entry.find(scenario))]  # fmt: skip


def _fastest(entry: Entry) -> Result | None:
    steady = [result for result in entry.results() if result.phase == "steady" and result.peak_bytes is None]
    return max(steady, key=lambda result: result.prompts_per_second or 0, default=None)
