"""The charts of the page, each with what stands above and below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samx.benchmarks.report.bars import Bar, Mark, bars, intervals, roof
from samx.benchmarks.report.baseline import DOUBTFUL, FASTER, MARGIN, REGRESSED, SAME, UNCLEAR, Change
from samx.benchmarks.report.distributions import distributions
from samx.benchmarks.report.runs import (
    MIB,
    Run,
    all_entries,
    percent,
    plain,
    precisions,
    scenarios,
    spaced,
    times,
    where_of,
)
from samx.benchmarks.report.svg import SERIES
from samx.benchmarks.report.tables import energies, limits
from samx.benchmarks.results import Comparison, Roofline
from samx.benchmarks.scenarios import BY_NAME
from samx.benchmarks.summary import counted

# What a bar is made of: phase, its colour, and how the legend calls it.
START = (("import", "phase-1", "import"), ("load", "phase-2", "load"), ("first_call", "phase-3", "first call"))
CLICK = (("transfer", "phase-1", "transfer"), ("steady", "phase-3", "decoder"),
         ("post_processing", "phase-2", "post-processing"))  # fmt: skip
PHOTO = (("resize", "phase-1", "resize"), ("encode", "phase-3", "image encoder"), ("decode", "phase-2", "decoder"),
         ("post_processing", "phase-4", "mask at the picture's size"))  # fmt: skip
COLOURS = {REGRESSED: "bad", FASTER: "good", SAME: "muted", UNCLEAR: "muted", DOUBTFUL: "muted"}


Legend = Sequence[tuple[str, str]]
Picture = dict[str, Any]  # a chart: title, caption, svg, note, and a legend of colours and meanings


def picture(title: str, caption: str, svg: str, note: str = "", legend: Legend = ()) -> Picture:
    """Put a chart and its words together."""
    return {"title": title, "caption": caption, "svg": svg, "note": note, "legend": legend}


def pictures(runs: Sequence[Run], changes: Sequence[Change]) -> dict[str, list[Picture]]:
    """Draw everything, by the section of the page that shows it."""
    heads = precisions(runs)
    colours = {head: f"series-{i % SERIES + 1}" for i, head in enumerate(heads)}
    return {
        "latency": [made for name in scenarios(runs) for made in _latency(name, runs, colours)],
        "ratios": _ratios(runs),
        "changes": _changes(changes),
        "phases": [*_phases(runs), *_memory(runs)],
        "energy": _energy(runs, colours),
        "roofs": [made for run in runs for line in run.report.rooflines for made in _roof(run, line, colours)],
    }


def _latency(name: str, runs: Sequence[Run], colours: dict[str, str]) -> list[Picture]:
    """Draw the calls of a scenario that is repeated in one process."""
    rows = [(entry.label, colours[entry.precision], result) for entry in all_entries(runs)
            if (result := entry.find(name)) and result.peak_bytes is None]  # fmt: skip
    if not rows:
        return []
    svg, note = distributions(plain(name), rows)
    caption = f"{BY_NAME[name].meaning}; ms a call" if name in BY_NAME else "ms a call"
    return [picture(spaced(plain(name)), caption, svg, note)]


def _ratios(runs: Sequence[Run]) -> list[Picture]:
    """Draw how much faster each artifact is than its run's first."""
    found = []
    for entry in all_entries(runs):
        ratios = [ratio for ratio in entry.run.report.ratios if ratio.candidate == entry.subject.name]
        for base in entry.run.entries:
            rows = [_ratio(ratio) for ratio in ratios if ratio.baseline == base.subject.name]
            caption = f"times as fast as {base.name}, with 95 % intervals; right of 1 is faster"
            if rows:
                found.append(picture(entry.label, caption, intervals(f"{entry.label}, {caption}.", rows)))
    return found


def _ratio(row: Comparison) -> Mark:
    colour = "good" if row.low > 1 else "bad" if row.high < 1 else "muted"
    words = f"{times(row.value)} ({row.low:.2f}\u2013{row.high:.2f})"
    return Mark(spaced(plain(where_of(row.scenario, row.phase))), (row.value, row.low, row.high), colour, words)


def _changes(changes: Sequence[Change]) -> list[Picture]:
    """Draw how times changed against the baseline."""
    found: dict[str, list[Mark]] = {}
    for row in changes:
        words = f"{percent(row.ratio)} {row.verdict}"
        mark = Mark(spaced(plain(where_of(row.scenario, row.phase))), (row.ratio, row.low, row.high),
                    COLOURS[row.verdict], words)  # fmt: skip
        found.setdefault(f"{row.run} \u00b7 {row.subject}", []).append(mark)
    caption = "time now by time in the baseline; right of 1 is slower, the band is the least margin"
    band = (1 / (1 + MARGIN), 1 + MARGIN)
    return [picture(plain(name), caption, intervals(f"{plain(name)}, {caption}.", rows, band))
            for name, rows in found.items()]  # fmt: skip


def _phases(runs: Sequence[Run]) -> list[Picture]:
    """Draw what a start and a click are made of."""
    cold = "medians of fresh starts; files may be in the system's cache"
    apart = "medians; the decoder's time without its transfers, where they are known"
    return [
        *_parts(runs, "From a new process to the first mask", cold, "cold", START),
        *_parts(runs, "One click, to the mask at picture size: the decoder alone", apart, "click", CLICK),
        *_parts(runs, "A picture of 12 megapixels, to its mask: encoder and decoder", "medians", "photo", PHOTO),
    ]


def _parts(
    runs: Sequence[Run], title: str, caption: str, scenario: str, parts: Sequence[tuple[str, str, str]]
) -> list[Picture]:
    rows: list[Bar] = []
    for entry in all_entries(runs):
        found = {phase: result.summary.median_ms for phase, _, _ in parts if (result := entry.find(scenario, phase))}
        if "steady" in found:  # which holds the transfer
            found["steady"] = max(found["steady"] - found.get("transfer", 0.0), 0.0)
        if "steady" in found or (found and scenario != "click"):
            rows.append((entry.label, [(colour, found[phase]) for phase, colour, _ in parts if phase in found]))
    shown = {colour for _, bar in rows for colour, _ in bar}
    legend = tuple((colour, meaning) for _, colour, meaning in parts if colour in shown)
    return [picture(title, caption, bars(f"{title}, {caption}.", "ms", rows), legend=legend)] if rows else []


def _memory(runs: Sequence[Run]) -> list[Picture]:
    """Draw the most memory that a process held."""
    rows = [(entry.label, [("phase-3", value / MIB)]) for entry in all_entries(runs) for result in entry.results
            if result.peak_bytes is not None and isinstance(value := result.peak_bytes["value"], int)]  # fmt: skip
    caption = BY_NAME["memory"].meaning
    return [picture("Peak memory", caption, bars(f"Peak memory: {caption}.", "MiB", rows))] if rows else []


def _energy(runs: Sequence[Run], colours: dict[str, str]) -> list[Picture]:
    """Draw the energy per prompt of one prompt a call, and of the most prompts a call."""
    measured, found = energies(runs)[0], []
    by_prompts = sorted(measured, key=lambda name: max(result.prompts for _, result, _ in measured[name]))
    for name in dict.fromkeys([*by_prompts[:1], *by_prompts[-1:]]):
        rows = [(entry.label, [(colours[entry.precision], value)]) for entry, _, value in measured[name]]
        caption = f"{counted(measured[name][0][1].prompts, 'prompt')} a call; mJ a prompt, idle power included"
        svg = bars(f"Energy in {plain(name)}, {caption}.", "mJ", rows)
        found.append(picture(spaced(plain(name)), caption, svg))
    return found


def _roof(run: Run, line: Roofline, colours: dict[str, str]) -> list[Picture]:
    """Draw how near each artifact came to what its machine reaches."""
    needs = limits(run, line)
    if not needs:
        return []
    calls = [Mark(str(i), (per_byte, rate), colours[entry.precision], f"{i} {words}")
             for i, (entry, per_byte, rate, words) in enumerate(needs, 1)]  # fmt: skip
    threads = "" if line.threads is None else f", {counted(line.threads, 'thread')}"
    caption = f"{line.precision} multiply-adds a second, over multiply-adds for each byte that a call needs"
    svg = roof(f"{run.key}, {caption}.", line.multiply_adds_per_s["value"], line.bytes_per_s["value"], calls)
    legend = tuple((call.colour, call.words) for call in calls)
    return [picture(f"{run.key} \u00b7 {plain(run.device)}{threads}", caption, svg, legend=legend)]
