"""ParityReport: the gate's verdict with its numbers, as JSON first; for people and CI servers too."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from xml.etree import ElementTree

import numpy as np

import samx
from samx.artifacts.commit import write_file
from samx.artifacts.manifest import Evidence, Level, utc_now
from samx.artifacts.strict_json import Count, Document, refusal, take
from samx.devices import cpu
from samx.devices.adapter import Tree
from samx.validators.metrics import AT_LEAST, Bounds, EncoderBounds

if TYPE_CHECKING:
    from rich.table import Table

PARITY_ROLE, DEVICE_REPORT_FILE = "parity_report", "device_parity_report.json"  # in an artifact
HEADINGS = ("metric", "worst", "bound", "case")
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters XML 1.0 cannot hold
BOUNDED = frozenset(field.name for kind in (Bounds, EncoderBounds) for field in fields(kind))


def _check_metrics(value: Mapping[str, float], where: str) -> None:
    if unknown := sorted(set(value) - BOUNDED):
        raise refusal(f"{where} has a metric that has no bound", unknown[0])


def _check_suite(value: Mapping[str, Any], where: str) -> None:
    take(Count, value.get("cases"), f"{where}: cases")


Metrics = Annotated[Mapping[str, float], _check_metrics]


@dataclass(frozen=True)
class CaseResult:
    """Judge one case. A case without metrics could not be compared, and that is a failure too."""

    name: str
    image: Count
    prompts: Count
    points: Count
    failures: tuple[str, ...]
    metrics: Metrics
    mask_iou: tuple[float, ...]  # of each prompt's each mask
    undecided_pixels: Count

    @property
    def passed(self) -> bool:
        """Whether the case was compared and nothing was wrong."""
        return not self.failures and bool(self.metrics)


@dataclass(frozen=True)
class Judged:
    """Record what was measured, and what was wrong: of a decoder, or of an encoder."""

    bounds: Bounds | EncoderBounds
    suite: Annotated[Mapping[str, Any], _check_suite]  # cases planned, image source, reference, live or stored
    metrics: Metrics  # over all cases
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

    def whole_failures(self) -> list[str]:
        """Return what was wrong with the run as a whole; a planned case that is missing, too."""
        planned = int(self.suite["cases"])
        if planned != len(self.cases) or not self.cases:
            return [*self.failures, f"{len(self.cases)} of {planned} planned cases were compared"]
        nothing = [] if self.metrics or self.failures else ["no case could be compared"]
        return [*self.failures, *nothing]

    def all_failures(self) -> list[str]:
        """Return what was wrong, the run first and then case by case."""
        of_cases = [f"case {case.name}: {line}" for case in self.cases for line in case.failures]
        return [*self.failures, *of_cases]

    def worst(self) -> dict[str, tuple[float, str]]:
        """Return each metric's worst value and the case it comes from ("all": over all cases)."""
        found = {name: (value, "all") for name, value in self.metrics.items()}
        for case in self.cases:
            for name, value in case.metrics.items():
                if name not in found or _is_worse(name, value, found[name][0]):
                    found[name] = (value, case.name)
        return found


@dataclass(frozen=True)
class EncoderReport(Judged):
    """Record how an image encoder was judged, from pictures to masks."""

    bounds: EncoderBounds


@dataclass(frozen=True)
class ParityReport(Judged, Document):
    """Record what was compared with what, where, and how it went."""

    HEADER = {"format": "samx-parity-report", "schema_version": 1}
    DERIVED = ("passed",)

    bounds: Bounds
    subject: str  # what was judged
    level: Level  # the evidence it can support if it passed
    nonce: str  # ties the report to the run that asked for it
    created: str
    placement: Mapping[str, Any]
    environment: Mapping[str, str]
    encoder: EncoderReport | None = None  # None: the decoder alone

    @classmethod
    def from_json(cls, value: Any, where: str) -> ParityReport:
        """Read plain data; 0.1.0 judged decoders alone, and none with object pointers.

        Raises: ArtifactError for anything that to_json() would not have returned.
        """
        if isinstance(value, dict) and isinstance(value.get("bounds"), dict):
            value = {"encoder": None, **value, "bounds": {"object_pointer_error": None, **value["bounds"]}}
        return super().from_json(value, where)

    @property
    def passed(self) -> bool:
        """Whether the decoder passed, and the encoder if one was judged."""
        return super().passed and (self.encoder is None or self.encoder.passed)

    def parts(self) -> dict[str, Judged]:
        """Return what was judged, each with how its cases' names begin."""
        return {"": self, **({"encoder, ": self.encoder} if self.encoder is not None else {})}

    def all_failures(self) -> list[str]:
        """Return what was wrong, the decoder first."""
        of_encoder = [] if self.encoder is None else self.encoder.all_failures()
        return [*super().all_failures(), *(f"encoder: {line}" for line in of_encoder)]

    def summary(self) -> str:
        """Return the verdict in one line."""
        where = f"{self.placement.get('runtime', 'unknown runtime')} on {self.placement.get('requested', '?')}"
        if self.passed:
            iou, _ = self.worst().get("mask_iou_min", (math.nan, ""))
            decoder = f"parity passed: {len(self.cases)} cases, {self.precision}, {where}, lowest mask IoU {iou:.5f}"
            return f"{decoder}; {self._of_encoder()}"
        failed = sum(not case.passed for part in self.parts().values() for case in part.cases)
        planned = sum(part.suite["cases"] for part in self.parts().values())
        first = next(iter(self.all_failures()), "not every planned case was compared")
        drawn = f" (seed {self.suite['seed']})" if "seed" in self.suite else ""
        return f"parity failed: {failed} of {planned} cases, {self.precision}, {where}: {first}{drawn}"

    def _of_encoder(self) -> str:
        if self.encoder is None:
            return "no image encoder"
        iou = self.encoder.metrics.get("mask_iou_mean", math.nan)
        return f"encoder: {len(self.encoder.cases)} pictures, {self.encoder.precision}, mean mask IoU {iou:.5f}"

    def to_bytes(self) -> bytes:
        """Return the file's content. Of a placement's details, what is no JSON is written as its words."""
        return (json.dumps(self.to_json(), indent=self.INDENT, allow_nan=False, default=str) + "\n").encode()

    def save(self, path: Path) -> None:
        """Write the report whole or not at all."""
        write_file(path, self.to_bytes())

    def evidence(self, file: str) -> Evidence:
        """Return what a report that passed shows of an artifact, which has it as a file."""
        runtime, where = str(self.placement["runtime"]), str(self.placement["requested"])
        return Evidence(self.level, file, True, runtime, where, utc_now())


def _is_worse(name: str, value: float, than: float) -> bool:
    return value < than if name in AT_LEAST else value > than


def environment() -> dict[str, str]:
    """Describe this machine in words."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": str(cpu.model(Tree()).value or platform.processor() or "unknown"),
        "cpu_count": str(os.cpu_count() or "unknown"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "samx": samx.__version__,
    }


def to_table(report: ParityReport) -> Table:
    """Show each metric's worst value, its bound and the case it comes from."""
    from rich.table import Table

    verdict = "passed" if report.passed else "failed"
    table = Table(title=f"Parity {verdict}: {report.subject} ({report.precision})", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in ("worst", "bound") else "left")
    for row in _rows(report):
        table.add_row(*row)
    return table


def to_markdown(report: ParityReport) -> str:
    """Write the same as Markdown, for a pull request: the verdict and what failed first."""
    lines = [f"**Parity {'passed' if report.passed else 'FAILED'}**: {_in_markdown(report.summary())}", ""]
    lines += [f"- failed: {_in_markdown(line)}" for line in report.all_failures()]
    lines += ["", f"| {' | '.join(HEADINGS)} |", "|---|---:|---:|---|"]
    lines += [f"| {' | '.join(map(_in_markdown, row))} |" for row in _rows(report)]
    return "\n".join([*lines, ""])


def _in_markdown(text: str) -> str:
    """Keep a line one line of text: names come from files."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _rows(report: ParityReport) -> Iterator[tuple[str, str, str, str]]:
    for prefix, part in report.parts().items():
        for name, (value, case) in part.worst().items():
            bound = getattr(part.bounds, name)
            sign = "at least" if name in AT_LEAST else "at most"
            shown = "not judged" if bound is None else f"{sign} {bound:g}"
            yield f"{prefix}{name}", f"{value:.6g}", shown, case


def to_junit(report: ParityReport) -> str:
    """Write one test per case and one for the run as a whole; a case that is missing is a failure."""
    whole = {f"{prefix}suite": part.whole_failures() for prefix, part in report.parts().items()}
    named = [(f"{prefix}{case.name}", _case_failures(case)) for prefix, part in report.parts().items()
             for case in part.cases]  # fmt: skip
    found = [*whole.items(), *named]
    suite = ElementTree.Element(
        "testsuite", name=_clean(f"samx parity {report.subject}"), tests=str(len(found)),
        failures=str(sum(bool(failures) for _, failures in found)), errors="0", skipped="0", timestamp=report.created,
    )  # fmt: skip
    for name, failures in found:
        _test(suite, name, failures)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def _case_failures(case: CaseResult) -> list[str]:
    return [] if case.passed else list(case.failures) or ["the case was not compared"]


def _test(suite: ElementTree.Element, name: str, failures: list[str]) -> None:
    test = ElementTree.SubElement(suite, "testcase", classname="samx.parity", name=_clean(name))
    if failures:
        failure = ElementTree.SubElement(test, "failure", message=_clean(failures[0]))
        failure.text = _clean("\n".join(failures))


def _clean(message: str) -> str:
    return NOT_XML.sub("?", message)
