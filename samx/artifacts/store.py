"""Open an artifact: nothing is handed out whose hash was not checked."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from samx.artifacts.manifest import MANIFEST_NAME, FileEntry, Manifest
from samx.errors import ArtifactError

MANIFEST_CAP_BYTES = 4 * 1024 * 1024  # a manifest is a few KiB; a larger one is not ours
CHUNK_BYTES = 1024 * 1024
ALTERED = "Export again, or copy the artifact again from where it came from."
# O_NOFOLLOW: a link is refused. O_NONBLOCK: a named pipe cannot hang us before we see what it is.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Artifact:
    """Hold a verified artifact: its directory and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """Read the manifest and verify every file that it lists.

        Raises: ArtifactError when a file is missing, altered or not a regular file.
        """
        artifact = cls(path, read_manifest(path))
        for name, entry in artifact.manifest.files.items():
            with _regular_file(path / name) as file:
                _check(path / name, entry, *_digest(file, entry.bytes))
        return artifact

    @classmethod
    def inspect(cls, path: Path) -> dict[str, Any]:
        """Give the facts of a verified artifact without loading its model."""
        manifest = cls.open(path).manifest
        return {
            "path": str(path),
            "bytes": sum(entry.bytes for entry in manifest.files.values()),
            "unlisted_files": unlisted_files(path, manifest),  # never read, so harmless, but worth knowing
            "manifest": manifest.to_json(),
        }

    def read(self, name: str) -> bytes:
        """Read a listed file; the hash is checked on the very bytes that are returned.

        Raises: ArtifactError when the file is not listed, or was altered since the artifact was opened.
        """
        if name not in self.manifest.files:
            raise ArtifactError(
                f"artifact {self.path} has no file of this name", found=name, expected=", ".join(self.manifest.files)
            )
        entry = self.manifest.files[name]
        with _regular_file(self.path / name) as file:
            data = file.read(entry.bytes + 1)
        _check(self.path / name, entry, hashlib.sha256(data).hexdigest(), len(data))
        return data

    def file_with_role(self, role: str) -> str:
        """Name the one file that has this role.

        Raises: ArtifactError when none or several have it.
        """
        names = [name for name, entry in self.manifest.files.items() if entry.role == role]
        if len(names) != 1:
            raise ArtifactError(
                f"artifact {self.path} needs one file with the role '{role}'", found=", ".join(names) or "none",
                fix="Export again with this version of samx.",
            )  # fmt: skip
        return names[0]


def read_manifest(path: Path) -> Manifest:
    """Read an artifact's manifest, without looking at the other files."""
    return Manifest.from_bytes(manifest_bytes(path), f"manifest {path / MANIFEST_NAME}")


def manifest_bytes(path: Path) -> bytes:
    """Read the manifest file itself."""
    if not path.is_dir():
        raise ArtifactError(
            f"there is no artifact at {path}", found="a file" if path.exists() else "nothing", expected="a directory"
        )
    with _regular_file(path / MANIFEST_NAME) as file:
        data = file.read(MANIFEST_CAP_BYTES + 1)
    if len(data) > MANIFEST_CAP_BYTES:
        raise ArtifactError(f"{path / MANIFEST_NAME} is too large", expected=f"at most {MANIFEST_CAP_BYTES} bytes")
    return data


def unlisted_files(path: Path, manifest: Manifest) -> list[str]:
    """Name what lies in the directory and is not part of the artifact."""
    return sorted({entry.name for entry in path.iterdir()} - {MANIFEST_NAME, *manifest.files})


def _regular_file(path: Path) -> BinaryIO:
    try:
        descriptor = os.open(path, OPEN_FLAGS)
    except OSError as cause:
        kind = "a link" if path.is_symlink() else cause.strerror
        raise ArtifactError(f"cannot read {path}", found=kind, expected="a regular file", fix=ALTERED) from cause
    # is_symlink again, for systems without O_NOFOLLOW
    if not stat.S_ISREG(os.fstat(descriptor).st_mode) or path.is_symlink():
        os.close(descriptor)
        raise ArtifactError(f"cannot read {path}", found="no regular file", expected="a regular file", fix=ALTERED)
    return os.fdopen(descriptor, "rb")


def _digest(file: BinaryIO, cap: int) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    while size <= cap and (chunk := file.read(CHUNK_BYTES)):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _check(path: Path, entry: FileEntry, sha256: str, size: int) -> None:
    if size != entry.bytes:
        found = "more" if size > entry.bytes else f"{size} bytes"
        raise ArtifactError(f"{path} has another size", found=found, expected=f"{entry.bytes} bytes", fix=ALTERED)
    if sha256 != entry.sha256:
        raise ArtifactError(f"{path} was altered", found=f"sha256 {sha256}", expected=entry.sha256, fix=ALTERED)
