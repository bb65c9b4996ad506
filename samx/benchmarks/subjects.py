"""The artifacts that are measured: opened, proven on this device, and comparable with each other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from samx.artifacts.store import Artifact, manifest_bytes
from samx.benchmarks.results import ParityRecord, SubjectRecord
from samx.errors import ParityError, UsageError
from samx.extras import require
from samx.models.session import Placement, Session
from samx.models.spec import DecoderSpec
from samx.registry import Backend, backend, load
from samx.validators.child import gate_in_child
from samx.validators.report import ParityReport, environment

SAME_MACHINE = ("machine", "cpu", "samx")  # what has to agree for a stored parity report to speak of this machine


@dataclass(frozen=True, eq=False)
class Subject:
    """An opened artifact, and the proof that it computes what PyTorch computes."""

    name: str
    artifact: Artifact
    session: Session
    parity: ParityRecord

    def record(self, device: str, placement: Placement | None) -> SubjectRecord:
        """Describe it, with where its calls ran, if any did."""
        manifest, options = self.artifact.manifest, dict(self.artifact.manifest.options)
        return SubjectRecord(
            name=self.name,
            target=manifest.target,
            precision=manifest.precision,
            family=manifest.spec.family,
            masks=manifest.spec.masks,
            mask_input=manifest.spec.mask_input,
            checkpoint=manifest.checkpoint.name,
            checkpoint_sha256=manifest.checkpoint.sha256,
            manifest_sha256=hashlib.sha256(manifest_bytes(self.artifact.path)).hexdigest(),
            bytes=sum(file.bytes for file in backend(manifest.target).opened(manifest, device)),
            form=options.get("form"),
            options=options,
            parity=self.parity,
            placement=None if placement is None else asdict(placement),
        )


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
    entry = backend(artifact.manifest.target)
    parity = _proven(artifact, entry, device, threads)
    opener = load(entry.runner(device).runtime)
    return Subject(name, artifact, opener(artifact, device=device, threads=threads), parity)


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
    worst = {name: value for name, (value, _) in found.worst().items()}
    runtime = str(found.placement["runtime"])
    return ParityRecord("passed", found.level, device, runtime, found.created, source, len(found.cases), worst)


def comparability_flags(subjects: Sequence[Subject]) -> list[str]:
    """Return what differs between artifacts besides their speed."""
    checkpoints = {subject.artifact.manifest.checkpoint.sha256: subject for subject in subjects}
    if len(checkpoints) < 2:
        return []
    named = ", ".join(f"{one.name}: {one.artifact.manifest.checkpoint.name}" for one in checkpoints.values())
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
