"""Make of benchmark reports what people look at, and compare them with a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samx.artifacts.commit import write_file
from samx.benchmarks.report.baseline import BaselineComparison, Change, compare
from samx.benchmarks.report.markdown import markdown
from samx.benchmarks.report.runs import Run, load_runs
from samx.errors import BenchmarkError, UsageError
from samx.processing.images import check_free


@dataclass(frozen=True)
class ReportRequest:
    """Say which reports to show, and how."""

    reports: Sequence[Path]
    output: Path | None = None  # the page, as HTML
    markdown: Path | None = None
    baseline: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check that something is read, and that nothing is written over it.

        Raises: UsageError.
        """
        if not self.reports:
            raise UsageError("no report was named", expected="at least one JSON file of 'samx bench'")
        written = [path.resolve() for path in self.written]
        read = {path.resolve() for path in (*self.reports, *([self.baseline] if self.baseline else []))}
        if clash := next((path for path in written if path in read or written.count(path) > 1), None):
            raise UsageError("one file is named twice", found=clash, fix="Give each output a name of its own.")

    @property
    def written(self) -> tuple[Path, ...]:
        """Files that are asked for."""
        return tuple(path for path in (self.output, self.markdown) if path is not None)


@dataclass(frozen=True)
class ReportResult:
    """Hold what was written and what was found."""

    runs: tuple[Run, ...]
    comparison: BaselineComparison | None
    markdown: str
    paths: tuple[Path, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What became slower than the baseline for sure."""
        return () if self.comparison is None else self.comparison.regressions

    def summary(self) -> str:
        """Say in a line what was done."""
        done = f"wrote {' and '.join(map(str, self.paths))}" if self.paths else "wrote nothing"
        return done if self.comparison is None else f"{self.comparison.summary()}; {done}"

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain data."""
        doubts = {run.key: [{"kind": doubt.kind, "text": doubt.text} for doubt in run.doubts] for run in self.runs}
        return {
            "reports": {run.key: str(run.path) for run in self.runs},
            "devices": {run.key: run.device for run in self.runs},
            "doubts": doubts,
            "paths": [str(path) for path in self.paths],
            "regressions": [change.sentence() for change in self.regressions],
            "comparison": None if self.comparison is None else self.comparison.to_json(),
            "markdown": self.markdown,
        }


def report(request: ReportRequest) -> ReportResult:
    """Read reports, compare them with the baseline, and write what was asked for.

    A regression does not end this call: the files hold it, and require_unregressed() makes an error of it.
    Raises: ArtifactError for a file that is no report; InputError for one given twice, or a baseline with which nothing
    compares; MissingExtraError; WriteError.
    """
    for path in request.written:
        check_free(path, request.overwrite)
    runs, baseline = load_runs(request.reports, request.baseline)
    comparison = None if baseline is None else compare(runs, baseline)
    texts = {request.markdown: markdown(runs, comparison)}
    text = texts[request.markdown]
    if request.output is not None:
        from samx.benchmarks.report.page import page

        texts[request.output] = page(runs, comparison)
    written = {path: content for path, content in texts.items() if path is not None}
    for path, content in written.items():
        write_file(path, content.encode("utf-8", "replace"))
    return ReportResult(runs, comparison, text, tuple(written))


def require_unregressed(result: ReportResult) -> None:
    """Refuse a result that is slower than the baseline for sure.

    Raises: BenchmarkError naming subject, scenario, ratio and interval of each.
    """
    if result.regressions:
        raise BenchmarkError(
            f"{len(result.regressions)} results became slower than the baseline",
            found="; ".join(change.sentence() for change in result.regressions),
            fix="Look at the report, and measure both again before you trust or blame a change.",
        )  # fmt: skip
