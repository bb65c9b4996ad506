"""manifest.json: what an artifact is, where it came from, and the hash of every file in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, get_args

import samx
from samx.artifacts.strict_json import SHOWN_CHARACTERS, Count, Document, Sha256, Time, not_empty, refusal
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec, Size

MANIFEST_NAME = "manifest.json"
FORMAT = "samx-artifact"
SCHEMA_VERSION = 1
# One path component, portable to every file system: no separator, no leading dot, no drive, no stream.
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_COMPONENTS = 6  # a Core ML package takes 5: decoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin

ENCODER_ROLE = "encoder"
ENCODER_ROLES = (ENCODER_ROLE, "encoder_weights")  # weights beside a graph that is too large for them

Level = Literal["graph", "lowered", "device"]
LEVELS: tuple[str, ...] = get_args(Level)


def utc_now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def check_file_name(name: str, where: str) -> str:
    """Refuse a relative path that could leave the artifact's directory or hide in it."""
    parts = name.split("/")
    plain = all(FILE_NAME.fullmatch(part) and not part.endswith(".") for part in parts)
    if not plain or len(parts) > MAX_COMPONENTS or parts[0].casefold() == MANIFEST_NAME:
        expected = f"at most {MAX_COMPONENTS} names of letters, digits, '.', '_' and '-', joined by '/'"
        what = f"{where} names a file that no artifact can hold"
        raise refusal(what, repr(name[:SHOWN_CHARACTERS]), expected, "Do not use this artifact.")
    return name


def check_file_names(names: Collection[str], where: str) -> None:
    """Refuse names that no artifact can hold, alone or together."""
    for name in names:
        check_file_name(name, where)
    folders = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    paths = {*names, *folders}
    if len({path.casefold() for path in paths}) != len(paths):  # the same file or folder on macOS and Windows
        raise refusal(f"{where} has two names that differ only in case")
    if both := sorted(folders.intersection(names)):
        raise refusal(f"{where} has a name that is both a file and a directory", both[0])


FileName = Annotated[str, check_file_name]


@dataclass(frozen=True)
class FileEntry:
    """Describe one file of the artifact."""

    sha256: Sha256
    bytes: Count
    role: str  # "decoder", "image", "prompt", "encoder", "parity_cases", "parity_report", ...


@dataclass(frozen=True)
class CheckpointEntry:
    """Name the weights that were exported."""

    name: str
    kind: str
    sha256: Sha256
    bytes: Count


@dataclass(frozen=True)
class Evidence:
    """Name what has been shown about the artifact, and which file of it proves that."""

    level: Level
    report: str
    passed: bool
    runtime: str
    device: str
    created: Time


@dataclass(frozen=True)
class EncoderEntry(Document):
    """Describe the image encoder of an artifact, and the pictures that it takes.

    Units: picture_px is the side of the square that a picture is resized into; the decoder's frame may be larger.
    """

    architecture: str
    picture_px: Size
    precision: str
    pictures: ShapeRange  # a call
    takes: Literal["levels"] = "levels"  # RGB from 0 to 255, of DecoderSpec.picture_type; normalised, padded inside


@dataclass(frozen=True)
class Manifest(Document):
    """Describe an artifact. `files` is filled in by commit.seal()."""

    HEADER = {"format": FORMAT, "schema_version": SCHEMA_VERSION}

    target: str
    precision: str
    spec: DecoderSpec
    checkpoint: CheckpointEntry
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)  # library: version
    evidence: tuple[Evidence, ...] = ()
    files: Annotated[Mapping[str, FileEntry], not_empty, check_file_names] = field(default_factory=dict)
    samx: str = samx.__version__
    created: Time = field(default_factory=utc_now)

    @property
    def encoder(self) -> EncoderEntry | None:
        """Return what is said of the image encoder; None where there is none, or where it takes floats, as 0.1.0's.

        Raises: ArtifactError.
        """
        found = self.options.get("encoder")
        return None if found is None else EncoderEntry.from_json(found, "the manifest's encoder")

    def check(self, where: str) -> None:
        """Refuse evidence without its report."""
        for entry in self.evidence:
            if entry.report not in self.files:
                raise refusal(f"{where}: evidence names a report that is not in the artifact", entry.report)


@dataclass(frozen=True)
class Lowered:
    """Name the files that were written, each with its role, and what they show."""

    files: Mapping[str, str]
    evidence: Evidence
    tools: Mapping[str, str]  # library: version
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()  # about precision or shapes
    opened: bool = True  # whether this machine's device can open what was built
    suspected: bool = False  # whether this machine is known to compile wrongly: nothing is kept that was not compared
