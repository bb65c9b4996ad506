"""Check a program against the known rules of the Neural Engine. This runs nothing and promises nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from samx.formats.coreml.lint_rules import (
    FALLS_OFF,
    RULES,
    SEVERITIES,
    Hit,
    Rule,
    Step,
    multiply_adds,
    steps_of,
    tensors_of,
)
from samx.formats.coreml.tensors import UNRANKED, TensorType

KIND, SCHEMA_VERSION = "lint", 2
SHOWS = "rules about the program, checked on this machine; nothing ran on a Neural Engine and no compute plan was made"
TITLE = "lint, not a measurement: the known rules of the Neural Engine"

MIB = 2**20
SHOWN_BYTES = MIB // 10  # less is nothing to a reader
MOST_PLACES = 12  # named for a rule in a function; all are counted
FORBIDDEN_TYPES = ("int64", "uint64", "string", "list")
BY_NAME: Mapping[str, Rule] = {rule.name: rule for rule in RULES}


@dataclass(frozen=True)
class Finding:
    """Describe where one rule applies in one function."""

    rule: str
    operations: int
    bytes: int
    places: tuple[str, ...]  # the first of them


@dataclass(frozen=True)
class FunctionLint:
    """Count what breaks no rule that keeps an operation off the engine, and list what breaks any rule."""

    operations: int
    passing: int
    multiply_adds: int
    passing_multiply_adds: int
    float32_groups: tuple[Mapping[str, Any], ...]  # operations that hang together: how many, the first, the last
    findings: tuple[Finding, ...]

    @property
    def share_of_operations(self) -> float:
        """How many of all operations pass."""
        return _share(self.passing, self.operations)

    @property
    def share_of_multiply_adds(self) -> float:
        """How much of the convolutions and products passes."""
        return _share(self.passing_multiply_adds, self.multiply_adds)

    def lines(self, name: str) -> list[str]:
        """Summarise the function for a terminal: its shares, then the rules it breaks, the gravest first."""
        order = sorted(self.findings, key=lambda finding: SEVERITIES.index(BY_NAME[finding.rule].severity))
        head = (
            f"{name}: {self.passing} of {self.operations} operations ({_percent(self.share_of_operations)}) "
            f"and {_percent(self.share_of_multiply_adds)} of the multiply-adds break no rule that keeps them off it"
        )
        return [head, *(f"  {_line(finding, self)}" for finding in order)]

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the shares as plain data."""
        shares = {name: getattr(self, name) for name in ("share_of_operations", "share_of_multiply_adds")}
        return {**asdict(self), **shares}


def lint_lines(lints: Mapping[str, FunctionLint]) -> list[str]:
    """Summarise a package for a terminal."""
    return [TITLE, *(line for name, found in lints.items() for line in found.lines(name))]


def lint_json(lints: Mapping[str, FunctionLint]) -> dict[str, Any]:
    """Return what was found in a package as plain data that says what it is."""
    return {
        "kind": KIND,
        "shows": SHOWS,
        "schema_version": SCHEMA_VERSION,
        "rules": {rule.name: {"severity": rule.severity, "why": rule.why, "source": rule.source} for rule in RULES},
        "functions": {name: found.to_json() for name, found in lints.items()},
    }


def lint(functions: Mapping[str, Any]) -> dict[str, FunctionLint]:
    """Check the MIL functions of a package against every rule."""
    return {name: _lint_steps(steps_of(function)) for name, function in functions.items()}


def forbidden(functions: Mapping[str, Any]) -> list[str]:
    """Name what no package may have: a size that is not fixed, an unknown rank, a 64-bit integer, a string.

    A scalar string constant is how MIL writes a mode, such as gelu's, and is none of them.
    """
    tensors = [(name, tensor) for name, function in functions.items() for tensor in tensors_of(function)]
    return [f"{name}: tensor '{tensor.name}' has {fault}" for name, tensor in tensors if (fault := _fault(tensor))]


def _fault(tensor: TensorType) -> str | None:
    if tensor.shape == UNRANKED:
        return "an unknown rank"
    if not tensor.fixed:
        return f"a dynamic dimension in {tensor.size_words}"
    is_mode = tensor.dtype == "string" and tensor.constant and tensor.shape == ()
    return f"the type {tensor.dtype}" if tensor.dtype in FORBIDDEN_TYPES and not is_mode else None


def _lint_steps(steps: Sequence[Step]) -> FunctionLint:
    hits = {rule.name: [(step, hit) for step in steps if (hit := rule.check(step)) is not None] for rule in RULES}
    fallen = {step.name for rule in RULES if rule.severity == FALLS_OFF for step, _ in hits[rule.name]}
    passing = [step for step in steps if step.name not in fallen]
    return FunctionLint(
        operations=len(steps),
        passing=len(passing),
        multiply_adds=sum(map(multiply_adds, steps)),
        passing_multiply_adds=sum(map(multiply_adds, passing)),
        float32_groups=tuple(_connected([step for step, _ in hits["float32"]])),
        findings=tuple(_finding(rule, hits[rule.name]) for rule in RULES if hits[rule.name]),
    )


def _finding(rule: Rule, hits: Sequence[tuple[Step, Hit]]) -> Finding:
    places = [f"{step.operator} '{step.name}': {detail}" for step, (detail, _) in hits[:MOST_PLACES]]
    return Finding(rule.name, len(hits), sum(size for _, (_, size) in hits), tuple(places))


def _connected(steps: Sequence[Step]) -> list[Mapping[str, Any]]:
    """Join the steps that share a computed tensor."""
    groups: list[list[Step]] = []
    for step in steps:
        touched = [group for group in groups if _tensor_names(group) & _tensor_names([step])]
        groups = [group for group in groups if group not in touched]
        groups.append([*(member for group in touched for member in group), step])
    return [{"operations": len(group), "first": group[0].name, "last": group[-1].name} for group in groups]


def _tensor_names(steps: Sequence[Step]) -> set[str]:
    return {tensor.name for step in steps for tensor in step.flowing}


def _line(finding: Finding, found: FunctionLint) -> str:
    rule = BY_NAME[finding.rule]
    size = f", {finding.bytes / MIB:.1f} MiB" if finding.bytes >= SHOWN_BYTES else ""
    groups = f" in {_count(len(found.float32_groups), 'group')}" if finding.rule == "float32" else ""
    return f"{rule.severity}: {finding.rule}, {_count(finding.operations, 'operation')}{groups}{size}; {rule.why}"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _percent(share: float) -> str:
    """Round down: what is not whole shall not look so."""
    return f"{int(share * 1000) / 10} %"
