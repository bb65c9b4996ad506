"""A measurement for people: one table per group of candidates, and the circumstances above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from samx.benchmarks.claims import Verdict
from samx.benchmarks.interleave import Samples
from samx.benchmarks.summary import CONFIDENCE, Ratio, Summary, summarize

# Short, so that the table fits into 80 columns.
HEADINGS = ("decoder", "ms", "IQR", "p90", "calls", "faster", f"{CONFIDENCE:.0%}", "claim")
LEGEND = "ms per prompt (median); n/a: too few calls; !: noisy, IQR above 10 % of the median"


def environment_table(facts: Mapping[str, str]) -> Table:
    """Show where, with what and beside what was measured."""
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(f"[bold]{escape(name)}[/]", escape(value))
    return table


def group_table(
    title: str, samples: Sequence[Samples], ratios: Mapping[str, Ratio], verdicts: Sequence[Verdict]
) -> Table:
    """Show each candidate's time, its spread, and how it compares with the baseline."""
    judged = {verdict.candidate: verdict for verdict in verdicts}
    table = Table(
        title=escape(title), caption=LEGEND, title_justify="left", caption_justify="left", box=box.SIMPLE,
        padding=0,
    )  # fmt: skip
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("decoder", "claim") else "right", no_wrap=True)
    for entry in samples:
        ratio, verdict = ratios.get(entry.name), judged.get(entry.name)
        table.add_row(escape(entry.name), *_times(summarize(entry)), *_ratio(ratio), _claim(verdict))
    return table


def _times(summary: Summary) -> list[str]:
    spread = f"{summary.iqr_ms:.1f}{'!' if summary.noisy else ''}"
    p90 = "n/a" if summary.p90_ms is None else f"{summary.p90_ms:.1f}"
    return [f"{summary.median_ms:.1f}", spread, p90, str(summary.count)]


def _ratio(ratio: Ratio | None) -> list[str]:
    return ["1", "baseline"] if ratio is None else [f"{ratio.value:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}"]


def _claim(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    return f"{verdict.at_least:.1f} " + ("[green]met[/]" if verdict.met else "[red]not met[/]")
