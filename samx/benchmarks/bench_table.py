"""Measurements for people: tables in a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from samx.benchmarks.results import BenchReport, Reading, Result, SubjectRecord
from samx.benchmarks.summary import CONFIDENCE

MIB = 2**20
MISSING = "n/a"
IOU = {"mask_iou_mean": "IoU", "mask_iou_p05": "p05", "mask_iou_min": "least"}
MARKS = {"noisy": "!", "unstable": "~"}
LEGEND = (
    "ms a call (median); n/a: too few calls to say; !: noisy, ~: drifting while it was measured; IoU: mean, 5th "
    "percentile and least mask IoU against PyTorch on this device; roof: time that the machine's products or copies "
    "would need at best, as a share of the call's"
)
NAMES = ("scenario", "subject")  # what is folded where a line is too narrow; numbers never are
FOLDED_AT = 12
PHASE_WORDS = {"post_processing": "masks", "first_call": "first"}
OPTIONAL = ("p99", "faster", "roof", "mJ/prompt", "MiB")  # columns that are left out where they say nothing
LESS_TELLING = ("p99", "p90", "IQR", "calls", "prompts/s")  # left out in this order where there is no room


def table(
    headings: Iterable[str], rows: Iterable[Iterable[str]], left: Collection[str] = (), folded: Collection[str] = (),
    **look: Any,
) -> Table:  # fmt: skip
    """Lay out rows of markup; only what may be folded is, where a line is too narrow."""
    made = Table(box=box.SIMPLE, **look)
    for heading in headings:
        justify: Any = "left" if heading in left else "right"
        made.add_column(heading, justify=justify, no_wrap=heading not in folded, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    for row in (headings, ["---"] * len(headings), *rows):
        yield f"| {' | '.join(row)} |"


def tables(report: BenchReport, width: int = 80) -> list[RenderableType]:
    """Show what was measured, of what and where: circumstances, subjects, times, what is missing, warnings."""
    legend = Text(f"{report.figures}; {LEGEND}", style="dim")
    return [_circumstances(report), _subjects(report), _results(report, width), legend, *_notes(report)]


def _circumstances(report: BenchReport) -> Table:
    names = ", ".join(f"{kind}: {entry['name']}" for kind, entry in report.device.kinds.items())
    environment = report.device.environment
    made = Table(show_header=False, box=None)
    facts = {
        "device": f"{report.device.requested} ({names})",
        "system": f"{environment.get('platform', MISSING)}, Python {environment.get('python', MISSING)}",
        "threads": str(report.threads or "all"),
        "images": report.images,
        "again": " ".join(report.command),
    }
    for name, value in facts.items():
        made.add_row(f"[bold]{name}[/]", escape(value))
    return made


def _subjects(report: BenchReport) -> Table:
    headings = ("subject", "precision", "MiB", *IOU.values(), "parity", "ran on")
    rows = [
        (subject.name, subject.precision, f"{subject.bytes / MIB:.1f}", *(_iou(subject, metric) for metric in IOU),
         f"{subject.parity.level}, {subject.parity.source}", _placement(subject))
        for subject in report.subjects
    ]  # fmt: skip
    folded = (headings[0], *headings[-2:])
    return table(headings, [map(escape, row) for row in rows], headings, folded, padding=(0, 1, 0, 0))


def _iou(subject: SubjectRecord, metric: str) -> str:
    value = subject.parity.metrics.get(metric)
    return MISSING if value is None else f"{value:.4f}"


def _placement(subject: SubjectRecord) -> str:
    if subject.placement is None:
        return "nothing ran"
    operations = ", ".join(f"{count} on {name}" for name, count in subject.placement["operations"].items())
    return f"{operations} in {subject.placement['runtime']}"


def _results(report: BenchReport, width: int) -> Table:
    """Lay out one row a result, with only the columns that say something and have room."""
    rows = [_cells(report, result) for result in report.results]
    headings = [name for name in (rows[0] if rows else {}) if name not in _silent(report, rows)]
    for name in LESS_TELLING:
        if _width(rows, headings) > width and name in headings:
            headings.remove(name)
    shown = [[escape(row[name]) for name in headings] for row in rows]
    return table(headings or ["nothing was measured"], shown, NAMES, NAMES, padding=0)


def _silent(report: BenchReport, rows: Sequence[Mapping[str, str]]) -> set[str]:
    """Name the columns that say nothing."""
    found = {name for name in OPTIONAL if all(row[name] in ("", MISSING) for row in rows)}
    return found | ({"subject"} if len(report.subjects) == 1 else set())


def _width(rows: Sequence[Mapping[str, str]], headings: Sequence[str]) -> int:
    """Count a table's columns, those that may be folded as narrow as they can well be."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in headings}
    folded = {name: min(widths[name], FOLDED_AT) for name in NAMES if name in widths}
    return 1 + sum(1 + found for found in {**widths, **folded}.values())


def _cells(report: BenchReport, result: Result) -> dict[str, str]:
    summary, rate = result.summary, result.prompts_per_second
    where = (result.scenario, result.phase, result.subject)
    ratio = next((r for r in report.ratios if (r.scenario, r.phase, r.candidate) == where), None)
    phase = "" if result.phase == "steady" else f" {PHASE_WORDS.get(result.phase, result.phase)}"
    return {
        "scenario": f"{result.scenario}{phase}",
        "subject": result.subject,
        "ms": f"{_digits(summary.median_ms)}{''.join(MARKS[flag] for flag in result.flags)}",
        "IQR": _digits(summary.iqr_ms),
        "p90": _digits(summary.p90_ms),
        "p99": _digits(summary.p99_ms),
        "calls": str(summary.count),
        "prompts/s": _digits(rate) if rate else "",
        "faster": "" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
        "roof": _roof(report, result),
        "mJ/prompt": _value(result.energy_mj, 1),
        "MiB": _value(result.peak_bytes, MIB),
    }


def _roof(report: BenchReport, result: Result) -> str:
    where = (result.subject, result.scenario) if result.phase == "steady" else None
    needs = [(line, need) for line in report.rooflines for need in line.needs if (need.subject, need.scenario) == where]
    shares = [line.share(need, result.summary.median_ms) for line, need in needs]
    return f"{100 * shares[0]:.0f}%" if shares and shares[0] is not None else ""


def _digits(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _value(reading: Reading | None, unit: float) -> str:
    return "" if reading is None or reading["value"] is None else _digits(reading["value"] / unit)


def _notes(report: BenchReport) -> Iterator[Text]:
    """Yield what is missing, what the ratios compare with, and what makes the numbers doubtful."""
    missing: dict[tuple[str, str], list[str]] = {}
    for entry in report.not_measured:
        what = f"{entry.scenario or 'any scenario'}{f', {entry.phase}' if entry.phase else ''}"
        missing.setdefault((what, entry.reason), []).append(entry.subject)
    for (what, reason), names in missing.items():
        yield Text(f"not measured: {what} of {', '.join(names)}: {reason}", style="dim")
    for first in dict.fromkeys(ratio.baseline for ratio in report.ratios):
        yield Text(f"faster: times faster than {first}, with the {CONFIDENCE:.0%} interval", style="dim")
    partial = [] if report.partial is None else [f"NOT COMPLETE: {report.partial}"]
    yield from (Text(line, style="yellow") for line in (*partial, *report.flags, *report.device.flags))
