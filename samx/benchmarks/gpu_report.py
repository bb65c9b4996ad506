"""A page of what was measured in PyTorch: circumstances, parity, a table of speeds for each type, what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]

MICROSECONDS = 1e3  # in a millisecond
PARITY_HEADINGS = ("type", "decoder", "largest error of a logit", "of the predicted IoU", "mean mask IoU", "verdict")
SPEED_HEADINGS = (
    "prompts a call", "decoder", "µs a prompt", "IQR", "times faster (95 %)", "arithmetic", "bandwidth", "mask IoU",
)  # fmt: skip
FACTS = ("platform", "cpu", "cpus_usable", "load_1min", "python", "torch", "triton", "onnxruntime", "segment-anything")
# What moves while it is measured -> in words, and its unit.
WATCHED = {"clock_sm": ("GPU clock", "MHz"), "clock_memory": ("memory clock", "MHz"), "temperature": ("heat", "°C"),
           "power": ("power", "W")}  # fmt: skip
LEGEND = """\
µs a prompt: the median of the calls, each timed until the device had nothing left to do. Times faster: than the first
decoder of the same number of prompts, measured in turns with it in the same process. Arithmetic, bandwidth: what the
call needs at least, as a share of what a product of two matrices in this type and a copy reached beside it. Mask IoU:
mean, with the reference form in float32; everything was compared with it before it was timed. Meta's decoder works on
the image in every call; samx's did so once before, unless the line says otherwise. Compiled: with torch.compile, for
any number of prompts. float32 is without TF32."""


def markdown(report: Json) -> str:
    """Write the page."""
    blocks = [
        f"# {_title(report)}", *_warnings(report), _circumstances(report), "## Parity", _parity(report), "## Speed",
        *(_speeds(report) or ["Nothing was timed."]), "## Not measured", _missing(report),
    ]  # fmt: skip
    return "\n\n".join(blocks) + "\n"


def _title(report: Json) -> str:
    if report["device_kind"] == "cpu":
        return "PyTorch forms on a CPU: these are no GPU figures"
    return f"PyTorch forms on {report['device']['gpu']}"


def _warnings(report: Json) -> list[str]:
    tiny = "**Tiny sizes: this proves that the program works. Its times say nothing about any device.**"
    return [tiny] if report["tiny"] else []


def _circumstances(report: Json) -> str:
    facts = {**report["device"], **{name: report["environment"][name] for name in FACTS}}
    facts["image"] = f"{report['embeddings']}, {report['image_size']} px"
    facts["weights"] = f"{report['checkpoint']}, SHA-256 {report['checkpoint_sha256'][:16]}"
    facts["measured"] = f"{report['created']}, in {sum(part['spent_s'] for part in report['parts']):.0f} s"
    facts |= {"brought along": ", ".join(report["wheels"])} if report["wheels"] else {}
    facts |= dict(_watched(report["telemetry"]))
    facts |= {f"note {i + 1}": flag for i, flag in enumerate(report["telemetry"]["flags"])}
    return _table(("", "found"), [(name, str(value)) for name, value in facts.items()])


def _watched(telemetry: Json) -> Iterator[tuple[str, str]]:
    """Give the range of each reading of a GPU."""
    samples = [sample["readings"].get("nvidia", {}) for sample in telemetry["samples"]]
    for name, (words, unit) in WATCHED.items():
        values = [sample[name] for sample in samples if name in sample]
        if values:
            yield words, f"{min(values):.0f} to {max(values):.0f} {unit}"


def _results(report: Json) -> Iterator[tuple[Json, Json]]:
    for part in report["parts"]:
        for result in part["results"]:
            yield part, result


def _parity(report: Json) -> str:
    """Show each decoder's differences."""
    rows = [
        (result["dtype"], name, f"{found['logit_error']:.2g}", f"{found['iou_error']:.2g}",
         f"{found['mask_iou_mean']:.4f}", "agrees")
        for part, result in _results(report) if part["task"]["kind"] == "parity"
        for name, found in result["differences"].items()
    ]  # fmt: skip
    wrong = {(result["dtype"], name) for _, result in _results(report) for name in result["wrong"]}
    rows += [(*key, "", "", "", "**WRONG**, see below") for key in sorted(wrong)]
    return _table(PARITY_HEADINGS, rows) if rows else "Nothing was compared."


def _speeds(report: Json) -> list[str]:
    """Write a table for each type."""
    found: dict[str, list[Json]] = {}
    for _, result in _results(report):
        if result["samples"]:
            found.setdefault(result["dtype"], []).append(result)
    blocks = [LEGEND] if found else []
    for dtype, results in found.items():
        rows = [row for count in sorted({result["prompts"] for result in results}) for row in _rows(results, count)]
        blocks += [f"### {dtype}", _peaks(results), _table(SPEED_HEADINGS, rows)]
    return blocks


def _rows(found: Sequence[Json], count: int) -> Iterator[tuple[str, ...]]:
    """Write a line for each decoder, those that several parts measured once."""
    seen = set()
    for result in found:
        for entry in result["samples"]:
            if result["prompts"] == count and entry["name"] not in seen:
                seen.add(entry["name"])
                yield (str(count), entry["name"], *_speed(result, entry))


def _speed(result: Json, entry: Json) -> tuple[str, ...]:
    summary, reached = entry["summary"], result["shares"][entry["name"]]
    ratio = result["ratios"].get(entry["name"])
    faster = "" if ratio is None else f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
    times = (_figure(MICROSECONDS * summary[name]) for name in ("median_ms", "iqr_ms"))
    agreed = f"{result['differences'][entry['name']]['mask_iou_mean']:.4f}"
    return (*times, faster, f"{reached['multiply_adds']:.1%}", f"{reached['bytes']:.1%}", agreed)


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _peaks(found: Sequence[Json]) -> str:
    """Name the best that any of a type's processes reached."""
    peaks = [result["peaks"] for result in found if result["peaks"]]
    adds, moved = (max(peak[name] for peak in peaks) for name in ("multiply_adds_per_s", "bytes_per_s"))
    return f"Reached beside it: {2 * adds / 1e12:.3g} TFLOP/s in a product, {moved / 1e9:.3g} GB/s in a copy."


def _missing(report: Json) -> str:
    """List what was not measured, and why; what is missing for the same reason in several parts once."""
    reasons: dict[tuple[str, str], dict[str, list[int]]] = {}
    for part, result in _results(report):
        for name, reason in result["not_measured"].items():
            parts = reasons.setdefault((name, reason), {})
            parts.setdefault(part["name"], []).append(result["prompts"])
    lines = [f"- {_places(parts)}: {name}: {reason}" for (name, reason), parts in reasons.items()]
    lines += [_failed(part) for part in report["parts"] if part["failure"]]
    return "\n".join(lines) if lines else "Everything was measured."


def _places(parts: Mapping[str, Sequence[int]]) -> str:
    return "; ".join(f"{part}, {_counts(counts)}" for part, counts in parts.items())


def _failed(part: Json) -> str:
    left = set(part["task"]["prompts"]) - {result["prompts"] for result in part["results"]}
    return f"- {part['name']}, {_counts(sorted(left))}: {part['failure']}"


def _counts(counts: Sequence[int]) -> str:
    return f"N = {', '.join(map(str, counts))}" if counts else "after the last"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
