"""A BenchReport for people, in a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from samx.benchmarks.results import BenchReport, Comparison, Reading, Result, SubjectRecord
from samx.benchmarks.summary import CONFIDENCE

MIB = 2**20
MISSING = "n/a"
IOU = {"mask_iou_mean": "mean", "mask_iou_p05": "p05", "mask_iou_min": "min"}
PARITY_SHOWN = "mask_iou_p05"
MARKS = {"noisy": "!", "unstable": "~"}
LEGEND = (
    "ms a call (median); n/a: too few calls to say; !: noisy, ~: drifting while it was measured; "
    "IoU: 5th percentile of mask IoU against PyTorch on this device; roof: time that the machine's float32 products or "
    "copies would need at best, as a share of the call's"
)
NAMES = ("scenario", "artifact")  # what is folded where a line is too narrow; numbers never are
ENERGY, MEMORY, ROOF = "mJ/prompt", "MiB", "roof"


def tables(report: BenchReport) -> list[RenderableType]:
    """Show what was measured, of what and where: circumstances, artifacts, times, what is missing, warnings."""
    rows = _Rows(report)
    return [
        _circumstances(report),
        _artifacts(report),
        rows.table(),
        Text(LEGEND, style="dim"),
        *_missing(report),
        *_warnings(report),
    ]


def _circumstances(report: BenchReport) -> Table:
    names = ", ".join(f"{kind}: {entry['name']}" for kind, entry in report.device.kinds.items())
    environment = report.device.environment
    facts = {
        "device": f"{report.device.requested} ({names})",
        "system": f"{environment.get('platform', MISSING)}, Python {environment.get('python', MISSING)}",
        "threads": str(report.threads or "all"),
        "images": report.images,
        "again": " ".join(report.command),
    }
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(f"[bold]{name}[/]", escape(value))
    return table


def _artifacts(report: BenchReport) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("artifact", "target", "precision", "MiB", *(f"IoU {word}" for word in IOU.values()), "parity"):
        table.add_column(heading, no_wrap=heading != "artifact", overflow="fold")
    table.add_column("ran on", overflow="fold")
    for subject in report.subjects:
        iou = [_iou(subject, metric) for metric in IOU]
        parity = f"{subject.parity.level}, {subject.parity.source}"
        size = f"{subject.bytes / MIB:.1f}"
        cells = (subject.name, subject.target, subject.precision, size, *iou, parity, _placement(subject))
        table.add_row(*map(escape, cells))
    return table


def _iou(subject: SubjectRecord, metric: str) -> str:
    value = subject.parity.metrics.get(metric)
    return MISSING if value is None else f"{value:.4f}"


def _placement(subject: SubjectRecord) -> str:
    if subject.placement is None:
        return "nothing ran"
    operations = ", ".join(f"{count} on {name}" for name, count in subject.placement["operations"].items())
    return f"{subject.placement['runtime']}: {operations}"


class _Rows:
    """Lay results out, with only the columns that say something."""

    def __init__(self, report: BenchReport) -> None:
        self.report = report
        self.subjects = {subject.name: subject for subject in report.subjects}
        self.ratios = {(ratio.scenario, ratio.phase, ratio.candidate): ratio for ratio in report.ratios}
        optional = {
            "artifact": len(self.subjects) > 1,
            "faster": bool(report.ratios),
            "p99": any(result.summary.p99_ms is not None for result in report.results),
            ROOF: any(self._roof(result) for result in report.results),
            ENERGY: any(_known(result.energy_mj) for result in report.results),
            MEMORY: any(_known(result.peak_bytes) for result in report.results),
        }
        self.hidden = {name for name, shown in optional.items() if not shown}

    def table(self) -> Table:
        """Give one row a result."""
        table = Table(box=box.SIMPLE, padding=0)
        rows = [self.cells(result) for result in self.report.results]
        for heading in rows[0] if rows else ("nothing was measured",):
            is_name = heading in NAMES
            table.add_column(heading, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row.values()))
        return table

    def cells(self, result: Result) -> Mapping[str, str]:
        """Give the shown cells by heading."""
        summary, rate = result.summary, result.prompts_per_second
        marks = "".join(MARKS[flag] for flag in result.flags)
        phase = "" if result.phase == "steady" else f" {result.phase.replace('_', ' ')}"
        cells = {
            "scenario": f"{result.scenario}{phase}",
            "artifact": result.subject,
            "ms": f"{_digits(summary.median_ms)}{marks}",
            "IQR": _digits(summary.iqr_ms),
            "p90": _digits(summary.p90_ms),
            "p99": _digits(summary.p99_ms),
            "calls": str(summary.count),
            "prompts/s": _digits(rate) if rate else "",
            "faster": _faster(self.ratios.get((result.scenario, result.phase, result.subject))),
            ROOF: self._roof(result),
            ENERGY: _value(result.energy_mj, 1),
            MEMORY: _value(result.peak_bytes, MIB),
            "IoU": _iou(self.subjects[result.subject], PARITY_SHOWN),
        }
        return {name: cell for name, cell in cells.items() if name not in self.hidden}

    def _roof(self, result: Result) -> str:
        line = self.report.roofline
        if line is None or result.phase != "steady":
            return ""
        needs = [need for need in line.needs if (need.subject, need.scenario) == (result.subject, result.scenario)]
        share = line.share(needs[0], result.summary.median_ms) if needs else None
        return "" if share is None else f"{100 * share:.0f}%"


def _digits(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _faster(ratio: Comparison | None) -> str:
    return "" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _known(reading: Reading | None) -> bool:
    return reading is not None and reading["value"] is not None


def _value(reading: Reading | None, unit: float) -> str:
    return _digits(reading["value"] / unit) if reading is not None and _known(reading) else ""


def _missing(report: BenchReport) -> list[Text]:
    return [
        Text(f"not measured: {entry.scenario or 'any scenario'}{f', {entry.phase}' if entry.phase else ''} "
             f"of {entry.subject}: {entry.reason}", style="dim")
        for entry in report.not_measured
    ]  # fmt: skip


def _warnings(report: BenchReport) -> Sequence[Text]:
    partial = [] if report.partial is None else [f"NOT COMPLETE: {report.partial}"]
    lines = [Text(line, style="yellow") for line in (*partial, *report.flags, *report.device.flags)]
    first = report.subjects[0].name
    note = f"faster: times faster than {first}, with the {CONFIDENCE:.0%} interval"
    return [*([Text(note, style="dim")] if report.ratios else []), *lines]
