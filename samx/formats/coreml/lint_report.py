"""What a lint found, function by function, as data that says of itself what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from samx.artifacts.strict_json import REMEDY, Count, Document
from samx.errors import ArtifactError

SHOWS = "rules about the program, checked on this machine; nothing ran on a Neural Engine and no compute plan was made"
TITLE = "lint, not a measurement: the known rules of the Neural Engine"

MIB = 2**20
SHOWN_BYTES = MIB // 10  # less is nothing to a reader

SEVERITIES = (FALLS_OFF, SLOW, WATCH) = ("falls off", "slow", "watch")  # the gravest first


@dataclass(frozen=True)
class RuleText:
    """Say what a rule is about, how much it matters and who says so."""

    severity: str
    why: str
    source: str


@dataclass(frozen=True)
class Finding:
    """Say where one rule applies in one function."""

    rule: str
    operations: Count
    bytes: Count
    places: tuple[str, ...]  # the first of them


@dataclass(frozen=True)
class Island:
    """Name operations that hang together and compute in float32."""

    operations: Count
    first: str
    last: str


@dataclass(frozen=True)
class FunctionLint(Document):
    """Count what breaks no rule that keeps an operation off the engine, and list what breaks any rule."""

    DERIVED = ("share_of_operations", "share_of_multiply_adds")

    operations: Count
    passing: Count
    multiply_adds: Count
    passing_multiply_adds: Count
    islands: tuple[Island, ...]
    findings: tuple[Finding, ...]

    @property
    def share_of_operations(self) -> float:
        """How many of all operations pass."""
        return _share(self.passing, self.operations)

    @property
    def share_of_multiply_adds(self) -> float:
        """How much of the convolutions and products passes."""
        return _share(self.passing_multiply_adds, self.multiply_adds)


@dataclass(frozen=True)
class LintReport(Document):
    """List the findings of every function of a package."""

    HEADER = {"kind": "lint", "shows": SHOWS, "schema_version": 1}

    rules: Mapping[str, RuleText]
    functions: Mapping[str, FunctionLint]

    def lines(self) -> list[str]:
        """Summarise for a terminal."""
        return [TITLE, *(line for name in self.functions for line in self.function_lines(name))]

    def function_lines(self, name: str) -> list[str]:
        """Summarise one function for a terminal: its shares, then the rules it breaks, the gravest first."""
        found = self.functions[name]
        order = sorted(found.findings, key=lambda finding: SEVERITIES.index(self.rules[finding.rule].severity))
        head = (
            f"{name}: {found.passing} of {found.operations} operations ({_percent(found.share_of_operations)}) "
            f"and {_percent(found.share_of_multiply_adds)} of the multiply-adds break no rule that keeps them off it"
        )
        return [head, *(f"  {self._line(finding, found)}" for finding in order)]

    def _line(self, finding: Finding, found: FunctionLint) -> str:
        rule = self.rules[finding.rule]
        size = f", {finding.bytes / MIB:.1f} MiB" if finding.bytes >= SHOWN_BYTES else ""
        islands = f" in {_count(len(found.islands), 'island')}" if finding.rule == "float32" else ""
        return f"{rule.severity}: {finding.rule}, {_count(finding.operations, 'operation')}{islands}{size}; {rule.why}"

    def check(self, where: str) -> None:
        """Refuse a finding of a rule that is not described, and a severity that there is not."""
        used = {finding.rule for function in self.functions.values() for finding in function.findings}
        unknown = [
            *used.difference(self.rules),
            *{rule.severity for rule in self.rules.values()}.difference(SEVERITIES),
        ]
        if unknown:
            raise ArtifactError(f"{where} has an unknown rule or severity", found=unknown[0][:80], fix=REMEDY)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _percent(share: float) -> str:
    """Round down: what is not whole shall not look so."""
    return f"{int(share * 1000) / 10} %"
