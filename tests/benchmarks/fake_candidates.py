"""A clock that only moves when told, and candidates that tell it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from samx.benchmarks.interleave import Candidate, Samples


@dataclass
class FakeClock:
    """Count nanoseconds that pass only in sleep_ns; remember who was called with what."""

    now_ns: int = 0
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def __call__(self) -> int:
        return self.now_ns

    def candidate(
        self, name: str, call_ns: int, *, prompts: int = 1, first_ns: int = 0, prepare_ns: int = 0
    ) -> Candidate:
        """Make a callable that takes `call_ns`, on its first call `first_ns` more."""

        def inputs(number: int) -> int:
            self.now_ns += prepare_ns
            return number

        def call(argument: Any) -> None:
            extra = 0 if any(seen == name for seen, _ in self.calls) else first_ns
            self.calls.append((name, argument))
            self.now_ns += call_ns + extra

        return Candidate(name, prompts, call, inputs)


def samples(name: str, *times_ms: float, prompts: int = 1) -> Samples:
    """Make samples of calls that took so many ms."""
    return Samples(name, prompts, tuple(round(ms * 1e6) for ms in times_ms))
