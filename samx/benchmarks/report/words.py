"""Numbers and names as people read them."""

from __future__ import annotations

import re
from math import floor, isfinite, log10

from samx.benchmarks.summary import P90_SAMPLES, P99_SAMPLES

NARROW = "\u202f"  # space inside a number
NO_VALUE = "n/a"
KEPT = (" ", NARROW)
ISO = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)\S*\+00:00$")
MIB = 1024 * 1024
WHY_NO_PERCENTILE = {
    "p90": f"a p90 needs {P90_SAMPLES} calls or more",
    "p99": f"a p99 needs {P99_SAMPLES} calls or more",
}


def short(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits, without an exponent."""
    if not isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = max(digits - 1 - floor(log10(abs(value))), 0)
    return f"{value:,.{decimals}f}".replace(",", NARROW)


def share(value: float) -> str:
    """Write an agreement between 0 and 1, cut and not rounded: only 1 itself reads 1.0000."""
    return f"{floor(value * 10_000) / 10_000:.4f}" if isfinite(value) else f"{value:g}"


def percent(ratio: float) -> str:
    """Write a ratio as what it adds: 1.1 is +10.0 %."""
    return f"{(ratio - 1) * 100:+.1f}{NARROW}%".replace("-", "\u2212")


def times(value: float) -> str:
    """Write how many times as fast."""
    return f"{short(value)}\u00d7"


def plain(text: str) -> str:
    """Take out of somebody's text what is no visible character, such as control characters and half surrogates."""
    return "".join(letter if letter.isprintable() or letter in KEPT else "?" for letter in text)


def elide(text: str, most: int) -> str:
    """Cut a long name in its middle, since names differ at their ends."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}\u2026{text[-tail:]}"


def counted(count: int, what: str) -> str:
    """Write how many there are of something."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def when(created: str) -> str:
    """Write a time in UTC as a date and a time of day."""
    return ISO.sub(r"\1 \2 UTC", created)


def spaced(name: str) -> str:
    """Write a name of the schema as words."""
    return name.replace("_", " ")


def places(operations: object) -> str:
    """Say how many operations ran where."""
    found = operations if isinstance(operations, dict) else {}
    return ", ".join(f"{count} on {place}" for place, count in found.items()) or "not told"
