"""ParityReport: the gate's verdict with its numbers, as JSON first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from samx.artifacts import strict_json as read
from samx.artifacts.commit import write_file
from samx.artifacts.manifest import LEVELS
from samx.errors import ArtifactError
from samx.validators.bounds import AT_LEAST, Bounds

FORMAT = "samx-parity-report"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class CaseResult:
    """Hold one case's verdict. A case without metrics could not be compared, and that is a failure too."""

    name: str
    image: int
    prompts: int
    points: int
    failures: tuple[str, ...]
    metrics: Mapping[str, float]
    mask_iou: tuple[float, ...]  # of each prompt's each mask
    undecided_pixels: int

    @property
    def passed(self) -> bool:
        """Whether the case was compared and nothing was wrong."""
        return not self.failures and bool(self.metrics)


@dataclass(frozen=True)
class ParityReport:
    """Hold what was compared with what, where, and how it went."""

    subject: str  # what was judged
    level: str  # the evidence it can support if it passed
    nonce: str  # ties the report to the run that asked for it
    created: str
    bounds: Bounds
    suite: Mapping[str, Any]  # cases planned, image source, reference, live or stored
    placement: Mapping[str, Any]
    environment: Mapping[str, str]
    metrics: Mapping[str, float]  # over all cases
    failures: tuple[str, ...]  # of the run as a whole
    cases: tuple[CaseResult, ...]

    @property
    def precision(self) -> str:
        """The precision whose bounds were applied."""
        return self.bounds.precision

    @property
    def passed(self) -> bool:
        """Positive and total: every planned case was compared, at least one, and nothing failed anywhere."""
        complete = len(self.cases) == self.suite["cases"] and len(self.cases) > 0 and bool(self.metrics)
        in_bounds = not any(map(self.bounds.violations, [self.metrics, *(case.metrics for case in self.cases)]))
        return complete and in_bounds and not self.failures and all(case.passed for case in self.cases)

    def all_failures(self) -> list[str]:
        """List what was wrong, the run first and then case by case."""
        of_cases = [f"case {case.name}: {line}" for case in self.cases for line in case.failures]
        return [*self.failures, *of_cases]

    def worst(self) -> dict[str, tuple[float, str]]:
        """Give each metric's worst value and the case it comes from ("all": over all cases)."""
        found = {name: (value, "all") for name, value in self.metrics.items()}
        for case in self.cases:
            for name, value in case.metrics.items():
                if name not in found or _is_worse(name, value, found[name][0]):
                    found[name] = (value, case.name)
        return found

    def summary(self) -> str:
        """Say it in one line."""
        where = f"{self.placement.get('runtime', 'unknown runtime')} on {self.placement.get('requested', '?')}"
        failed = [case for case in self.cases if not case.passed]
        if self.passed:
            iou, _ = self.worst().get("mask_iou_min", (math.nan, ""))
            return f"parity passed: {len(self.cases)} cases, {self.precision}, {where}, lowest mask IoU {iou:.5f}"
        first = next(iter(self.all_failures()), "not every planned case was compared")
        return f"parity failed: {len(failed)} of {self.suite['cases']} cases, {self.precision}, {where}: {first}"

    def to_json(self) -> dict[str, Any]:
        """Give the fields as plain data, the verdict among them."""
        return {"format": FORMAT, "schema_version": SCHEMA_VERSION, "passed": self.passed, **asdict(self)}

    def to_bytes(self) -> bytes:
        """Write the file's content."""
        return (json.dumps(self.to_json(), indent=2, allow_nan=False, default=str) + "\n").encode()

    def save(self, path: Path) -> None:
        """Write the report whole or not at all."""
        write_file(path, self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> ParityReport:
        """Read the file's content.

        Raises: ArtifactError for anything to_bytes() would not have written, such as a verdict its cases deny.
        """
        return _report(read.parse(data, where), where)


def _is_worse(name: str, value: float, than: float) -> bool:
    return value < than if name in AT_LEAST else value > than


def _report(data: Any, where: str) -> ParityReport:
    names = [field.name for field in fields(ParityReport)]
    found = read.fields(data, ["format", "schema_version", "passed", *names], where)
    if (found["format"], found["schema_version"]) != (FORMAT, SCHEMA_VERSION):
        raise ArtifactError(f"{where} has another format", expected=f"{FORMAT} {SCHEMA_VERSION}", fix=read.REMEDY)
    suite = read.mapping(found["suite"], f"{where}: suite")
    read.count(suite.get("cases"), f"{where}: suite: cases")
    texts = {name: read.text(found[name], f"{where}: {name}") for name in ("subject", "nonce", "created")}
    report = ParityReport(
        **texts,
        level=_level(found["level"], f"{where}: level"),
        bounds=_bounds(found["bounds"], f"{where}: bounds"),
        suite=suite,
        placement=read.mapping(found["placement"], f"{where}: placement"),
        environment=_texts(found["environment"], f"{where}: environment"),
        metrics=_numbers(found["metrics"], f"{where}: metrics"),
        failures=_lines(found["failures"], f"{where}: failures"),
        cases=tuple(_case(case, f"{where}: case {i}") for i, case in enumerate(read.items(found["cases"], where))),
    )
    if report.passed is not read.flag(found["passed"], f"{where}: passed"):
        raise ArtifactError(
            f"{where} contradicts itself: passed is {found['passed']}, its cases say {report.passed}", fix=read.REMEDY
        )
    return report


def _case(data: Any, where: str) -> CaseResult:
    found = read.fields(data, [field.name for field in fields(CaseResult)], where)
    return CaseResult(
        name=read.text(found["name"], f"{where}: name"),
        image=read.count(found["image"], f"{where}: image"),
        prompts=read.count(found["prompts"], f"{where}: prompts"),
        points=read.count(found["points"], f"{where}: points"),
        failures=_lines(found["failures"], f"{where}: failures"),
        metrics=_numbers(found["metrics"], f"{where}: metrics"),
        mask_iou=tuple(read.number(iou, f"{where}: mask_iou") for iou in read.items(found["mask_iou"], where)),
        undecided_pixels=read.count(found["undecided_pixels"], f"{where}: undecided_pixels"),
    )


def _level(value: Any, where: str) -> str:
    level = read.text(value, where)
    if level not in LEVELS:
        raise ArtifactError(f"{where} is unknown", found=level, expected=" or ".join(LEVELS), fix=read.REMEDY)
    return level


def _bounds(value: Any, where: str) -> Bounds:
    found = read.fields(value, [field.name for field in fields(Bounds)], where)
    precision = read.text(found.pop("precision"), f"{where}: precision")
    limits = {name: None if limit is None else read.number(limit, where) for name, limit in found.items()}
    return Bounds(precision, **limits)  # type: ignore[arg-type]  # None is only read where it was written


def _lines(value: Any, where: str) -> tuple[str, ...]:
    return tuple(read.text(line, where) for line in read.items(value, where))


def _texts(value: Any, where: str) -> dict[str, str]:
    return {name: read.text(entry, f"{where}: {name}") for name, entry in read.mapping(value, where).items()}


def _numbers(value: Any, where: str) -> dict[str, float]:
    found = read.mapping(value, where)
    unknown = sorted(set(found) - {field.name for field in fields(Bounds)})
    if unknown:
        raise ArtifactError(f"{where} has a metric that has no bound", found=unknown[0], fix=read.REMEDY)
    return {name: read.number(entry, f"{where}: {name}") for name, entry in found.items()}
