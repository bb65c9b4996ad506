"""Measurements for people: tables in a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from samx.benchmarks.environment import busy
from samx.benchmarks.results import BenchReport, Reading, Result, SubjectRecord
from samx.benchmarks.summary import CONFIDENCE, NOISY_SPREAD, counted

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
OPTIONAL = ("p99", "faster", "roof", "mJ/prompt", "MiB")  # columns that are left out where they say nothing
GROUP_HEADINGS = ("decoder", "ms", "IQR", "p90", "calls", "faster", f"{CONFIDENCE:.0%}", "claim")  # fits 80 columns
GROUP_LEGEND = "ms per prompt (median); n/a: too few calls; !: noisy, IQR above 10 % of the median"
COMPARISON_LEGEND = (
    "Milliseconds a prompt (median), and how many times faster than the first line (95 % interval). "
    "!: noisy, the middle half of the calls spreads over more than 10 % of the median. "
    "Compared before: logits on random boxes; of decoders with fewer bits masks, on boxes round the picture's objects."
)


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


def facts_table(facts: Mapping[str, str]) -> Table:
    """Lay out names with their values."""
    made = Table(show_header=False, box=None)
    for name, value in facts.items():
        made.add_row(f"[bold]{escape(name)}[/]", escape(value))
    return made


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    for row in (headings, ["---"] * len(headings), *rows):
        yield f"| {' | '.join(row)} |"


def tables(report: BenchReport) -> list[RenderableType]:
    """Show what was measured, of what and where: circumstances, artifacts, times, what is missing, warnings."""
    return [_circumstances(report), _artifacts(report), _results(report), Text(LEGEND, style="dim"), *_notes(report)]


def _circumstances(report: BenchReport) -> Table:
    names = ", ".join(f"{kind}: {entry['name']}" for kind, entry in report.device.kinds.items())
    environment = report.device.environment
    return facts_table({
        "device": f"{report.device.requested} ({names})",
        "system": f"{environment.get('platform', MISSING)}, Python {environment.get('python', MISSING)}",
        "threads": str(report.threads or "all"),
        "images": report.images,
        "again": " ".join(report.command),
    })  # fmt: skip


def _artifacts(report: BenchReport) -> Table:
    headings = ("artifact", "target", "precision", "MiB", *(f"IoU {word}" for word in IOU.values()), "parity", "ran on")
    rows = [
        (subject.name, subject.target, subject.precision, f"{subject.bytes / MIB:.1f}",
         *(_iou(subject, metric) for metric in IOU), f"{subject.parity.level}, {subject.parity.source}",
         _placement(subject))
        for subject in report.subjects
    ]  # fmt: skip
    folded = (headings[0], headings[-1])
    return table(headings, [map(escape, row) for row in rows], headings, folded, padding=(0, 1, 0, 0))


def _iou(subject: SubjectRecord, metric: str) -> str:
    value = subject.parity.metrics.get(metric)
    return MISSING if value is None else f"{value:.4f}"


def _placement(subject: SubjectRecord) -> str:
    if subject.placement is None:
        return "nothing ran"
    operations = ", ".join(f"{count} on {name}" for name, count in subject.placement["operations"].items())
    return f"{subject.placement['runtime']}: {operations}"


def _results(report: BenchReport) -> Table:
    """Lay out one row a result, with only the columns that say something."""
    rows = [_cells(report, result) for result in report.results]
    silent = {name for name in OPTIONAL if all(row[name] in ("", MISSING) for row in rows)}
    silent |= {"artifact"} if len(report.subjects) == 1 else set()
    headings = [name for name in rows[0] if name not in silent] if rows else ["nothing was measured"]
    shown = [[escape(row[name]) for name in headings] for row in rows]
    return table(headings, shown, NAMES, NAMES, padding=0)


def _cells(report: BenchReport, result: Result) -> dict[str, str]:
    summary, rate = result.summary, result.prompts_per_second
    where = (result.scenario, result.phase, result.subject)
    ratio = next((r for r in report.ratios if (r.scenario, r.phase, r.candidate) == where), None)
    subject = next(subject for subject in report.subjects if subject.name == result.subject)
    phase = "" if result.phase == "steady" else f" {result.phase.replace('_', ' ')}"
    return {
        "scenario": f"{result.scenario}{phase}",
        "artifact": result.subject,
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
        "IoU": _iou(subject, PARITY_SHOWN),
    }


def _roof(report: BenchReport, result: Result) -> str:
    line = report.roofline
    if line is None or result.phase != "steady":
        return ""
    needs = [need for need in line.needs if (need.subject, need.scenario) == (result.subject, result.scenario)]
    share = line.share(needs[0], result.summary.median_ms) if needs else None
    return "" if share is None else f"{100 * share:.0f}%"


def _digits(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _value(reading: Reading | None, unit: float) -> str:
    return "" if reading is None or reading["value"] is None else _digits(reading["value"] / unit)


def _notes(report: BenchReport) -> Iterator[Text]:
    """Yield what is missing, what the ratios compare with, and what makes the numbers doubtful."""
    for entry in report.not_measured:
        what = f"{entry.scenario or 'any scenario'}{f', {entry.phase}' if entry.phase else ''}"
        yield Text(f"not measured: {what} of {entry.subject}: {entry.reason}", style="dim")
    if report.ratios:
        first = report.subjects[0].name
        yield Text(f"faster: times faster than {first}, with the {CONFIDENCE:.0%} interval", style="dim")
    partial = [] if report.partial is None else [f"NOT COMPLETE: {report.partial}"]
    yield from (Text(line, style="yellow") for line in (*partial, *report.flags, *report.device.flags))


def group_table(title: str, group: Mapping[str, Any]) -> Table:
    """Show the time of each candidate that took turns, its spread, and how it compares with the baseline."""
    claims = {verdict["candidate"]: verdict for verdict in group["verdicts"]}
    rows = [_group_row(entry, group["ratios"].get(entry["name"]), claims.get(entry["name"]))
            for entry in group["samples"]]  # fmt: skip
    return table(
        GROUP_HEADINGS, rows, ("decoder", "claim"), title=escape(title), title_justify="left", caption=GROUP_LEGEND,
        caption_justify="left", padding=0,
    )  # fmt: skip


def _group_row(entry: Any, ratio: Any, verdict: Any) -> Sequence[str]:
    p90 = MISSING if entry["p90_ms"] is None else f"{entry['p90_ms']:.1f}"
    times = (f"{entry['median_ms']:.1f}", f"{entry['iqr_ms']:.1f}{_noise(entry)}", p90, str(entry["count"]))
    faster = (f"{ratio['value']:.2f}", f"{ratio['low']:.2f}-{ratio['high']:.2f}") if ratio else ("1", "baseline")
    met = "[green]met[/]" if verdict and verdict["met"] else "[red]not met[/]"
    return (escape(entry["name"]), *times, *faster, f"{verdict['at_least']:.1f} {met}" if verdict else "")


def _noise(summary: Mapping[str, Any]) -> str:
    return "" if summary["spread"] <= NOISY_SPREAD else "!"


def comparison_markdown(report: Mapping[str, Any]) -> str:
    """Write a comparison's tables, what they were made on, and what was compared before."""
    facts = report["environment"]
    lines = [f"{facts['cpu']}, {facts['isa']}; {facts['platform']}; {report['created']}.", ""]
    lines += [", ".join(f"{name} {number}" for name, number in report["versions"].items()) + ".", ""]
    if busy(facts):
        lines += ["**The machine was busy when this began: look at ratios only.**", ""]
    lines += [COMPARISON_LEGEND, ""]
    for (family, threads), found in groupby(report["groups"], lambda group: (group["family"], group["threads"])):
        groups = list(found)
        shown = {name: f"logits within {value:.1e}" for name, value in report["errors"][family].items()}
        shown |= {name: f"mask IoU {value:.4f}" for name, value in report["mask_iou"][family].items()}
        names = [entry["name"] for entry in groups[0]["samples"]]
        rows = [[name, *(_cell(group, i) for group in groups), shown[name]] for i, name in enumerate(names)]
        headings = ["decoder", *(counted(group["prompts"], "prompt") for group in groups), "agrees with the first"]
        lines += [f"**{family}, {counted(threads, 'thread')}**", "", *markdown_table(headings, rows), ""]
    return "\n".join(lines)


def _cell(group: Mapping[str, Any], place: int) -> str:
    sample = group["samples"][place]
    summary, ratio = sample["summary"], group["ratios"].get(sample["name"])
    time = f"{summary['median_ms']:.1f}{_noise(summary)}"
    return time if ratio is None else f"{time}, {ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
