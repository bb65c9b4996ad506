"""Check a program against the known rules of the Neural Engine. This runs nothing and promises nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samx.formats.coreml.lint_program import Step, Tensor, multiply_adds, steps_of, tensors_of
from samx.formats.coreml.lint_report import FALLS_OFF, Finding, FunctionLint, Island, LintReport, RuleText
from samx.formats.coreml.lint_rules import RULES, Hit, Rule

__all__ = ["LintReport", "forbidden", "lint"]

MOST_PLACES = 12  # named for a rule in a function; all are counted
FORBIDDEN_TYPES = ("int64", "uint64", "string", "list")


def lint(functions: Mapping[str, Any]) -> LintReport:
    """Check the MIL functions of a package against every rule."""
    rules = {rule.name: RuleText(rule.severity, rule.why, rule.source) for rule in RULES}
    return LintReport(rules, {name: _lint_steps(steps_of(function)) for name, function in functions.items()})


def forbidden(functions: Mapping[str, Any]) -> list[str]:
    """Say what no package may have: a size that is not fixed, an unknown rank, a 64-bit integer, a string.

    A scalar string constant is how MIL writes a mode, such as gelu's, and is none of them.
    """
    tensors = [(name, tensor) for name, function in functions.items() for tensor in tensors_of(function)]
    return [f"{name}: tensor '{tensor.name}' has {fault}" for name, tensor in tensors if (fault := _fault(tensor))]


def _fault(tensor: Tensor) -> str | None:
    if tensor.shape is None:
        return "an unknown rank"
    if not tensor.is_fixed:
        return f"a dynamic dimension in {tensor.words}"
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
        islands=tuple(_islands([step for step, _ in hits["float32"]])),
        findings=tuple(_finding(rule, hits[rule.name]) for rule in RULES if hits[rule.name]),
    )


def _finding(rule: Rule, hits: Sequence[tuple[Step, Hit]]) -> Finding:
    places = [f"{step.operator} '{step.name}': {hit.detail}" for step, hit in hits[:MOST_PLACES]]
    return Finding(rule.name, len(hits), sum(hit.bytes for _, hit in hits), tuple(places))


def _islands(steps: Sequence[Step]) -> list[Island]:
    """Join the steps that share a computed tensor."""
    groups: list[list[Step]] = []
    for step in steps:
        touched = [group for group in groups if _tensor_names(group) & _tensor_names([step])]
        groups = [group for group in groups if group not in touched]
        groups.append([*(member for group in touched for member in group), step])
    return [Island(len(group), group[0].name, group[-1].name) for group in groups]


def _tensor_names(steps: Sequence[Step]) -> set[str]:
    return {tensor.name for step in steps for tensor in step.flowing}
