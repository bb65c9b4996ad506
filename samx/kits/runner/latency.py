"""Latency, by the rules of "samx bench"."""
# ruff: noqa: T201 - part of a program

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from samx.kits.runner.decoder import Decoder
from samx.kits.runner.kit import STOPPED, Arrays, Json, Kit, message, now
from samx.kits.runner.parity import part_of


def measure(kit: Kit, decoder: Decoder, seconds: float, rows: Sequence[Json]) -> str | None:
    """Time every scenario. Gives why it ended before its end; what was measured until then stays in the rows."""
    doing, prompts = "the start", kit.arrays("prompts.npz")
    try:
        decoder.set_image(part_of(kit.arrays("parity.npz"), "image0."))
        for row in rows:
            doing = row["scenario"]
            print(f"  {doing}: {row['prompts']} prompts a call", flush=True)
            feeds = list(rounds(kit, part_of(prompts, f"{doing}.")))
            time_calls(decoder.decode, feeds, kit.says["latency"]["efforts"][doing], seconds, row)
    except KeyboardInterrupt:
        return f"{STOPPED}, in {doing}"
    except Exception as error:  # a driver may raise anything when its device is gone
        return f"lost in {doing}: {message(error)}"
    return None


def rounds(kit: Kit, stored: Arrays) -> Iterator[Arrays]:
    """Give each round's prompts. Mask prompts are zeros: not given."""
    n = stored["point_labels"].shape[1]
    shapes = kit.says["tensors"]["prompts"].items()
    zeros = {name: np.zeros([n if isinstance(d, str) else d for d in shape], np.float32)
             for name, shape in shapes if name not in stored}  # fmt: skip
    for number in range(len(stored["point_labels"])):
        yield {**{name: value[number] for name, value in stored.items()}, **zeros}


def time_calls(call: Callable[[Any], Any], feeds: Sequence[Any], effort: Json, seconds: float, row: Json) -> None:
    """Warm up by time and count, then time calls until they are enough; the garbage collector rests meanwhile."""
    spent, samples = 0, row["samples_ns"]
    gc.disable()
    try:
        while row["warm_up_calls"] < effort["warm_up_calls"] or row["warm_up_ns"] < effort["warm_up_s"] * 1e9:
            row["warm_up_ns"] += once(call, feeds[row["warm_up_calls"] % len(feeds)])
            row["warm_up_calls"] += 1
        row["start_ns"] = row["end_ns"] = now()
        while not enough(effort, seconds, len(samples), spent):
            samples.append(once(call, feeds[len(samples) % len(feeds)]))
            spent, row["end_ns"] = spent + samples[-1], now()
    finally:
        gc.enable()


def once(call: Callable[[Any], Any], feed: Any) -> int:
    """Time one call; what it gives is freed after the clock was read."""
    start = now()
    result = call(feed)
    took = now() - start
    del result
    return took


def enough(effort: Json, seconds: float, calls: int, spent_ns: int) -> bool:
    """Ask for time and count, and for as many calls as a p90 needs where they fit in twice the time."""
    asked = calls >= effort["least"] and spent_ns >= seconds * 1e9
    return asked and (calls >= effort["wanted"] or spent_ns >= 2 * seconds * 1e9)


def with_summary(rules: Json, row: Json) -> Json:
    """Add what the raw samples say; a percentile only where they are enough to say it."""
    times = np.array([ns / 1e6 for ns in row["samples_ns"]], np.float64)
    tails = {p: float(np.percentile(times, p)) if len(times) >= rules[f"p{p}"] else None for p in (90, 99)}
    median, (drift, unstable) = float(np.median(times)), drifted(rules, times)
    summary = {
        "count": len(times), "median_ms": median, "iqr_ms": _iqr(times), "p90_ms": tails[90], "p99_ms": tails[99],
        "spread": _iqr(times) / median, "drift": drift, "unstable": unstable,
    }  # fmt: skip
    flags = {"noisy": not summary["spread"] <= rules["noisy"], "unstable": unstable}
    rate = row["prompts"] * len(times) / sum(row["samples_ns"]) * 1e9
    return {**row, "summary": summary, "prompts_per_second": rate, "flags": [name for name, on in flags.items() if on]}


def drifted(rules: Json, times: Any) -> tuple[float, bool]:
    """Compare the medians of the two halves; says whether they differ by more than chance."""
    half = len(times) // 2
    if len(times) < rules["drift_samples"]:
        return 0.0, False
    first, second = times[:half], times[-half:]
    change = float(np.median(second) - np.median(first))
    chance = rules["sure"] * rules["halves_error"] * (_iqr(first) + _iqr(second)) / 2 / len(times) ** 0.5
    drift = change / float(np.median(first))
    return drift, abs(drift) > rules["unstable"] and abs(change) > chance


def _iqr(times: Any) -> float:
    low, high = np.percentile(times, (25, 75))
    return float(high - low)
