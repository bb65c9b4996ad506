"""What a compiler leaves in an artifact that is being made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from samx.artifacts.manifest import Evidence


@dataclass(frozen=True)
class Lowered:
    """Name the files that were written, each with its role, and what they show."""

    files: Mapping[str, str]
    evidence: Evidence
    tools: Mapping[str, str]  # library: version
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()  # about precision or shapes
    opened: bool = True  # whether this machine's device can open what was built
