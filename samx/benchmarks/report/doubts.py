"""What makes numbers doubtful, sorted by how much."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from samx.benchmarks.results import BenchReport, Result
from samx.benchmarks.summary import NOISY_SPREAD, UNSTABLE_DRIFT

INFORMATION = "information: "
BUSY, PARTIAL = "busy", "partial"


@dataclass(frozen=True)
class Kind:
    """Name a kind of doubt; one that `excuses` may be all that a slowdown is, so that none is called a regression."""

    name: str
    pattern: re.Pattern[str]
    excuses: bool


# The first whose words occur in a flag holds; what none knows is doubtful, and excuses.
KINDS = (
    Kind("information", re.compile(f"^{INFORMATION}"), excuses=False),
    Kind("throttled", re.compile("held down|slowed down|slows the chip down|slower clocks|thermal|lowered the"), True),
    Kind("throttled", re.compile("CPU limit of this container stopped"), excuses=True),
    Kind(BUSY, re.compile("was busy"), excuses=True),
    Kind(BUSY, re.compile("other virtual machines"), excuses=False),  # seldom for long
    Kind("lost", re.compile("stopped answering|did not answer"), excuses=True),
)
OTHER = Kind("doubtful", re.compile(""), excuses=True)
MEANINGS = {
    "noisy": f"the middle half of the calls spreads over more than {NOISY_SPREAD:.0%} of the median",
    "unstable": f"the second half of the calls differs by more than {UNSTABLE_DRIFT:.0%} and chance",
}


@dataclass(frozen=True)
class Doubt:
    """Say in plain words why numbers are doubtful."""

    kind: str
    text: str
    excuses: bool = False

    @property
    def grave(self) -> bool:
        """Whether a reader has to know it before any number."""
        return self.excuses or self.kind == BUSY


def sort_flag(flag: str) -> Doubt:
    """Tell what kind of doubt a flag about a device raises."""
    kind = next((kind for kind in KINDS if kind.pattern.search(flag)), OTHER)
    return Doubt(kind.name, flag.removeprefix(INFORMATION), kind.excuses)


def doubts(report: BenchReport) -> list[Doubt]:
    """Collect what makes a report doubtful, the gravest first."""
    found = [*_partial(report), *map(sort_flag, report.device.flags), *(_of_report(flag) for flag in report.flags)]
    found += _of_results(report)
    return sorted(found, key=lambda doubt: (doubt.kind == "information", not doubt.excuses))


def _partial(report: BenchReport) -> Iterator[Doubt]:
    if report.partial is not None:
        yield Doubt(PARTIAL, f"the run ended before its end: {report.partial}", excuses=True)


def _of_report(flag: str) -> Doubt:
    return Doubt("note", flag)


def _of_results(report: BenchReport) -> Iterator[Doubt]:
    for name, meaning in MEANINGS.items():
        where = [_place(result) for result in report.results if name in result.flags]
        if where:
            yield Doubt(name, f"{meaning} ({len(where)} of {len(report.results)} results: {_list(where)})")


def _place(result: Result) -> str:
    phase = "" if result.phase == "steady" else f" {result.phase.replace('_', ' ')}"
    return f"{result.subject} {result.scenario}{phase}"


def _list(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
