"""INT8 against float on this machine: interleaved calls, and a sentence that says which is slower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from samx.benchmarks.interleave import Candidate, Effort, measure
from samx.models.session import Feed

EVEN = 0.05  # ratios this close to 1 are within what repeated measurements differ by
Run = Callable[[Feed], Any]


@dataclass(frozen=True)
class SpeedReport:
    """Hold medians and what they say. Units: ms a prompt."""

    prompts: int
    threads: int
    calls: int  # of each
    float_ms: float
    int8_ms: float
    float_bytes: int
    int8_bytes: int

    @property
    def ratio(self) -> float:
        """Give INT8's time over float's; below 1 it is faster."""
        return self.int8_ms / self.float_ms

    def to_json(self) -> dict[str, Any]:
        """Give the numbers as plain data, with the sentence."""
        return {**asdict(self), "ratio": self.ratio, "sentence": self.sentence()}

    def sentence(self) -> str:
        """Say in so many words which is faster here."""
        share = self.int8_bytes / self.float_bytes
        even = abs(self.ratio - 1) <= EVEN
        verdict = "as fast as" if even else "SLOWER than" if self.ratio > 1 else "faster than"
        return (
            f"INT8 is {verdict} float here: {self.int8_ms:.2f} against {self.float_ms:.2f} ms a prompt "
            f"({self.ratio:.2f} of the time, "
            f"{_counted(self.prompts, 'prompt')} a call, {_counted(self.threads, 'thread')}); "
            f"its files are {share:.0%} of the size."
        )


def compare_speed(
    runs: Mapping[str, Run], feed: Feed, sizes: Mapping[str, int], *, threads: int, seconds: float = 2.0,
) -> SpeedReport:  # fmt: skip
    """Measure the runs 'float' and 'int8' in turns on the same prompts; `sizes` are their files' in bytes."""
    prompts = len(feed["point_coords"])
    candidates = [Candidate(name, prompts, runs[name], lambda _: feed) for name in ("float", "int8")]
    samples = {found.name: found.prompt_ms for found in measure(candidates, Effort(seconds))}
    return SpeedReport(
        prompts, threads, len(samples["float"]), median(samples["float"]), median(samples["int8"]),
        sizes["float"], sizes["int8"],
    )  # fmt: skip


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
