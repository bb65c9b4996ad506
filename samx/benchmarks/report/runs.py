"""The reports that are shown, each with the letter that the page calls it by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase

from samx.benchmarks.report.doubts import Doubt, doubts
from samx.benchmarks.report.words import elide, plain
from samx.benchmarks.results import BenchReport, Result, SubjectRecord
from samx.benchmarks.scenarios import NAMES
from samx.errors import InputError

UNKNOWN = "unknown"
DEVICE_CHARACTERS = 60
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class Run:
    """Hold a report and how it is called."""

    key: str
    path: Path
    report: BenchReport

    @cached_property
    def device(self) -> str:
        """Name the device; `unknown` where it did not tell."""
        return elide(plain(device_name(self.report)), DEVICE_CHARACTERS)

    @cached_property
    def doubts(self) -> list[Doubt]:
        """What makes its numbers doubtful."""
        return doubts(self.report)

    @cached_property
    def entries(self) -> list[Entry]:
        """The artifacts that were measured."""
        return [Entry(self, subject) for subject in self.report.subjects]


@dataclass(frozen=True)
class Entry:
    """Hold an artifact in a run."""

    run: Run
    subject: SubjectRecord

    @property
    def precision(self) -> str:
        """Name its precision, which gives it its colour and its column."""
        return plain(self.subject.precision)

    @property
    def kind(self) -> str:
        """Name its backend and precision."""
        return f"{plain(self.subject.target)} {self.precision}"

    @cached_property
    def name(self) -> str:
        """Name it within its run: by its kind, or where two are of one, by its directory."""
        alike = sum(other.kind == self.kind for other in self.run.entries)
        return self.kind if alike == 1 else plain(self.subject.name)

    @property
    def label(self) -> str:
        """Name it among all runs."""
        return f"{self.run.key} \u00b7 {self.name}"

    def find(self, scenario: str, phase: str = "steady") -> Result | None:
        """Look one of its results up."""
        return self.run.report.find(self.subject.name, scenario, phase)

    def results(self) -> list[Result]:
        """Give its results."""
        return [result for result in self.run.report.results if result.subject == self.subject.name]


def device_name(report: BenchReport) -> str:
    """Name what was measured on: the first device of the telemetry that knows its name."""
    names = (str(kind["name"]) for kind in report.device.kinds.values())
    return next((name for name in names if name != UNKNOWN), UNKNOWN)


def load_runs(paths: Sequence[Path], baseline: Path | None = None) -> tuple[tuple[Run, ...], Run | None]:
    """Read reports, and the one to compare with.

    Raises: ArtifactError for one that cannot be read; InputError for the same one twice.
    """
    named = [*paths, *([] if baseline is None else [baseline])]
    reports = [BenchReport.load(path) for path in named]
    _refuse_repeats(named, reports)
    runs = tuple(Run(_letter(i), path, reports[i]) for i, path in enumerate(paths))
    return runs, None if baseline is None else Run("baseline", baseline, reports[-1])


def all_entries(runs: Sequence[Run]) -> list[Entry]:
    """Give the artifacts of all runs."""
    return [entry for run in runs for entry in run.entries]


def precisions(runs: Sequence[Run]) -> list[str]:
    """Give the precisions in the order in which they are shown, the most exact first."""
    return sorted({entry.precision for entry in all_entries(runs)}, key=_rank)


def scenarios(runs: Sequence[Run], phase: str = "steady") -> list[str]:
    """Give the scenarios that any run measured, in the order of the table of scenarios."""
    found = {result.scenario for run in runs for result in run.report.results if result.phase == phase}
    return sorted(found, key=lambda name: (NAMES.index(name) if name in NAMES else len(NAMES), name))


def _refuse_repeats(paths: Sequence[Path], reports: Sequence[BenchReport]) -> None:
    for i, j in _pairs(len(paths)):
        if reports[i] == reports[j]:
            raise InputError(
                "the same report was given twice", found=f"'{paths[i]}' and '{paths[j]}'", expected="different runs",
                fix="Name each report once, and another run as the baseline.",
            )  # fmt: skip


def _pairs(count: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for j in range(count) for i in range(j))


def _letter(index: int) -> str:
    return ascii_uppercase[index] if index < len(ascii_uppercase) else f"R{index + 1}"


def _rank(precision: str) -> tuple[int, str]:
    return (PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS), precision)
