"""The report that a kit's runner fills in: everything that is known before the kit leaves this machine."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import samx
from samx.artifacts.store import Artifact, manifest_bytes
from samx.benchmarks.interleave import CLOCK_NAME
from samx.benchmarks.results import (
    FORMAT,
    SCHEMA_VERSION,
    BenchReport,
    DeviceRecord,
    NotMeasured,
    ParityRecord,
    Result,
    SubjectRecord,
)
from samx.benchmarks.scenarios import NAMES, Scenario, Workload
from samx.devices.adapter import unread
from samx.kits.questions import SCENARIOS, SECONDS

STEADY, OTHER_PHASES = "steady", ("transfer", "post_processing")
LATER = "filled in on the device"
ELSEWHERE = "an on-device kit does not measure it; 'samx bench' does"
NO_POWER = "the kit's runner reads power before and after the run only"
READ_TWICE = "information: the machine was read before and after the run only; throttling in between would not show"


def blank_report(name: str, artifact: Artifact, questions: Workload) -> dict[str, Any]:
    """Write a benchmark report without results. No reader takes it before a passed parity check is in it."""
    measured = [scenario.name for scenario in SCENARIOS]
    missing = [NotMeasured(name, other, None, ELSEWHERE) for other in NAMES if other not in measured]
    missing += [NotMeasured(name, None, phase, ELSEWHERE) for phase in OTHER_PHASES]
    sampling = {"interval_s": 0.0, "cost": unread(NO_POWER).to_json()}
    report = BenchReport(
        created=LATER, samx=samx.__version__, quick=False, partial=None, command=(), threads=None, seed=questions.seed,
        seconds=SECONDS, images=questions.source, clock=CLOCK_NAME, clock_step_ns=0,
        device=DeviceRecord(LATER, {}, {}, (), sampling, (READ_TWICE,)), subjects=(_subject(name, artifact),),
        results=tuple(_result(name, scenario, questions) for scenario in SCENARIOS), ratios=(),
        not_measured=tuple(missing), flags=(),
    )  # fmt: skip
    return {"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(report)}


def _subject(name: str, artifact: Artifact) -> SubjectRecord:
    manifest = artifact.manifest
    return SubjectRecord(
        name=name,
        target=manifest.target,
        precision=manifest.precision,
        family=manifest.spec.family,
        masks=manifest.spec.masks,
        mask_input=manifest.spec.mask_input,
        checkpoint=manifest.checkpoint.name,
        checkpoint_sha256=manifest.checkpoint.sha256,
        manifest_sha256=hashlib.sha256(manifest_bytes(artifact.path)).hexdigest(),
        bytes=0,
        form=manifest.options.get("form"),
        options=manifest.options,
        parity=ParityRecord(LATER, LATER, LATER, LATER, LATER, LATER, 0, {}),
        placement=None,
    )


def _result(name: str, scenario: Scenario, questions: Workload) -> Result:
    energy = unread(NO_POWER, "mJ").to_json()
    points = questions.tokens(scenario)
    return Result(name, scenario.name, STEADY, scenario.prompts, points, 0, 0, 0, 0, (), energy, None)
