"""Read a BenchReport that somebody else may have written: every surprise is an ArtifactError in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import isclose, isfinite
from statistics import median
from typing import Any

from samx.artifacts import strict_json as read
from samx.benchmarks.fields import FIX, all_of, each, lines, names, optional, texts
from samx.benchmarks.results import (
    FORMAT,
    PHASES,
    SCHEMA_VERSION,
    BenchReport,
    Comparison,
    Need,
    NotMeasured,
    ParityRecord,
    Result,
    Roofline,
    SubjectRecord,
)
from samx.benchmarks.telemetry import read_device, read_reading
from samx.errors import ArtifactError

DERIVED = ("summary", "prompts_per_second", "flags")
SAME = 1e-9  # derived numbers are computed from the same samples, so only the last digit may differ


def read_report(data: bytes, where: str) -> BenchReport:
    """Take a whole report.

    Raises: ArtifactError.
    """
    found = read.mapping(read.parse(data, where), where)
    _check_format(found, where)
    body = read.fields(found, ["format", "schema_version", *names(BenchReport)], where)
    report = BenchReport(
        **texts(body, ("created", "samx", "images", "clock"), where),
        quick=read.flag(body["quick"], f"{where}: quick"),
        partial=optional(read.text, body["partial"], f"{where}: partial"),
        command=lines(body["command"], f"{where}: command"),
        threads=optional(read.count, body["threads"], f"{where}: threads"),
        seed=read.count(body["seed"], f"{where}: seed"),
        seconds=read.number(body["seconds"], f"{where}: seconds"),
        clock_step_ns=read.count(body["clock_step_ns"], f"{where}: clock_step_ns"),
        device=read_device(body["device"], f"{where}: device"),
        subjects=each(_subject, body["subjects"], f"{where}: subject"),
        results=each(_result, body["results"], f"{where}: result"),
        ratios=each(_comparison, body["ratios"], f"{where}: ratio"),
        not_measured=each(_not_measured, body["not_measured"], f"{where}: not_measured"),
        flags=lines(body["flags"], f"{where}: flags"),
        roofline=optional(_roofline, body["roofline"], f"{where}: roofline"),
    )
    _check_names(report, where)
    for ratio in report.ratios:
        _check_ratio(report, ratio, where)
    return report


def _check_format(found: Mapping[str, Any], where: str) -> None:
    kind = (found.get("format"), found.get("schema_version"))
    if kind != (FORMAT, SCHEMA_VERSION) or type(kind[1]) is not int:
        raise ArtifactError(
            f"{where} has another format", found=f"{kind[0]!r} schema {kind[1]!r}"[: read.SHOWN_CHARACTERS],
            expected=f"{FORMAT!r} schema {SCHEMA_VERSION}", fix=f"Use the samx version that wrote it. {FIX}",
        )  # fmt: skip


def _subject(value: Any, where: str) -> SubjectRecord:
    found = read.fields(value, names(SubjectRecord), where)
    plain = ("name", "target", "precision", "family", "masks", "checkpoint", "checkpoint_sha256", "manifest_sha256")
    return SubjectRecord(
        **texts(found, plain, where),
        mask_input=read.flag(found["mask_input"], f"{where}: mask_input"),
        bytes=read.count(found["bytes"], f"{where}: bytes"),
        form=optional(read.text, found["form"], f"{where}: form"),
        options=read.mapping(found["options"], f"{where}: options"),
        parity=_parity(found["parity"], f"{where}: parity"),
        placement=optional(read.mapping, found["placement"], f"{where}: placement"),
    )


def _parity(value: Any, where: str) -> ParityRecord:
    found = read.fields(value, names(ParityRecord), where)
    metrics = read.mapping(found["metrics"], f"{where}: metrics")
    record = ParityRecord(
        **texts(found, ("verdict", "level", "device", "runtime", "created", "source"), where),
        cases=read.count(found["cases"], f"{where}: cases"),
        metrics={name: read.number(metric, f"{where}: {name}") for name, metric in metrics.items()},
    )
    if record.verdict != "passed" or not record.cases or not record.metrics:
        raise ArtifactError(f"{where} did not pass", found=record.verdict, expected="passed, of one case or more",
                            fix="Speed without parity says nothing. Export again.")  # fmt: skip
    return record


def _result(value: Any, where: str) -> Result:
    found = read.fields(value, [*names(Result), *DERIVED], where)
    counts = all_of(read.count, found, ("prompts", "warm_up_calls", "warm_up_ns", "start_ns", "end_ns"), where)
    result = Result(
        **texts(found, ("subject", "scenario", "phase"), where),
        **counts,
        points=each(read.count, found["points"], f"{where}: points"),
        samples_ns=each(_positive, found["samples_ns"], f"{where}: sample"),
        energy_mj=read_reading(found["energy_mj"], f"{where}: energy_mj"),
        peak_bytes=optional(read_reading, found["peak_bytes"], f"{where}: peak_bytes"),
    )
    if not result.samples_ns or result.phase not in PHASES:
        raise ArtifactError(f"{where} has no samples, or an unknown phase", found=result.phase, fix=FIX)
    _check_derived(result, found, where)
    return result


def _positive(value: Any, where: str) -> int:
    if type(value) is not int or value < 1:
        raise ArtifactError(f"{where} is no time", found=repr(value)[: read.SHOWN_CHARACTERS],
                            expected="whole nanoseconds, at least 1", fix=FIX)  # fmt: skip
    return value


def _check_derived(result: Result, found: Mapping[str, Any], where: str) -> None:
    """Refuse a summary that the samples deny."""
    summary = asdict(result.summary)
    claimed = read.fields(found["summary"], summary, f"{where}: summary")
    pairs = {name: (claimed[name], summary[name]) for name in summary}
    pairs["prompts_per_second"] = (found["prompts_per_second"], result.prompts_per_second)
    pairs["flags"] = (found["flags"], result.flags)
    for name, (stated, true) in pairs.items():
        if not _same(stated, true):
            raise ArtifactError(f"{where}: the samples deny its {name}", found=stated, expected=true, fix=FIX)


def _same(stated: Any, true: Any) -> bool:
    if type(true) is float and type(stated) in (int, float):
        return isclose(stated, true, rel_tol=SAME, abs_tol=SAME)
    return type(stated) is type(true) and bool(stated == true)


def _comparison(value: Any, where: str) -> Comparison:
    found = read.fields(value, names(Comparison), where)
    return Comparison(
        **texts(found, ("scenario", "phase", "baseline", "candidate"), where),
        **all_of(read.number, found, ("value", "low", "high"), where),
    )


def _not_measured(value: Any, where: str) -> NotMeasured:
    found = read.fields(value, names(NotMeasured), where)
    scenario, phase = (optional(read.text, found[name], f"{where}: {name}") for name in ("scenario", "phase"))
    return NotMeasured(**texts(found, ("subject", "reason"), where), scenario=scenario, phase=phase)


def _roofline(value: Any, where: str) -> Roofline:
    found = read.fields(value, names(Roofline), where)
    return Roofline(
        threads=optional(read.count, found["threads"], f"{where}: threads"),
        **all_of(read_reading, found, ("multiply_adds_per_s", "bytes_per_s"), where),
        needs=each(_need, found["needs"], f"{where}: need"),
    )


def _need(value: Any, where: str) -> Need:
    found = read.fields(value, names(Need), where)
    return Need(
        **texts(found, ("subject", "scenario"), where), **all_of(read.count, found, ("multiply_adds", "bytes"), where)
    )


def _check_names(report: BenchReport, where: str) -> None:
    """Every entry belongs to one subject, and no result comes twice."""
    subjects = [subject.name for subject in report.subjects]
    results = [(result.subject, result.scenario, result.phase) for result in report.results]
    named = {result.subject for result in report.results} | {entry.subject for entry in report.not_measured}
    named |= {need.subject for need in (() if report.roofline is None else report.roofline.needs)}
    if len(set(subjects)) != len(subjects) or len(set(results)) != len(results):
        raise ArtifactError(f"{where} has a subject or a result twice", fix=FIX)
    if unknown := sorted(named - set(subjects)):
        raise ArtifactError(f"{where} has results of a subject that it does not describe", found=unknown[0], fix=FIX)
    if not report.subjects or (not report.results and report.partial is None):
        raise ArtifactError(f"{where} holds no result, and does not say why", fix=FIX)


def _check_ratio(report: BenchReport, ratio: Comparison, where: str) -> None:
    """Refuse a ratio that the samples deny."""
    pair = [report.find(name, ratio.scenario, ratio.phase) for name in (ratio.baseline, ratio.candidate)]
    medians = [median(entry.samples_ns) / max(entry.prompts, 1) for entry in pair if entry is not None]
    if len(medians) < 2 or not _same(ratio.value, medians[0] / medians[1]) or not _is_interval(ratio):
        raise ArtifactError(
            f"{where}: the samples deny the ratio of '{ratio.candidate}' in '{ratio.scenario}'", found=ratio.value,
            expected=f"{medians[0] / medians[1]:.6g}" if len(medians) == 2 else "two results", fix=FIX,
        )  # fmt: skip


def _is_interval(ratio: Comparison) -> bool:
    return 0 < ratio.low <= ratio.high and isfinite(ratio.high)
