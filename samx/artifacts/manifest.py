"""manifest.json: what an artifact is, where it came from, and the hash of every file in it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import PurePosixPath
from typing import Any, Literal, cast, get_args

import samx
from samx.artifacts import strict_json as read
from samx.errors import ArtifactError
from samx.models.spec import DecoderSpec

MANIFEST_NAME = "manifest.json"
FORMAT = "samx-artifact"
SCHEMA_VERSION = 1
# One path component, portable to every file system: no separator, no leading dot, no drive, no stream.
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_COMPONENTS = 6  # a Core ML package takes 5: decoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin
SHA256 = re.compile(r"[0-9a-f]{64}")

Level = Literal["graph", "lowered", "device"]
LEVELS: tuple[str, ...] = get_args(Level)


def utc_now() -> str:
    """Give the time as ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class FileEntry:
    """Describe one file of the artifact."""

    sha256: str
    bytes: int
    role: str  # "decoder", "image", "prompt", "encoder", "parity_cases", "parity_report", ...


@dataclass(frozen=True)
class CheckpointEntry:
    """Say which weights were exported."""

    name: str
    kind: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Evidence:
    """Say what has been shown about the artifact, and which file of it proves that."""

    level: Level
    report: str
    passed: bool
    runtime: str
    device: str
    created: str


@dataclass(frozen=True)
class Manifest:
    """Describe an artifact. `files` is filled in by commit.seal()."""

    target: str
    precision: str
    spec: DecoderSpec
    checkpoint: CheckpointEntry
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)  # library: version
    evidence: tuple[Evidence, ...] = ()
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    samx: str = samx.__version__
    created: str = field(default_factory=utc_now)

    def to_json(self) -> dict[str, Any]:
        """Give the fields as plain data."""
        body = {**asdict(self), "spec": self.spec.to_json(), "evidence": [asdict(entry) for entry in self.evidence]}
        return {"format": FORMAT, "schema_version": SCHEMA_VERSION, **body}

    def to_bytes(self) -> bytes:
        """Write the file's content."""
        return (json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Read the file's content.

        Raises: ArtifactError for anything that to_bytes() would not have written.
        """
        return _manifest(read.parse(data, where), where)


def check_file_name(name: str, where: str) -> str:
    """Refuse a relative path that could leave the artifact's directory or hide in it."""
    parts = name.split("/")
    plain = all(FILE_NAME.fullmatch(part) and not part.endswith(".") for part in parts)
    if not plain or len(parts) > MAX_COMPONENTS or parts[0].casefold() == MANIFEST_NAME:
        raise ArtifactError(
            f"{where} names a file that no artifact can hold", found=repr(name[: read.SHOWN_CHARACTERS]),
            expected=f"at most {MAX_COMPONENTS} names of letters, digits, '.', '_' and '-', joined by '/'",
            fix="Do not use this artifact.",
        )  # fmt: skip
    return name


def check_file_names(names: Collection[str], where: str) -> None:
    """Refuse names that no artifact can hold, alone or together."""
    for name in names:
        check_file_name(name, where)
    folders = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    paths = {*names, *folders}
    if len({path.casefold() for path in paths}) != len(paths):  # the same file or folder on macOS and Windows
        raise ArtifactError(f"{where} has two names that differ only in case", fix=read.REMEDY)
    if both := sorted(folders.intersection(names)):
        raise ArtifactError(
            f"{where} has a name that is both a file and a directory", found=both[0][: read.SHOWN_CHARACTERS],
            fix=read.REMEDY,
        )  # fmt: skip


def _manifest(data: Any, where: str) -> Manifest:
    found = read.mapping(data, where)
    kind = (found.get("format"), found.get("schema_version"))
    if kind != (FORMAT, SCHEMA_VERSION) or type(kind[1]) is not int:
        raise ArtifactError(
            f"{where} has another format", found=f"{kind[0]!r} schema {kind[1]!r}",
            expected=f"{FORMAT!r} schema {SCHEMA_VERSION}", fix="Use the samx version that wrote it, or export again.",
        )  # fmt: skip
    body = read.fields(found, ["format", "schema_version", *Manifest.__dataclass_fields__], where)
    files = _files(body["files"], f"{where}: files")
    return Manifest(
        target=read.text(body["target"], f"{where}: target"),
        precision=read.text(body["precision"], f"{where}: precision"),
        spec=DecoderSpec.from_json(read.mapping(body["spec"], f"{where}: spec")),
        checkpoint=_checkpoint(body["checkpoint"], f"{where}: checkpoint"),
        options=read.mapping(body["options"], f"{where}: options"),
        tools=_versions(body["tools"], f"{where}: tools"),
        evidence=_evidence_list(body["evidence"], files, f"{where}: evidence"),
        files=files,
        samx=read.text(body["samx"], f"{where}: samx"),
        created=_time(body["created"], f"{where}: created"),
    )


def _files(value: Any, where: str) -> dict[str, FileEntry]:
    found = read.mapping(value, where)
    if not found:
        raise ArtifactError(f"{where} lists no file", expected="at least one", fix=read.REMEDY)
    check_file_names(found, where)
    return {name: _file(entry, f"{where}: {name}") for name, entry in found.items()}


def _file(value: Any, where: str) -> FileEntry:
    found = read.fields(value, FileEntry.__dataclass_fields__, where)
    return FileEntry(
        sha256=_sha256(found["sha256"], f"{where}: sha256"),
        bytes=read.count(found["bytes"], f"{where}: bytes"),
        role=read.text(found["role"], f"{where}: role"),
    )


def _checkpoint(value: Any, where: str) -> CheckpointEntry:
    found = read.fields(value, CheckpointEntry.__dataclass_fields__, where)
    return CheckpointEntry(
        name=read.text(found["name"], f"{where}: name"),
        kind=read.text(found["kind"], f"{where}: kind"),
        sha256=_sha256(found["sha256"], f"{where}: sha256"),
        bytes=read.count(found["bytes"], f"{where}: bytes"),
    )


def _evidence_list(value: Any, files: Mapping[str, FileEntry], where: str) -> tuple[Evidence, ...]:
    return tuple(_evidence(entry, files, f"{where} {i}") for i, entry in enumerate(read.items(value, where)))


def _evidence(value: Any, files: Mapping[str, FileEntry], where: str) -> Evidence:
    found = read.fields(value, Evidence.__dataclass_fields__, where)
    level, report = read.text(found["level"], where), read.text(found["report"], f"{where}: report")
    if level not in LEVELS:
        raise ArtifactError(f"{where} has an unknown level", found=level, expected=" or ".join(LEVELS), fix=read.REMEDY)
    if report not in files:
        raise ArtifactError(f"{where} names a report that is not in the artifact", found=report, fix=read.REMEDY)
    return Evidence(
        level=cast(Level, level),
        report=report,
        passed=read.flag(found["passed"], f"{where}: passed"),
        runtime=read.text(found["runtime"], f"{where}: runtime"),
        device=read.text(found["device"], f"{where}: device"),
        created=_time(found["created"], f"{where}: created"),
    )


def _versions(value: Any, where: str) -> dict[str, str]:
    return {name: read.text(version, f"{where}: {name}") for name, version in read.mapping(value, where).items()}


def _sha256(value: Any, where: str) -> str:
    digest = read.text(value, where)
    if not SHA256.fullmatch(digest):
        raise ArtifactError(
            f"{where} is no hash", found=digest[: read.SHOWN_CHARACTERS], expected="64 hexadecimal digits",
            fix=read.REMEDY,
        )  # fmt: skip
    return digest


def _time(value: Any, where: str) -> str:
    stamp = read.text(value, where)
    try:
        is_utc = datetime.fromisoformat(stamp).utcoffset() == timedelta(0)
    except ValueError:
        is_utc = False
    if not is_utc:
        raise ArtifactError(f"{where} is no time", found=stamp, expected="ISO 8601 in UTC", fix=read.REMEDY)
    return stamp


@dataclass(frozen=True)
class Lowered:
    """Name the files that were written, each with its role, and what they show."""

    files: Mapping[str, str]
    evidence: Evidence
    tools: Mapping[str, str]  # library: version
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()  # about precision or shapes
    opened: bool = True  # whether this machine's device can open what was built
