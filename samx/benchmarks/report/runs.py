"""The reports that are shown: their names, what makes them doubtful, and how people read numbers and names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import floor, isfinite, log10
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from samx.benchmarks.results import BenchReport, Result, SubjectRecord
from samx.benchmarks.scenarios import NAMES
from samx.benchmarks.summary import NOISY_SPREAD, P90_SAMPLES, P99_SAMPLES, UNSTABLE_DRIFT
from samx.errors import InputError

UNKNOWN = "unknown"
DEVICE_CHARACTERS = 60
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
MEAN_IOU, LEAST_IOU = "mask_iou_mean", "mask_iou_min"

INFORMATION = "information: "
# Kind of doubt, the words that a flag of it has, and whether it may be all that a slowdown is, so that none is called a
# regression. The first whose words occur holds; a flag that none knows is doubtful, and excuses.
DOUBTS = (
    ("information", f"^{INFORMATION}", False),
    ("throttled", "held down|slowed down|slows the chip down|slower clocks|thermal|lowered the", True),
    ("throttled", "CPU limit of this container stopped", True),
    ("busy", "was busy", True),
    ("busy", "other virtual machines", False),  # seldom for long
    ("lost", "stopped answering|did not answer", True),
    ("doubtful", "", True),
)
MEANINGS = {
    "noisy": f"the middle half of the calls spreads over more than {NOISY_SPREAD:.0%} of the median",
    "unstable": f"the second half of the calls differs by more than {UNSTABLE_DRIFT:.0%} and chance",
}

Doubt = Mapping[str, Any]  # why numbers are doubtful: kind, text, whether it excuses a slowdown, and is grave
NARROW = "\u202f"  # space inside a number
NO_VALUE = "n/a"
KEPT = (" ", NARROW)
ISO = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)\S*\+00:00$")
MIB = 1024 * 1024
WHY_NO_PERCENTILE = {
    "p90": f"a p90 needs {P90_SAMPLES} calls or more",
    "p99": f"a p99 needs {P99_SAMPLES} calls or more",
}


@dataclass(frozen=True)
class Run:
    """A report and how it is called."""

    key: str
    path: Path
    report: BenchReport

    @cached_property
    def device(self) -> str:
        """Return the device's name; `unknown` where it did not tell."""
        return elide(plain(device_name(self.report)), DEVICE_CHARACTERS)

    @cached_property
    def doubts(self) -> list[Doubt]:
        """Return what makes its numbers doubtful."""
        return doubts(self.report)

    @property
    def grave_kinds(self) -> list[str]:
        """Return the kinds of doubt about the whole run."""
        return list(dict.fromkeys(doubt["kind"] for doubt in self.doubts if doubt["grave"]))

    @cached_property
    def entries(self) -> list[Entry]:
        """Return the artifacts that were measured."""
        return [Entry(self, subject) for subject in self.report.subjects]

    @property
    def command(self) -> str:
        """Return the command that measures the same again."""
        return shlex.join(self.report.command)


@dataclass(frozen=True)
class Entry:
    """An artifact in a run."""

    run: Run
    subject: SubjectRecord

    @property
    def precision(self) -> str:
        """Return its precision, which gives it its colour and its column."""
        return plain(self.subject.precision)

    @property
    def kind(self) -> str:
        """Return its backend and precision."""
        return f"{plain(self.subject.target)} {self.precision}"

    @cached_property
    def name(self) -> str:
        """Return its name within its run: its kind, or where two are of one, its directory."""
        alike = sum(other.kind == self.kind for other in self.run.entries)
        return self.kind if alike == 1 else plain(self.subject.name)

    @property
    def label(self) -> str:
        """Return its name among all runs."""
        return f"{self.run.key} \u00b7 {self.name}"

    @property
    def results(self) -> list[Result]:
        """Return its results."""
        return [result for result in self.run.report.results if result.subject == self.subject.name]

    @property
    def steady(self) -> list[Result]:
        """Return its results of calls that are repeated in one process."""
        return [result for result in self.results if result.phase == "steady" and result.peak_bytes is None]

    @property
    def fastest(self) -> Result | None:
        """Return the result with the most prompts a second."""
        return max(self.steady, key=lambda result: result.prompts_per_second or 0, default=None)

    @property
    def placement(self) -> str:
        """Return where its operations ran, in words."""
        found = self.subject.placement
        return "nothing ran" if found is None else plain(places(found.get("operations")))

    @property
    def proof(self) -> tuple[str, str]:
        """Return how far masks agree with PyTorch's: the mean, and the worst."""
        found = self.subject.parity.metrics
        mean, worst = (share(found[name]) if name in found else NO_VALUE for name in (MEAN_IOU, LEAST_IOU))
        return mean, worst

    @property
    def agreement(self) -> str:
        """Return how far masks agree with PyTorch's, in words."""
        return ", worst ".join(self.proof)

    def find(self, scenario: str, phase: str = "steady") -> Result | None:
        """Return one of its results."""
        return self.run.report.find(self.subject.name, scenario, phase)

    def chips(self, result: Result) -> list[str]:
        """Return the warnings about its run and one of its results."""
        return list(dict.fromkeys([*self.run.grave_kinds, *result.flags]))


def device_name(report: BenchReport) -> str:
    """Return the name of the first device of the telemetry that knows its name."""
    names = (str(kind["name"]) for kind in report.device.kinds.values())
    return next((name for name in names if name != UNKNOWN), UNKNOWN)


def load_runs(paths: Sequence[Path], baseline: Path | None = None) -> tuple[tuple[Run, ...], Run | None]:
    """Read reports, and the one to compare with.

    Raises: ArtifactError for one that cannot be read; InputError for the same one twice.
    """
    found = [(path, BenchReport.load(path)) for path in (*paths, *([] if baseline is None else [baseline]))]
    for (one, report), (other, same) in combinations(found, 2):
        if report == same:
            raise InputError(
                "the same report was given twice", found=f"'{one}' and '{other}'", expected="different runs",
                fix="Name each report once, and another run as the baseline.",
            )  # fmt: skip
    keys = [*ascii_uppercase, *(f"R{i + 1}" for i in range(len(ascii_uppercase), len(paths)))]
    runs = tuple(Run(key, *one) for key, one in zip(keys[: len(paths)], found[: len(paths)], strict=True))
    return runs, None if baseline is None else Run("baseline", *found[-1])


def all_entries(runs: Sequence[Run]) -> list[Entry]:
    """Return the artifacts of all runs."""
    return [entry for run in runs for entry in run.entries]


def precisions(runs: Sequence[Run]) -> list[str]:
    """Return the precisions in the order in which they are shown, the most exact first."""
    return sorted({entry.precision for entry in all_entries(runs)}, key=lambda name: _rank(PRECISIONS, name))


def scenarios(runs: Sequence[Run], phase: str = "steady") -> list[str]:
    """Return the scenarios that any run measured, in the order of the table of scenarios."""
    found = {result.scenario for run in runs for result in run.report.results if result.phase == phase}
    return sorted(found, key=lambda name: _rank(NAMES, name))


def _rank(order: Sequence[str], name: str) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


def sort_flag(flag: str) -> Doubt:
    """Return the doubt that a flag about a device raises."""
    kind, excuses = next((kind, excuses) for kind, words, excuses in DOUBTS if re.search(words, flag))
    return _doubt(kind, flag.removeprefix(INFORMATION), excuses)


def _doubt(kind: str, text: str, excuses: bool = False) -> Doubt:
    """Make a doubt; a grave one has to be known before any number is read."""
    return {"kind": kind, "text": text, "excuses": excuses, "grave": excuses or kind == "busy"}


def doubts(report: BenchReport) -> list[Doubt]:
    """Return what makes a report doubtful, the gravest first."""
    partial = [] if report.partial is None else [f"the run ended before its end: {report.partial}"]
    found = [
        *(_doubt("partial", text, excuses=True) for text in partial),
        *map(sort_flag, report.device.flags),
        *(_doubt("note", flag) for flag in report.flags),
        *_of_results(report),
    ]
    return sorted(found, key=lambda doubt: (doubt["kind"] == "information", not doubt["excuses"]))


def _of_results(report: BenchReport, most: int = 4) -> Iterator[Doubt]:
    for name, meaning in MEANINGS.items():
        where = [f"{result.subject} {where_of(result.scenario, result.phase)}"
                 for result in report.results if name in result.flags]  # fmt: skip
        more = f" and {len(where) - most} more" if len(where) > most else ""
        if where:
            text = f"{meaning} ({len(where)} of {len(report.results)} results: {', '.join(where[:most])}{more})"
            yield _doubt(name, text)


def short(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, without an exponent."""
    if not isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = max(digits - 1 - floor(log10(abs(value))), 0)
    return f"{value:,.{decimals}f}".replace(",", NARROW)


def share(value: float) -> str:
    """Return an agreement between 0 and 1, cut and not rounded: only 1 itself reads 1.0000."""
    return f"{floor(value * 10_000) / 10_000:.4f}" if isfinite(value) else f"{value:g}"


def percent(ratio: float) -> str:
    """Return a ratio as what it adds: 1.1 is +10.0 %."""
    return f"{(ratio - 1) * 100:+.1f}{NARROW}%".replace("-", "\u2212")


def times(value: float) -> str:
    """Return how many times as fast."""
    return f"{short(value)}\u00d7"


def plain(text: str) -> str:
    """Take out of somebody's text what is no visible character, such as control characters and half surrogates."""
    return "".join(letter if letter.isprintable() or letter in KEPT else "?" for letter in text)


def elide(text: str, most: int) -> str:
    """Cut a long name in its middle, since names differ at their ends."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}\u2026{text[-tail:]}"


def when(created: str) -> str:
    """Return a time in UTC as a date and a time of day."""
    return ISO.sub(r"\1 \2 UTC", created)


def spaced(name: str) -> str:
    """Return a name of the schema as words."""
    return name.replace("_", " ")


def where_of(scenario: str, phase: str) -> str:
    """Return a scenario with its phase, where that is not the usual one."""
    return scenario if phase == "steady" else f"{scenario} {spaced(phase)}"


def places(operations: object) -> str:
    """Return how many operations ran where, in words."""
    found = operations if isinstance(operations, dict) else {}
    return ", ".join(f"{count} on {place}" for place, count in found.items()) or "not told"
