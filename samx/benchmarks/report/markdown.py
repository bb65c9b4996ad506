"""A comment for a pull request: what changed, the table, and what makes the numbers doubtful."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from samx.benchmarks.bench_table import markdown_table
from samx.benchmarks.report.baseline import RULE, BaselineComparison, Change
from samx.benchmarks.report.runs import Entry, Run, all_entries, percent, plain, short, spaced, times
from samx.benchmarks.report.tables import headline, title
from samx.benchmarks.results import Result

SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&@])")
CONFIDENT = "95 %"


def markdown(runs: Sequence[Run], comparison: BaselineComparison | None) -> str:
    """Write the comment."""
    parts = [[f"### samx bench: {_safe(title(headline(runs)))}"]]
    if comparison is not None:
        parts.append(list(_baseline(comparison)))
    parts += [list(_doubts(runs)), list(_table(runs)), list(_ratios(runs)), list(_reproduce(runs))]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _baseline(found: BaselineComparison) -> Iterator[str]:
    yield f"**{found.summary()[0].upper()}{found.summary()[1:]}.**"
    telling = [change for change in found.changes if change.verdict != "unchanged"]
    if telling:
        yield from ("", *markdown_table(("result", "before, ms", "now, ms", "change (99 % interval)", "verdict"),
                               [_change(change) for change in telling]))  # fmt: skip
    if found.not_compared:
        lines = [
            f"- {_where(*parts)}: {_safe(reason or '')}" for *parts, reason in map(dict.values, found.not_compared)
        ]
        yield from ("", *_folded(f"{len(lines)} not comparable", lines))
    if found.differences:
        yield from ("", *_folded("What else changed since", [f"- {_safe(line)}" for line in found.differences]))
    yield from ("", *_folded("The rule", [_safe(RULE)]))


def _change(change: Change) -> Sequence[str]:
    span = f"{percent(change.ratio)} ({percent(change.low)} to {percent(change.high)})"
    doubt = f": {_safe('; '.join(change.doubts))}" if change.verdict == "doubtful" else ""
    where = _where(change.run, change.subject, change.scenario, change.phase)
    return (where, short(change.base_ms), short(change.new_ms), span, f"{change.verdict}{doubt}")


def _doubts(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        for doubt in run.doubts:
            if doubt["kind"] != "information":
                yield f"- {run.key}: **{doubt['kind']}** {_safe(doubt['text'])}"


def _table(runs: Sequence[Run]) -> Iterator[str]:
    """List the artifacts under each other: wide tables are hard to read in a comment."""
    found = headline(runs)
    if found is not None:
        time = f"{_safe(spaced(found['scenario']))} p50, ms"
        heads = ("device", "artifact", time, "prompts/s", "mask IoU", "ran", "flags")
        yield from markdown_table(heads, [_row(*cell) for cell in found["cells"]])


def _row(entry: Entry, result: Result) -> Sequence[str]:
    fastest = entry.fastest
    rate = "" if fastest is None else f"{short(fastest.prompts_per_second or 0)} at N = {fastest.prompts}"
    device = f"{entry.run.key} \u00b7 {_safe(entry.run.device)}"
    median = f"**{short(result.summary.median_ms)}**"
    flags = ", ".join(entry.chips(result))
    return (device, _safe(entry.name), median, rate, entry.agreement, _safe(entry.placement), flags)


def _ratios(runs: Sequence[Run]) -> Iterator[str]:
    names = {(entry.run.key, entry.subject.name): entry.name for entry in all_entries(runs)}
    rows = [
        (_where(run.key, names[run.key, ratio.candidate], ratio.scenario, ratio.phase),
         _safe(names[run.key, ratio.baseline]), f"{times(ratio.value)} ({ratio.low:.2f} to {ratio.high:.2f})")
        for run in runs for ratio in run.report.ratios
    ]  # fmt: skip
    if rows:
        table = list(markdown_table(("artifact", "compared with", f"times as fast ({CONFIDENT} interval)"), rows))
        yield from _folded(f"{len(rows)} ratios", ["", *table, ""])


def _reproduce(runs: Sequence[Run]) -> Iterator[str]:
    lines = [f"    {plain(run.command)}" for run in runs]
    yield from _folded("Measure it yourself", ["", *lines, ""])


def _where(run: str | None, subject: str | None, scenario: str | None, phase: str | None) -> str:
    parts = [run, subject, scenario, None if phase == "steady" else phase]
    return " \u00b7 ".join(_safe(spaced(part)) for part in parts if part)


def _folded(summary: str, lines: Sequence[str]) -> list[str]:
    return ["<details>", f"<summary>{summary}</summary>", "", *lines, "", "</details>"]


def _safe(text: str) -> str:
    """Keep somebody's text from being taken for markup or for a mention of somebody."""
    return SPECIAL.sub(r"\\\1", plain(text)).replace("\\@", "@\u200b")
