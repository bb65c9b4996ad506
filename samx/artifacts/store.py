"""Open an artifact: nothing is handed out whose hash was not checked."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from samx.artifacts.manifest import MANIFEST_NAME, FileEntry, Manifest
from samx.errors import ArtifactError
from samx.files import reading

MANIFEST_CAP_BYTES = 4 * 1024 * 1024  # a manifest is a few KiB; a larger one is not ours
CHUNK_BYTES = 1024 * 1024
PACKAGE_SUFFIX = ".mlpackage"
ALTERED = "Export again, or copy the artifact again from where it came from."
# O_NOFOLLOW: a link is refused. O_NONBLOCK: a named pipe cannot hang us before we see what it is.
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
FILE_FLAGS = os.O_RDONLY | NO_FOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)


@dataclass(frozen=True)
class Artifact:
    """A verified artifact: its directory and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """Read the manifest and verify every file that it lists.

        Raises: ArtifactError when a file is missing, altered or not a regular file.
        """
        artifact = cls(path, read_manifest(path))
        for name, entry in artifact.manifest.files.items():
            with _regular_file(path, name) as file, reading(str(path / name), ArtifactError):
                found = digest(file, entry.bytes)
            _check(path / name, entry, *found)
        return artifact

    def facts(self) -> dict[str, Any]:
        """Return what is known about it without loading its model."""
        files = self.manifest.files
        return {
            "path": str(self.path),
            "bytes": sum(entry.bytes for entry in files.values()),
            "unlisted_files": unlisted_files(self.path, files),  # never read, so harmless, but worth knowing
            "manifest": self.manifest.to_json(),
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
        with _regular_file(self.path, name) as file, reading(str(self.path / name), ArtifactError):
            data = file.read(entry.bytes + 1)
        _check(self.path / name, entry, hashlib.sha256(data).hexdigest(), len(data))
        return data

    def file_with_role(self, role: str) -> str:
        """Return the one file that has this role.

        Raises: ArtifactError when none or several have it.
        """
        names = [name for name, entry in self.manifest.files.items() if entry.role == role]
        if len(names) != 1:
            raise ArtifactError(
                f"artifact {self.path} needs one file with the role '{role}'", found=", ".join(names) or "none",
                fix="Export again with this version of samx.",
            )  # fmt: skip
        return names[0]

    def files_under(self, folder: str) -> list[str]:
        """List the files below a folder, at any depth.

        Raises: ArtifactError when there is none.
        """
        names = sorted(name for name in self.manifest.files if name.startswith(f"{folder}/"))
        if not names:
            top = sorted({name.split("/")[0] for name in self.manifest.files})
            raise ArtifactError(
                f"artifact {self.path} has no files in a folder '{folder}'", found=", ".join(top),
                fix="Export again with this version of samx.",
            )  # fmt: skip
        return names


def read_manifest(path: Path) -> Manifest:
    """Read an artifact's manifest, without looking at the other files."""
    return Manifest.from_bytes(manifest_bytes(path), f"manifest {path / MANIFEST_NAME}")


def manifest_bytes(path: Path) -> bytes:
    """Read the manifest file itself."""
    if path.suffix == PACKAGE_SUFFIX and os.path.isdir(path):
        raise ArtifactError(
            f"{path} is a bare Core ML package", expected="the directory that 'samx export' left around one",
            fix="Nothing is known about this one; 'samx inspect' looks into it.",
        )  # fmt: skip
    if not os.path.isdir(path):  # of os.path, which says so of a name too that no system takes
        found = "a file" if os.path.exists(path) else "nothing"
        raise ArtifactError(f"there is no artifact at {path}", found=found, expected="a directory")
    with _regular_file(path, MANIFEST_NAME) as file, reading(str(path / MANIFEST_NAME), ArtifactError):
        data = file.read(MANIFEST_CAP_BYTES + 1)
    if len(data) > MANIFEST_CAP_BYTES:
        raise ArtifactError(f"{path / MANIFEST_NAME} is too large", expected=f"at most {MANIFEST_CAP_BYTES} bytes")
    return data


def unlisted_files(path: Path, listed: Collection[str]) -> list[str]:
    """List what lies in the directory beside the manifest and these; a folder that holds none of them is one entry."""
    known, found, folders = {MANIFEST_NAME, *listed}, [], [""]
    while folders:
        inside = folders.pop()
        for entry in (path / inside).iterdir():
            name = f"{inside}{entry.name}"
            is_folder = entry.is_dir() and not entry.is_symlink()
            if is_folder and any(file.startswith(f"{name}/") for file in listed):
                folders.append(f"{name}/")
            elif is_folder or name not in known:
                found.append(name)
    return sorted(found)


def _regular_file(directory: Path, name: str) -> BinaryIO:
    path = directory / name
    try:
        descriptor = _open_inside(directory, name)
    except (OSError, ValueError) as cause:  # ValueError: a path that the system cannot take
        kind = "a link" if _has_link(directory, name) else getattr(cause, "strerror", cause)
        raise ArtifactError(f"cannot read {path}", found=kind, expected="a regular file", fix=ALTERED) from cause
    linked = _has_link(directory, name)  # again, for systems without O_NOFOLLOW
    if linked or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        kind = "a link" if linked else "no regular file"
        raise ArtifactError(f"cannot read {path}", found=kind, expected="a regular file", fix=ALTERED)
    return os.fdopen(descriptor, "rb")


def _open_inside(directory: Path, name: str) -> int:
    """Open each component relative to the folder before it: a link among them cannot lead elsewhere."""
    if os.open not in os.supports_dir_fd:
        return os.open(directory / name, FILE_FLAGS)
    *folders, file = name.split("/")
    parent = os.open(directory, FOLDER_FLAGS)
    try:
        for folder in folders:
            child = os.open(folder, FOLDER_FLAGS | NO_FOLLOW, dir_fd=parent)
            os.close(parent)
            parent = child
        return os.open(file, FILE_FLAGS, dir_fd=parent)
    finally:
        os.close(parent)


def _has_link(directory: Path, name: str) -> bool:
    parts = name.split("/")
    return any(directory.joinpath(*parts[:depth]).is_symlink() for depth in range(1, len(parts) + 1))


def digest(file: BinaryIO, cap: int | None = None) -> tuple[str, int]:
    """Return hash and size of what a file still holds, of a little more than `cap` bytes at most."""
    found, size = hashlib.sha256(), 0
    while (cap is None or size <= cap) and (chunk := file.read(CHUNK_BYTES)):
        found.update(chunk)
        size += len(chunk)
    return found.hexdigest(), size


def _check(path: Path, entry: FileEntry, sha256: str, size: int) -> None:
    if size != entry.bytes:
        found = "more" if size > entry.bytes else f"{size} bytes"
        raise ArtifactError(f"{path} has another size", found=found, expected=f"{entry.bytes} bytes", fix=ALTERED)
    if sha256 != entry.sha256:
        raise ArtifactError(f"{path} was altered", found=f"sha256 {sha256}", expected=entry.sha256, fix=ALTERED)
