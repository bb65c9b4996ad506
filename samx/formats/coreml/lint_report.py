"""What a lint found, function by function, as data that says of itself what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from samx.artifacts import strict_json as read
from samx.errors import ArtifactError

KIND, SCHEMA_VERSION = "lint", 1
SHOWS = "rules about the program, checked on this machine; nothing ran on a Neural Engine and no compute plan was made"
TITLE = "lint, not a measurement: the known rules of the Neural Engine"

MIB = 2**20
SHOWN_BYTES = MIB // 10  # less is nothing to a reader

FALLS_OFF, SLOW, WATCH = "falls off", "slow", "watch"
SEVERITIES = (FALLS_OFF, SLOW, WATCH)  # the gravest first


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
    operations: int
    bytes: int
    places: tuple[str, ...]  # the first of them


@dataclass(frozen=True)
class Island:
    """Name operations that hang together and compute in float32."""

    operations: int
    first: str
    last: str


@dataclass(frozen=True)
class FunctionLint:
    """Count what breaks no rule that keeps an operation off the engine, and list what breaks any rule."""

    operations: int
    passing: int
    multiply_adds: int
    passing_multiply_adds: int
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

    def to_json(self) -> dict[str, Any]:
        """Give the fields and the shares as plain data."""
        return {**asdict(self), **{name: getattr(self, name) for name in SHARES}}


SHARES = ("share_of_operations", "share_of_multiply_adds")


@dataclass(frozen=True)
class LintReport:
    """Hold the findings of every function of a package."""

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

    def to_json(self) -> dict[str, Any]:
        """Give the report as plain data that says what it is."""
        body = {
            "kind": KIND,
            "shows": SHOWS,
            "schema_version": SCHEMA_VERSION,
            "rules": {name: asdict(rule) for name, rule in self.rules.items()},
            "functions": {name: function.to_json() for name, function in self.functions.items()},
        }
        return {name: _plain(value) for name, value in body.items()}

    @classmethod
    def from_json(cls, value: Any, where: str) -> LintReport:
        """Read a report back.

        Raises: ArtifactError for anything that to_json() would not have given.
        """
        body = read.fields(value, ("kind", "shows", "schema_version", "rules", "functions"), where)
        rules, functions = (read.mapping(body[name], f"{where}: {name}") for name in ("rules", "functions"))
        report = cls(
            {name: _rule(entry, f"{where}: rule {name}") for name, entry in rules.items()},
            {name: _function(entry, f"{where}: function {name}") for name, entry in functions.items()},
        )
        if not report._is_whole() or report.to_json() != value:
            raise ArtifactError(f"{where} is another kind of report, or contradicts itself", fix=read.REMEDY)
        return report

    def _is_whole(self) -> bool:
        used = {finding.rule for function in self.functions.values() for finding in function.findings}
        return used <= set(self.rules) and {rule.severity for rule in self.rules.values()} <= set(SEVERITIES)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _percent(share: float) -> str:
    """Round down: what is not whole shall not look so."""
    return f"{int(share * 1000) / 10} %"


def _plain(value: Any) -> Any:
    """Turn tuples into lists, as JSON does."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _rule(value: Any, where: str) -> RuleText:
    found = read.fields(value, RuleText.__dataclass_fields__, where)
    return RuleText(**{name: read.text(text, f"{where}: {name}") for name, text in found.items()})


def _function(value: Any, where: str) -> FunctionLint:
    found = read.fields(value, (*FunctionLint.__dataclass_fields__, *SHARES), where)
    counts = ("operations", "passing", "multiply_adds", "passing_multiply_adds")
    return FunctionLint(
        **{name: read.count(found[name], f"{where}: {name}") for name in counts},
        islands=tuple(_island(entry, f"{where}: islands") for entry in read.items(found["islands"], where)),
        findings=tuple(_finding(entry, f"{where}: findings") for entry in read.items(found["findings"], where)),
    )


def _island(value: Any, where: str) -> Island:
    found = read.fields(value, Island.__dataclass_fields__, where)
    first, last = (read.text(found[name], where) for name in ("first", "last"))
    return Island(read.count(found["operations"], where), first, last)


def _finding(value: Any, where: str) -> Finding:
    found = read.fields(value, Finding.__dataclass_fields__, where)
    operations, size = (read.count(found[name], where) for name in ("operations", "bytes"))
    places = tuple(read.text(place, where) for place in read.items(found["places"], where))
    return Finding(read.text(found["rule"], where), operations, size, places)
