"""How near each artifact came to what its machine reaches at best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from samx.benchmarks.report.details import Gap
from samx.benchmarks.report.runs import Entry, Run
from samx.benchmarks.report.words import NARROW, plain, short, spaced
from samx.benchmarks.results import Need, Result, Roofline

MEGA = 1e6


@dataclass(frozen=True)
class Limit:
    """Hold one artifact's calls in one scenario beside the machine's peaks."""

    entry: Entry
    need: Need
    result: Result
    roofline: Roofline
    share: float  # of the time that the machine would need at best

    @property
    def adds_per_byte(self) -> float:
        """How many multiply-adds a call has for each byte that it needs."""
        return self.need.multiply_adds / self.need.bytes

    @property
    def adds_per_s(self) -> float:
        """How many multiply-adds were done a second."""
        return self.need.multiply_adds / self.result.summary.median_ms * 1e3

    @property
    def words(self) -> str:
        """Say what was reached."""
        each = self.need.multiply_adds / max(self.result.prompts, 1) / MEGA
        return (f"{self.entry.name}, {spaced(plain(self.need.scenario))}: {short(each)} million a prompt, "
                f"{short(self.adds_per_s / 1e9)} G/s, {short(100 * self.share)}{NARROW}% of the roof")  # fmt: skip


def limits(run: Run) -> list[Limit]:
    """Give what has a need, a steady time and known peaks."""
    line, entries = run.report.roofline, {entry.subject.name: entry for entry in run.entries}
    found = []
    for need in () if line is None else line.needs:
        entry = entries[need.subject]
        result = entry.find(need.scenario)
        share = None if result is None or line is None else line.share(need, result.summary.median_ms)
        if result is not None and line is not None and share is not None:
            found.append(Limit(entry, need, result, line, share))
    return found


def unknown(runs: Sequence[Run]) -> list[Gap]:
    """Say of which runs no peaks are known, and why."""
    return [Gap(f"peaks of {run.key}", plain(str(line.bytes_per_s["reason"]))) for run in runs
            if (line := run.report.roofline) is not None and not limits(run)]  # fmt: skip
