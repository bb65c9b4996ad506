"""A Core ML package (.mlpackage): its bytes in memory, checked against the one layout that ML Programs have."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from samx.artifacts import strict_json as read
from samx.artifacts.manifest import MAX_COMPONENTS, check_file_name
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, WriteError
from samx.files import reading

DECODER = "decoder.mlpackage"  # in an artifact, the folder of the whole decoder
ENCODER = "encoder.mlpackage"  # and of the image encoder
SINGLE_FUNCTION = "main"  # Core ML's name for the function of a package that has one
MULTIFUNCTION_IOS = 18  # the first system that loads packages of several functions
MANIFEST, DATA, WEIGHTS = "Manifest.json", "Data", "weights"
FORMAT_VERSION = "1.0.0"
LEFTOVER = "executorch_debug_handle_mapping.json"  # coremltools 9 puts it beside the manifest; nothing reads it
MIB = 1024 * 1024
MANIFEST_CAP_BYTES, PACKAGE_CAP_BYTES, MOST_FILES = MIB, 4096 * MIB, 64  # ViT-H takes 2.4 GiB in float32
AGAIN = "Export it again, or copy it again from where it came from."
# O_NONBLOCK: a named pipe cannot hang us before we see what it is.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class PackageFiles:
    """Keep the bytes of one package by their path inside it."""

    files: Mapping[str, bytes]
    model_path: str

    @property
    def model(self) -> bytes:
        """The specification: a protobuf."""
        return self.files[self.model_path]

    @property
    def weights_folder(self) -> str:
        """The folder that the program's weight files lie in, whether there are any or not."""
        return f"{PurePosixPath(self.model_path).parent}/{WEIGHTS}"

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(map(len, self.files.values()))


def read_package(artifact: Artifact, folder: str) -> PackageFiles:
    """Read a package out of an artifact; the hashes are checked on the very bytes that are returned.

    Raises: ArtifactError when a file is missing, altered, or no part of a package.
    """
    where = str(artifact.path / folder)
    names = [name.removeprefix(f"{folder}/") for name in artifact.files_under(folder)]
    sizes = {name: artifact.manifest.files[f"{folder}/{name}"].bytes for name in names}
    _check_sizes(sizes, where)
    model = _model_path(artifact.read(f"{folder}/{MANIFEST}"), names, where)
    return PackageFiles({name: artifact.read(f"{folder}/{name}") for name in names}, model)


def package_from_directory(path: Path) -> PackageFiles:
    """Read a package that is no part of an artifact.

    Raises: ArtifactError when it is no directory, half-written, or holds links or anything else that is no part of it.
    """
    if path.is_symlink() or not path.is_dir():
        found = "a link" if path.is_symlink() else "a file" if path.exists() else "nothing"
        raise ArtifactError(f"there is no Core ML package at {path}", found=found, expected="a directory")
    with reading(str(path), ArtifactError):
        sizes = dict(_listed(path, ""))
    _check_sizes(sizes, str(path))
    model = _model_path(_bytes(path / MANIFEST, sizes[MANIFEST]), sizes, str(path))
    return PackageFiles({name: _bytes(path / name, size) for name, size in sizes.items()}, model)


@contextmanager
def unpacked(package: PackageFiles) -> Iterator[Path]:
    """Write a package to a private temporary directory, for libraries that want a path.

    Raises: WriteError.
    """
    with tempfile.TemporaryDirectory(prefix="samx-", ignore_cleanup_errors=True) as private:  # only its owner enters
        path = Path(private) / "model.mlpackage"
        try:
            for name, data in package.files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(data)
            (path / package.weights_folder).mkdir(exist_ok=True)
        except OSError as cause:
            raise WriteError(f"cannot write a temporary copy in {private}", found=cause.strerror) from cause
        yield path


def _model_path(manifest: bytes, names: Collection[str], where: str) -> str:
    """Find the model's file, and refuse what neither the package's manifest nor the layout knows."""
    items, root = _items(manifest, f"{where}: {MANIFEST}")
    model = items.pop(root)
    weights = f"{PurePosixPath(model).parent}/{WEIGHTS}"
    others = [path for path in items.values() if path != weights]
    others += [name for name in names if not _is_known(name, model, weights if items else None)]
    if others:
        raise ArtifactError(
            f"{where} holds what no ML Program has", found=", ".join(sorted(set(others))[:3]),
            expected=f"{MANIFEST}, {model} and {weights}/*.bin", fix="Remove it, or export again.",
        )  # fmt: skip
    if model not in names:
        raise ArtifactError(f"{where} is half-written", found=f"no {model}", expected="the model's file", fix=AGAIN)
    return model


def _is_known(name: str, model: str, weights: str | None) -> bool:
    path = PurePosixPath(name)
    return name in (MANIFEST, LEFTOVER, model) or (str(path.parent) == weights and path.suffix == ".bin")


def _items(manifest: bytes, where: str) -> tuple[dict[str, str], str]:
    """Read the package's own manifest: {identifier: path inside the package}, and the model's identifier."""
    found = read.take(dict[str, Any], read.parse(manifest, where), where)
    if found.get("fileFormatVersion") != FORMAT_VERSION:
        version = repr(found.get("fileFormatVersion"))[: read.SHOWN_CHARACTERS]
        raise ArtifactError(f"{where} has another format", found=version, expected=repr(FORMAT_VERSION))
    entries = read.take(dict[str, dict[str, Any]], found.get("itemInfoEntries"), f"{where}: itemInfoEntries")
    items = {key: _item_path(entry.get("path"), f"{where}: item path") for key, entry in entries.items()}
    root = read.take(str, found.get("rootModelIdentifier"), f"{where}: rootModelIdentifier")
    if root not in items:
        raise ArtifactError(f"{where}: rootModelIdentifier names no item", found=root[: read.SHOWN_CHARACTERS])
    return items, root


def _item_path(path: object, where: str) -> str:
    return check_file_name(f"{DATA}/{read.take(str, path, where)}", where)


def _listed(folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
    """Name every file with its size."""
    for entry in os.scandir(folder):
        name = f"{prefix}{entry.name}"
        if entry.is_dir(follow_symlinks=False) and name.count("/") < MAX_COMPONENTS:
            yield from _listed(folder / entry.name, f"{name}/")
        elif entry.is_file(follow_symlinks=False):
            yield name, entry.stat(follow_symlinks=False).st_size
        else:
            kind = "a link" if entry.is_symlink() else "no regular file"
            raise ArtifactError(f"cannot read {folder / entry.name}", found=kind, expected="a regular file")


def _check_sizes(sizes: Mapping[str, int], where: str) -> None:
    if MANIFEST not in sizes:
        raise ArtifactError(
            f"{where} is no Core ML package, or half-written", found=f"no {MANIFEST}", expected=MANIFEST, fix=AGAIN
        )
    if sizes[MANIFEST] > MANIFEST_CAP_BYTES or sum(sizes.values()) > PACKAGE_CAP_BYTES or len(sizes) > MOST_FILES:
        raise ArtifactError(
            f"{where} is too large", found=f"{len(sizes)} files of {sum(sizes.values()) // MIB} MiB",
            expected=f"at most {MOST_FILES} files of {PACKAGE_CAP_BYTES // MIB} MiB, {MANIFEST} of 1 MiB",
        )  # fmt: skip


def _bytes(path: Path, size: int) -> bytes:
    try:
        with os.fdopen(os.open(path, OPEN_FLAGS), "rb") as file:
            data = file.read(size + 1)
    except OSError as cause:
        raise ArtifactError(f"cannot read {path}", found=cause.strerror, fix=AGAIN) from cause
    if len(data) != size:
        raise ArtifactError(f"{path} changed while it was read", fix="Read it again when nobody writes it.")
    return data
