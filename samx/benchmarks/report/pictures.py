"""The charts of the page, each with what stands above and below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from samx.benchmarks.report.baseline import DOUBTFUL, FASTER, MARGIN, REGRESSED, SAME, UNCLEAR, Change
from samx.benchmarks.report.charts.bars import Bar, bars
from samx.benchmarks.report.charts.distributions import Row as Distribution
from samx.benchmarks.report.charts.distributions import distributions
from samx.benchmarks.report.charts.intervals import Row as Interval
from samx.benchmarks.report.charts.intervals import intervals
from samx.benchmarks.report.charts.roof import Call, roof
from samx.benchmarks.report.charts.svg import SERIES
from samx.benchmarks.report.details import energies
from samx.benchmarks.report.limits import Limit, limits
from samx.benchmarks.report.runs import Entry, Run, all_entries, precisions, scenarios
from samx.benchmarks.report.words import MIB, counted, percent, plain, short, spaced, times
from samx.benchmarks.results import Comparison, Result
from samx.benchmarks.scenarios import BY_NAME

# What a bar is made of: phase, its colour, and how the legend calls it.
START = (("import", "phase-1", "import"), ("load", "phase-2", "load"), ("first_call", "phase-3", "first call"))
CLICK = (("transfer", "phase-1", "transfer"), ("steady", "phase-3", "decoder"),
         ("post_processing", "phase-2", "post-processing"))  # fmt: skip
COLOURS = {REGRESSED: "bad", FASTER: "good", SAME: "muted", UNCLEAR: "muted", DOUBTFUL: "muted"}


@dataclass(frozen=True)
class Picture:
    """Hold a chart with its words."""

    title: str
    caption: str
    svg: str
    note: str = ""
    legend: tuple[tuple[str, str], ...] = ()  # colour and meaning


def latency_pictures(runs: Sequence[Run]) -> list[Picture]:
    """Draw the calls of every scenario that is repeated in one process."""
    heads = precisions(runs)
    return [_latency(name, rows) for name in scenarios(runs) if (rows := _rows(runs, name, heads))]


def ratio_pictures(runs: Sequence[Run]) -> list[Picture]:
    """Draw how much faster each artifact is than its run's first."""
    entries = {(entry.run.key, entry.subject.name): entry for entry in all_entries(runs)}
    found: dict[tuple[str, str, str], list[Comparison]] = {}
    for run in runs:
        for ratio in run.report.ratios:
            found.setdefault((run.key, ratio.candidate, ratio.baseline), []).append(ratio)
    return [_ratios(entries[key, name], entries[key, base], rows) for (key, name, base), rows in found.items()]


def change_pictures(changes: Sequence[Change]) -> list[Picture]:
    """Draw how times changed against the baseline."""
    found: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        found.setdefault((change.run, change.subject), []).append(change)
    return [_changes(run, subject, rows) for (run, subject), rows in found.items()]


def phase_pictures(runs: Sequence[Run]) -> list[Picture]:
    """Draw what a start and a click are made of."""
    start = [Bar(entry.label, parts) for entry in all_entries(runs) if (parts := _start(entry))]
    click = [Bar(entry.label, parts) for entry in all_entries(runs) if (parts := _click(entry))]
    fresh = "medians of fresh starts; files may be in the system's cache"
    apart = "medians; the decoder's time without its transfers, where they are known"
    pictures = (
        ("From a new process to the first mask", fresh, START, start),
        ("One click, to the mask at picture size", apart, CLICK, click),
    )
    return [Picture(title, caption, bars(f"{title}, {caption}.", "ms", rows), legend=_legend(parts, rows))
            for title, caption, parts, rows in pictures if rows]  # fmt: skip


def memory_pictures(runs: Sequence[Run]) -> list[Picture]:
    """Draw the most memory that a process held."""
    rows = [Bar(entry.label, [("phase-3", value / MIB)]) for entry in all_entries(runs) for result in entry.results()
            if result.peak_bytes is not None and isinstance(value := result.peak_bytes["value"], int)]  # fmt: skip
    caption = BY_NAME["memory"].meaning
    return [Picture("Peak memory", caption, bars(f"Peak memory: {caption}.", "MiB", rows))] if rows else []


def energy_pictures(runs: Sequence[Run]) -> list[Picture]:
    """Draw the energy per prompt of one prompt a call, and of the most prompts a call."""
    heads, measured = precisions(runs), energies(runs)[0]
    by_prompts = sorted(measured, key=lambda name: max(result.prompts for _, result, _ in measured[name]))
    return [_energy(name, heads, measured[name]) for name in dict.fromkeys([*by_prompts[:1], *by_prompts[-1:]])]


def roof_pictures(runs: Sequence[Run]) -> list[Picture]:
    """Draw how near each artifact came to what its machine reaches."""
    heads = precisions(runs)
    return [_roof(run, needs, heads) for run in runs if (needs := limits(run))]


def _roof(run: Run, needs: Sequence[Limit], heads: list[str]) -> Picture:
    line = needs[0].roofline
    calls = [Call(str(i), limit.adds_per_byte, limit.adds_per_s, f"series-{_colour(limit.entry, heads) + 1}")
             for i, limit in enumerate(needs, 1)]  # fmt: skip
    words = tuple((call.colour, f"{call.mark} {limit.words}") for call, limit in zip(calls, needs, strict=True))
    threads = "" if line.threads is None else f", {counted(line.threads, 'thread')}"
    caption = "float32 multiply-adds a second, over multiply-adds for each byte that a call needs"
    told = "; ".join(meaning for _, meaning in words)
    svg = roof(f"{run.key}, {caption}. {told}.", line.multiply_adds_per_s["value"], line.bytes_per_s["value"], calls)
    return Picture(f"{run.key} \u00b7 {plain(run.device)}{threads}", caption, svg, legend=words)


def _energy(name: str, heads: list[str], rows: Sequence[tuple[Entry, Result, float]]) -> Picture:
    shown = [Bar(entry.label, [(f"series-{_colour(entry, heads) + 1}", value)]) for entry, _, value in rows]
    caption = f"{counted(rows[0][1].prompts, 'prompt')} a call; mJ a prompt, idle power included"
    return Picture(spaced(plain(name)), caption, bars(f"Energy in {plain(name)}, {caption}.", "mJ", shown))


def _colour(entry: Entry, heads: list[str]) -> int:
    return heads.index(entry.precision) % SERIES


def _rows(runs: Sequence[Run], scenario: str, heads: list[str]) -> list[Distribution]:
    return [Distribution(entry.label, _colour(entry, heads), result) for entry in all_entries(runs)
            if (result := entry.find(scenario)) and result.peak_bytes is None]  # fmt: skip


def _latency(name: str, rows: list[Distribution]) -> Picture:
    svg, hidden = distributions(plain(name), rows)
    slowest = max(float(row.times_ms.max()) for row in rows)
    note = f"Beyond the axis: {counted(hidden, 'call')}, the slowest of {short(slowest)} ms." if hidden else ""
    meaning = BY_NAME[name].meaning if name in BY_NAME else ""
    return Picture(spaced(plain(name)), f"{meaning}; ms a call" if meaning else "ms a call", svg, note)


def _ratios(entry: Entry, base: Entry, rows: Sequence[Comparison]) -> Picture:
    shown = [Interval(_where(row.scenario, row.phase), row.value, row.low, row.high,
                      "good" if row.low > 1 else "bad" if row.high < 1 else "muted",
                      f"{times(row.value)} ({row.low:.2f}\u2013{row.high:.2f})") for row in rows]  # fmt: skip
    caption = f"times as fast as {base.name}, with 95 % intervals; right of 1 is faster"
    told = "; ".join(f"{row.label}: {row.words}" for row in shown)
    return Picture(entry.label, caption, intervals(f"{entry.label}, {caption}. {told}.", shown))


def _changes(run: str, subject: str, rows: Sequence[Change]) -> Picture:
    shown = [Interval(_where(row.scenario, row.phase), row.ratio, row.low, row.high, COLOURS[row.verdict],
                      f"{percent(row.ratio)} {row.verdict}") for row in rows]  # fmt: skip
    name = plain(f"{run} \u00b7 {subject}")
    caption = "time now by time in the baseline; right of 1 is slower, the band is the least margin"
    told = "; ".join(f"{row.label}: {row.words}" for row in shown)
    return Picture(name, caption, intervals(f"{name}, {caption}. {told}.", shown, (1 / (1 + MARGIN), 1 + MARGIN)))


def _where(scenario: str, phase: str) -> str:
    return spaced(plain(scenario if phase == "steady" else f"{scenario} {phase}"))


def _start(entry: Entry) -> list[tuple[str, float]]:
    found = [(colour, entry.find("cold", phase)) for phase, colour, _ in START]
    return [(colour, result.summary.median_ms) for colour, result in found if result is not None]


def _click(entry: Entry) -> list[tuple[str, float]]:
    """Give the parts of a click; its steady time holds the transfer."""
    found = {phase: result.summary.median_ms for phase, _, _ in CLICK if (result := entry.find("click", phase))}
    if "steady" not in found:
        return []
    found["steady"] = max(found["steady"] - found.get("transfer", 0.0), 0.0)
    return [(colour, found[phase]) for phase, colour, _ in CLICK if phase in found]


def _legend(parts: Sequence[tuple[str, str, str]], rows: Sequence[Bar]) -> tuple[tuple[str, str], ...]:
    shown = {colour for row in rows for colour, _ in row.parts}
    return tuple((colour, meaning) for _, colour, meaning in parts if colour in shown)
