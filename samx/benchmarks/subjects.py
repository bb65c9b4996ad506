"""What is measured: artifacts and contenders, opened, proven on this device, and comparable with each other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import Any

from samx.artifacts.store import Artifact, manifest_bytes
from samx.benchmarks.contenders import Contender, Opened, Setting
from samx.benchmarks.results import NotMeasured, ParityRecord, SubjectRecord
from samx.benchmarks.scenarios import OnDevice
from samx.errors import ParityError, SamxError, UsageError
from samx.extras import require
from samx.models.session import Placement, Session
from samx.models.spec import DecoderSpec
from samx.picture_encoder import RunLevels
from samx.registry import Backend, backend, load, open_session
from samx.validators.child import gate_in_child
from samx.validators.gate import run_gate
from samx.validators.metrics import BOUNDS, Bounds
from samx.validators.report import ParityReport, environment
from samx.validators.suite import ParitySuite

SAME_MACHINE = ("machine", "cpu", "samx")  # what has to agree for a stored parity report to speak of this machine
REASON_CHARACTERS = 300
NOT_TAKEN = "PromptError: "  # begins what the gate says of a case that a contender refuses
CONTENDER = "contender"
# Half precision may go as far as Meta's own modules do under autocast: these bounds keep nonsense out of the table, and
# what was found stands beside the times.
ANYTHING: Mapping[str, Any] = {
    "mask_iou_min": None, "mask_iou_case": None, "mask_iou_p05": 0.0, "flipped_share": 1.0, "logit_error": None,
    "logit_error_relative": inf, "iou_prediction_error": inf, "object_score_error": inf, "object_score_flips": inf,
    "best_mask_changes": inf,
}  # fmt: skip
CONTENDER_BOUNDS: Mapping[str, Bounds] = {
    "fp32": BOUNDS["fp32"], "fp16": Bounds("fp16", mask_iou_mean=0.99, **ANYTHING),
    "bf16": Bounds("bf16", mask_iou_mean=0.95, **ANYTHING),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Subject:
    """Something opened, its description, and the artifact that it is; None: a contender, in this process alone."""

    session: Session
    described: SubjectRecord  # without its placement
    artifact: Artifact | None = None
    encoder: Callable[[], RunLevels] | None = None  # opens a contender's

    @property
    def name(self) -> str:
        """Return its name, unique in the run."""
        return self.described.name

    def record(self, placement: Placement | None) -> SubjectRecord:
        """Describe it, with where its calls ran, if any did."""
        return replace(self.described, placement=None if placement is None else asdict(placement))


def open_subjects(paths: Sequence[Path], device: str, threads: int | None) -> list[Subject]:
    """Open artifacts that can be compared, each with a passed parity check on this device.

    Raises: UsageError for artifacts of different decoders; ParityError for one that does not compute what PyTorch
    computes; ArtifactError, UnavailableError, MissingExtraError.
    """
    artifacts = [Artifact.open(path) for path in paths]
    _check_comparable(artifacts)
    for artifact in artifacts:
        backend(artifact.manifest.target).require_device(device)
    return [_open(name, artifact, device, threads) for name, artifact in zip(_names(paths), artifacts, strict=True)]


def _open(name: str, artifact: Artifact, device: str, threads: int | None) -> Subject:
    """Open one artifact, after its parity was shown."""
    manifest, options = artifact.manifest, dict(artifact.manifest.options)
    entry = backend(manifest.target)
    parity = _proven(artifact, entry, device, threads)
    session = open_session(artifact, device, threads)
    described = SubjectRecord(
        name=name,
        target=manifest.target,
        precision=manifest.precision,
        family=manifest.spec.family,
        masks=manifest.spec.masks,
        mask_input=manifest.spec.mask_input,
        checkpoint=manifest.checkpoint.name,
        checkpoint_sha256=manifest.checkpoint.sha256,
        manifest_sha256=hashlib.sha256(manifest_bytes(artifact.path)).hexdigest(),
        bytes=sum(file.bytes for file in entry.opened(manifest, device)),
        form=options.get("form"),
        options=options,
        parity=parity,
        placement=None,
    )
    return Subject(session, described, artifact)


def _proven(artifact: Artifact, entry: Backend, device: str, threads: int | None) -> ParityRecord:
    """Return the parity report that this machine stored in the artifact, or compare again.

    Raises: ParityError when it did not pass.
    """
    found, source = _stored(artifact, entry, device), "stored"
    if found is None:
        source = "fresh"
        found = gate_in_child(artifact.path, level=entry.level(device), device=device, threads=threads)
    if not found.passed:
        raise ParityError(
            f"{artifact.path} is not measured, because it does not compute what PyTorch computes",
            found=found.summary(), fix="Speed without parity says nothing. Export again.", report=found,
        )  # fmt: skip
    return _record(found, found.level, device, source)


def _record(found: ParityReport, level: str, device: str, source: str) -> ParityRecord:
    worst = {name: value for name, (value, _) in found.worst().items()}
    runtime = str(found.placement["runtime"])
    return ParityRecord("passed", level, device, runtime, found.created, source, len(found.cases), worst)


def open_contenders(
    asked: Sequence[Contender], setting: Setting, suite: ParitySuite, taken: Collection[str] = (),
    mark: str = CONTENDER, resident: bool = False,
) -> tuple[list[Subject], list[NotMeasured]]:  # fmt: skip
    """Open contenders that compute what the suite expects; what cannot be opened, or computes something else, is named.

    A name that is taken gets the mark behind it. With `resident`, prompts and answers stay on the device between calls.
    """
    found: list[Subject] = []
    missing: list[NotMeasured] = []
    for entry in asked:
        name = f"{entry.title} ({mark})" if entry.title in taken else entry.title
        try:
            found.append(_contend(entry, name, replace(setting, precision=entry.precision), suite, resident))
        except Exception as cause:  # compilers, drivers and other people's modules raise nearly anything
            wrong = isinstance(cause, ParityError)
            missing.append(NotMeasured(name, None, None, reason_of(cause), wrong))
    return found, missing


def _contend(entry: Contender, name: str, setting: Setting, suite: ParitySuite, resident: bool) -> Subject:
    """Open one contender, and show that it agrees."""
    entry.require(setting.loaded.spec.family, setting.device)
    opened: Opened = load(entry.open)(setting, **entry.options)
    expected = tuple(replace(one, logits=one.logits.clip(-opened.limit, opened.limit)) for one in suite.expected)
    judged = replace(suite, spec=opened.session.spec, expected=expected)  # a contender may have fewer outputs
    parity = judge(name, opened.session, judged, CONTENDER_BOUNDS[entry.precision], setting.device)
    if isinstance(opened.session, OnDevice):
        opened.session.resident = resident
    spec = opened.session.spec
    described = SubjectRecord(
        name=name,
        target=entry.name,
        precision=entry.precision,
        family=spec.family,
        masks=spec.masks,
        mask_input=spec.mask_input,
        checkpoint=setting.loaded.name,
        checkpoint_sha256=setting.loaded.sha256,
        manifest_sha256=None,
        bytes=opened.bytes,
        form=opened.form,
        options={**entry.options, "cached": opened.form != "reference", "split": opened.keeps_image},
        parity=parity,
        placement=None,
    )
    return Subject(opened.session, described, encoder=opened.encoder)


def judge(name: str, session: Session, suite: ParitySuite, bounds: Bounds, device: str) -> ParityRecord:
    """Compare a contender with PyTorch's answers to the cases that it takes.

    Raises: ParityError when it takes none, or computes something else.
    """
    report = run_gate(session, suite, bounds, level="graph", subject=name, device=device)
    taken = tuple(case for case in report.cases if not any(line.startswith(NOT_TAKEN) for line in case.failures))
    report = replace(report, cases=taken, suite={**report.suite, "cases": len(taken)})
    if not report.passed:
        raise ParityError(
            f"{name} does not compute what PyTorch computes", found=report.summary(), fix="It was not measured."
        )
    return _record(report, CONTENDER, device, "fresh")


def reason_of(cause: BaseException) -> str:
    """Return why something cannot be measured, in a line."""
    words = " ".join(str(cause).split())
    return (words if isinstance(cause, SamxError) else f"{type(cause).__name__}: {words}")[:REASON_CHARACTERS]


def comparability_flags(subjects: Sequence[Subject]) -> list[str]:
    """Return what differs between artifacts besides their speed."""
    checkpoints = {subject.described.checkpoint_sha256: subject for subject in subjects}
    if len(checkpoints) < 2:
        return []
    named = ", ".join(f"{one.name}: {one.described.checkpoint}" for one in checkpoints.values())
    return [f"the artifacts were made from different checkpoints ({named})"]


def _stored(artifact: Artifact, entry: Backend, device: str) -> ParityReport | None:
    """Find the last report about this device, if it was made by this machine with the same library."""
    manifest = artifact.manifest
    names = [e.report for e in manifest.evidence if (e.level, e.device) == (entry.level(device), device)]
    if not names:
        return None
    report = ParityReport.from_bytes(artifact.read(names[-1]), f"{artifact.path}: {names[-1]}")
    here, runner = environment(), entry.runner(device)
    same_machine = all(report.environment.get(name) == here[name] for name in SAME_MACHINE)
    version = getattr(require(runner.library, runner.extra, "measuring"), "__version__", None)
    same_library = report.placement.get("details", {}).get(runner.library) == version is not None
    return report if not report.passed or (same_machine and same_library) else None


def _check_comparable(artifacts: Sequence[Artifact]) -> None:
    first = artifacts[0]
    for other in artifacts[1:]:
        specs = (other.manifest.spec, first.manifest.spec)
        pairs = {field.name: [getattr(spec, field.name) for spec in specs] for field in fields(DecoderSpec)}
        if differing := [f"{name} {here} and {there}" for name, (here, there) in pairs.items() if here != there]:
            raise UsageError(
                f"{other.path} and {first.path} are different decoders, so their times do not compare",
                found="; ".join(differing), expected="the same family, masks, inputs and image size",
                fix="Measure them apart, or export both alike.",
            )  # fmt: skip


def _names(paths: Sequence[Path]) -> list[str]:
    """Name artifacts by their directories, numbered where two have the same name."""
    short = [path.resolve().name for path in paths]
    return [f"{name} ({short[:i].count(name) + 1})" if short.count(name) > 1 else name for i, name in enumerate(short)]
