"""What a library says while it works, and which of it must not be ignored."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ERRORS = ("ERROR", "INTERNAL_ERROR")
SHOWN_CHARACTERS = 400
# A warning about either means that the engine may compute something else than the file says, or for other sizes.
CONCERNS: Mapping[str, re.Pattern[str]] = {
    "precision": re.compile(
        r"precision|overflow|underflow|subnormal|out of (?:the )?range|clamp|truncat|lossy|accuracy|\bcast"
        r"|downcast|\bfp16\b|\bbf16\b|\bfp8\b|\bint8\b|\btf32\b|half|float16|weakly|dynamic range|quantiz|calibrat",
        re.IGNORECASE,
    ),
    "shape": re.compile(r"shape|dimension|\bdims?\b|optimization profile|broadcast|\brank\b", re.IGNORECASE),
}


# What the libraries say about memory while they build. Only said, so None where a version words it otherwise.
FIGURES: Mapping[str, re.Pattern[str]] = {
    "scratch_bytes": re.compile(r"Max Scratch Memory: (\d+) bytes"),
    "weights_bytes": re.compile(r"Total Weights Memory: (\d+) bytes"),
}


@dataclass(frozen=True)
class Message:
    """Hold one line of a library's log."""

    severity: str  # the library's own word: INFO, WARNING, ERROR, INTERNAL_ERROR
    text: str


def concerns(messages: Sequence[Message]) -> list[str]:
    """List the warnings and errors that concern precision or shape, each with its topic in front."""
    serious = [message for message in messages if message.severity in ("WARNING", *ERRORS)]
    found = (
        (topic, message.text) for message in serious for topic, words in CONCERNS.items() if words.search(message.text)
    )
    return [f"{topic}: {text}" for topic, text in found]


def first_error(messages: Sequence[Message]) -> str:
    """Give the first error, short enough for one line: the later ones mostly repeat it."""
    errors = [message.text for message in messages if message.severity in ERRORS]
    return errors[0][:SHOWN_CHARACTERS] if errors else "no message"


def figures(messages: Sequence[Message]) -> dict[str, int | None]:
    """Read the memory that an engine will need, as far as the library said it."""
    found = {name: [words.search(message.text) for message in messages] for name, words in FIGURES.items()}
    return {name: max((int(match[1]) for match in hits if match), default=None) for name, hits in found.items()}


def summary(messages: Sequence[Message]) -> dict[str, Any]:
    """Count the messages by severity and keep what is more than information."""
    kept = [{"severity": message.severity, "text": message.text} for message in messages if message.severity != "INFO"]
    return {"counts": dict(Counter(message.severity for message in messages)), "messages": kept}
