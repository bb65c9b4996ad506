"""What samx claims about its speed, and whether a measurement bears it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from samx.benchmarks.summary import Ratio


@dataclass(frozen=True)
class Verdict:
    """Say whether a claimed speed-up was reached."""

    candidate: str
    at_least: float
    ratio: Ratio

    @property
    def met(self) -> bool:
        """Whether the ratio of medians reaches the bound; NaN does not."""
        return self.ratio.value >= self.at_least


def judge(claims: Mapping[str, float], ratios: Mapping[str, Ratio]) -> list[Verdict]:
    """Hold the claims about the measured candidates against their ratios."""
    return [Verdict(name, bound, ratios[name]) for name, bound in claims.items() if name in ratios]
