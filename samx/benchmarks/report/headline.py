"""What a reader looks at first: devices by precisions, and how near each came to what its machine reaches at best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from samx.benchmarks.report.runs import NARROW, Entry, Run, all_entries, plain, precisions, scenarios, short, spaced
from samx.benchmarks.results import Need, Result, Roofline

SHOWN_FIRST = "click"  # what a person waits for; another scenario only where none measured it
MEGA, GIGA = 1e6, 1e9

Cell = tuple[Entry, Result]


@dataclass(frozen=True)
class Headline:
    """The table: for each run, for each column, the artifacts that belong there."""

    scenario: str
    columns: list[str]
    rows: list[tuple[Run, list[list[Cell]]]]

    @property
    def cells(self) -> list[Cell]:
        """Return the cells, row by row."""
        return [cell for _, row in self.rows for column in row for cell in column]

    @property
    def best(self) -> Cell:
        """Return the fastest cell."""
        return min(self.cells, key=lambda cell: cell[1].summary.median_ms)

    @property
    def slowest_ms(self) -> float:
        """Return the slowest cell's time."""
        return max(result.summary.median_ms for _, result in self.cells)


def headline(runs: Sequence[Run]) -> Headline | None:
    """Build the table; None where nothing was measured steadily."""
    measured, heads = scenarios(runs), precisions(runs)
    if not measured:
        return None
    scenario = SHOWN_FIRST if SHOWN_FIRST in measured else measured[0]
    cells = [(entry, result) for entry in all_entries(runs) if (result := entry.find(scenario)) is not None]
    rows = [(run, [[cell for cell in cells if cell[0].run is run and cell[0].precision == head] for head in heads])
            for run in runs]  # fmt: skip
    return Headline(scenario, heads, rows)


def title(found: Headline | None) -> str:
    """Return the most important thing in one line."""
    if found is None:
        return "No result"
    what = "a click" if found.scenario == SHOWN_FIRST else f"in {spaced(found.scenario)}"
    return f"{short(found.best[1].summary.median_ms)} ms {what}"


@dataclass(frozen=True)
class Limit:
    """One artifact's calls in one scenario beside the machine's peaks."""

    entry: Entry
    need: Need
    result: Result
    share: float  # of the time that the machine would need at best

    @property
    def adds_per_byte(self) -> float:
        """Return how many multiply-adds a call has for each byte that it needs."""
        return self.need.multiply_adds / self.need.bytes

    @property
    def adds_per_s(self) -> float:
        """Return how many multiply-adds were done a second."""
        return self.need.multiply_adds / self.result.summary.median_ms * 1e3

    @property
    def words(self) -> str:
        """Return what was reached, in words."""
        each = self.need.multiply_adds / max(self.result.prompts, 1) / MEGA
        return (f"{self.entry.name}, {spaced(plain(self.need.scenario))}: {short(each)} million a prompt, "
                f"{short(self.adds_per_s / GIGA)} G/s, {short(100 * self.share)}{NARROW}% of the roof")  # fmt: skip


def limits(run: Run, line: Roofline) -> list[Limit]:
    """Return what has a need, a steady time and known peaks."""
    entries = {entry.subject.name: entry for entry in run.entries}
    pairs = [(need, entries[need.subject].find(need.scenario)) for need in line.needs]
    return [Limit(entries[need.subject], need, result, share) for need, result in pairs
            if result is not None and (share := line.share(need, result.summary.median_ms)) is not None]  # fmt: skip


def unknown_limits(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return of which runs no peaks are known, and why."""
    return [(f"peaks of {run.key}", plain(str(line.bytes_per_s["reason"]))) for run in runs
            for line in run.report.rooflines if not limits(run, line)]  # fmt: skip
