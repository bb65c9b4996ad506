"""Open weight files of every supported format without reading more than is asked for, and without running code."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samx.artifacts.strict_json import parse
from samx.errors import ArtifactError, CheckpointError
from samx.extras import require
from samx.files import CONFIG_CAP_BYTES, INDEX_CAP_BYTES, open_regular, read_file
from samx.models.keras_files import KERAS_FORMAT, open_keras

HASH_CHUNK_BYTES = 1 << 20
# {"state": {"model": {"module": {...}}}} is the deepest wrapping seen; also ends a mapping that holds itself.
MAX_NESTING = 5
# Files of a Hugging Face directory, in the order of preference; the second of a pair lists the shards of the first.
DIRECTORY_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX_SUFFIX = ".index.json"
GIT_LFS_START = b"version https://git-lfs"
HDF5_START = b"\x89HDF\r\n\x1a\n"
KERAS_FIX = "Use its weights file (model.weights.h5), or the PyTorch checkpoint that it was converted from."
WANTED = "a SAM or SAM 2 checkpoint: .pth, .pt, .safetensors, .weights.h5 or a Hugging Face model directory"
DOWNLOAD_AGAIN = "Download it again and compare its size or hash with the publisher's."
SAVE_WEIGHTS_ONLY = "Where it comes from, save the weights alone: safetensors.torch.save_file(model.state_dict(), ...)."

Reader = Callable[[], Tensor]


@dataclass(frozen=True)
class WeightSource:
    """List the tensors of a checkpoint by key; each is read when its reader is called."""

    path: Path
    files: tuple[Path, ...]
    readers: Mapping[str, Reader]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return a short name: the file's, or the directory's where the file has everybody's name."""
        generic = self.path.is_dir() or self.path.name in DIRECTORY_FILES
        folder = self.path if self.path.is_dir() else self.path.parent
        return folder.resolve().name if generic else self.path.stem.removesuffix(".weights")

    @property
    def bytes(self) -> int:
        """Return the size of the weight file, or of all shards together."""
        return sum(file.stat().st_size for file in self.files)

    def sha256(self) -> str:
        """Hash the weight file; shards are hashed as one stream, in the order of their names."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while chunk := file.read(HASH_CHUNK_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()


def open_weights(path: Path) -> WeightSource:
    """Open a weight file or a Hugging Face model directory.

    Raises: CheckpointError when it is missing, damaged or of another kind.
    """
    try:
        if "\0" in str(path) or not (path.is_file() or path.is_dir()):
            raise _refusal(f"checkpoint '{path}' does not exist or is no file", fix="Check the path.")
        weight_file = _directory_file(path) if path.is_dir() else path
        files = _shards(weight_file) if weight_file.name.endswith(INDEX_SUFFIX) else (weight_file,)
        readers: dict[str, Reader] = {}
        metadata: dict[str, str] = {}
        for file in files:
            more, notes = _open_file(file)
            readers |= more
            metadata |= notes
        return WeightSource(path, files, readers, metadata, _config(weight_file))
    except OSError as cause:
        raise CheckpointError(
            f"checkpoint '{path}' cannot be read", found=cause.strerror or cause, fix="Check its permissions."
        ) from cause


def _refusal(what: str, found: object = None, fix: str = DOWNLOAD_AGAIN) -> CheckpointError:
    return CheckpointError(what, found=found, expected=WANTED, fix=fix)


def _directory_file(folder: Path) -> Path:
    for name in DIRECTORY_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"no weights in directory '{folder}'",
        found=", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing",
        expected=" or ".join(DIRECTORY_FILES), fix="Name the weight file itself, or complete the download.",
    )  # fmt: skip


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = _json(index, INDEX_CAP_BYTES).get("weight_map")
    listed = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not listed or not all(isinstance(name, str) and Path(name).name == name and "\0" not in name for name in listed):
        expected = "'weight_map' with file names"
        raise CheckpointError(f"'{index}' does not list shards", expected=expected, fix=DOWNLOAD_AGAIN)
    shards = tuple(index.parent / name for name in sorted(set(listed)))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        found = f"no {', '.join(missing[:3])}"
        raise CheckpointError(f"shards of '{index}' are missing", found=found, fix="Complete the download.")
    return shards


def _config(weight_file: Path) -> Mapping[str, Any]:
    path = weight_file.parent / "config.json"
    belongs = weight_file.name in DIRECTORY_FILES  # beside other files it may be any program's
    return _json(path, CONFIG_CAP_BYTES) if belongs and os.path.lexists(path) else {}


def _json(path: Path, cap: int) -> dict[str, Any]:
    try:
        data = parse(read_file(path, cap, f"'{path}'", CheckpointError), f"'{path}'")
    except ArtifactError as cause:
        raise CheckpointError(f"'{path}' is not valid JSON", found=cause.found, fix=DOWNLOAD_AGAIN) from cause
    return data if isinstance(data, dict) else {}


def _open_file(path: Path) -> tuple[dict[str, Reader], dict[str, str]]:
    with open_regular(path, f"checkpoint '{path}'", CheckpointError) as file:
        start = file.read(max(len(GIT_LFS_START), 9))
    if not start:
        raise _refusal(f"checkpoint '{path}' is empty", "0 bytes")
    if start.startswith(GIT_LFS_START):
        raise _refusal(f"'{path}' is a Git LFS pointer, not the weights", fix="Fetch the file: git lfs pull.")
    if start.startswith(HDF5_START):
        return open_keras(path), {"format": KERAS_FORMAT}
    # A safetensors file starts with the length of its JSON header, eight bytes, and then the header's brace.
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _open_safetensors(path)
    return _open_torch(path, is_zip=start.startswith(b"PK")), {}


def _open_safetensors(path: Path) -> tuple[dict[str, Reader], dict[str, str]]:
    safetensors = require("safetensors", "export", "reading a .safetensors checkpoint")
    try:
        handle = safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as cause:
        raise _refusal(f"'{path}' is truncated or not a safetensors file", cause) from cause
    readers: dict[str, Reader] = {key: partial(handle.get_tensor, key) for key in handle.keys()}  # noqa: SIM118
    return readers, dict(handle.metadata() or {})


def _open_torch(path: Path, is_zip: bool) -> dict[str, Reader]:
    try:
        if is_zip:
            _check_zip(path)
        # mmap reads only the tensors that are touched; the format before PyTorch 1.6 is no zip and cannot do it.
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as cause:
        raise _refusal(
            f"checkpoint '{path}' was not opened, because it is no plain weights file",
            "other bytes, or Python objects that could run code", SAVE_WEIGHTS_ONLY,
        ) from cause  # fmt: skip
    except (CheckpointError, OSError, MemoryError):
        raise
    except Exception as cause:  # its messages are left out, some suggest switching the safe loading off
        found = f"bytes that PyTorch cannot read ({type(cause).__name__})"
        raise _refusal(f"checkpoint '{path}' is damaged or no PyTorch file", found) from cause
    return {key: tensor.detach for key, tensor in _flatten(data)}


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise _refusal(f"checkpoint '{path}' is truncated", "a zip file without its end")
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
    if any(name.endswith(".h5") for name in members):
        raise _refusal(f"'{path}' is a Keras model", "HDF5 in a zip file", KERAS_FIX)
    if any(name.endswith("/constants.pkl") for name in members):
        raise _refusal(f"'{path}' is a TorchScript program, not a weights file", fix=SAVE_WEIGHTS_ONLY)


def _flatten(data: object, prefix: str = "", level: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Walk nested mappings; the names of the outer ones become prefixes of the keys."""
    if not isinstance(data, Mapping) or level >= MAX_NESTING:
        return
    for key, value in data.items():
        if isinstance(key, str) and isinstance(value, Tensor):  # optimiser state is keyed by number
            yield prefix + key, value
        elif isinstance(key, str):
            yield from _flatten(value, f"{prefix}{key}.", level + 1)
