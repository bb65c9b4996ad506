"""A comparison as Markdown: one table for each family and number of threads, prompts side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from samx.benchmarks.environment import busy

LEGEND = (
    "Milliseconds a prompt (median), and how many times faster than the first line (95 % interval). "
    "!: noisy, the middle half of the calls spreads over more than 10 % of the median. "
    "Compared before: logits on random boxes; of decoders with fewer bits masks, on boxes round the picture's objects."
)


def markdown(report: Mapping[str, Any]) -> str:
    """Write the report's tables, what they were made on, and what was compared before."""
    facts = report["environment"]
    lines = [f"{facts['cpu']}, {facts['isa']}; {facts['platform']}; {report['created']}.", ""]
    lines += [", ".join(f"{name} {number}" for name, number in report["versions"].items()) + ".", ""]
    if busy(facts):
        lines += ["**The machine was busy when this began: look at ratios only.**", ""]
    lines += [LEGEND, ""]
    for key, groups in groupby(report["groups"], lambda group: (group["family"], group["threads"])):
        shown = {name: f"logits within {value:.1e}" for name, value in report["errors"][key[0]].items()}
        shown |= {name: f"mask IoU {value:.4f}" for name, value in report["mask_iou"][key[0]].items()}
        lines += [*_table(*key, list(groups), shown), ""]
    return "\n".join(lines)


def _table(
    family: str, threads: int, groups: Sequence[Mapping[str, Any]], agreement: Mapping[str, str]
) -> Iterator[str]:
    counts = [_counted(group["prompts"], "prompt") for group in groups]
    yield f"**{family}, {_counted(threads, 'thread')}**"
    yield ""
    yield "| decoder | " + " | ".join(counts) + " | agrees with the first |"
    yield "| --- |" + " --- |" * (len(counts) + 1)
    for i, name in enumerate(entry["name"] for entry in groups[0]["samples"]):
        cells = [_cell(group, i) for group in groups]
        yield f"| {name} | " + " | ".join(cells) + f" | {agreement[name]} |"


def _cell(group: Mapping[str, Any], place: int) -> str:
    sample = group["samples"][place]
    summary, ratio = sample["summary"], group["ratios"].get(sample["name"])
    time = f"{summary['median_ms']:.1f}{'!' if summary['spread'] > 0.1 else ''}"
    return time if ratio is None else f"{time}, {ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
