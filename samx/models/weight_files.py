"""Open weight files of every supported format without reading more than is asked for, and without running code."""

from __future__ import annotations

import codecs
import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from samx.artifacts.strict_json import parse
from samx.errors import ArtifactError, CheckpointError
from samx.extras import require
from samx.files import CONFIG_CAP_BYTES, INDEX_CAP_BYTES, open_regular, read_file
from samx.models.inert_pickle import PickleError
from samx.models.keras_files import KERAS_FORMAT, open_keras
from samx.models.torch_files import NotPlainError, open_torch

HASH_CHUNK_BYTES = 1 << 20
# Files of a Hugging Face directory, in the order of preference; an index lists the shards of the file before it.
DIRECTORY_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
INDEX_SUFFIX = ".index.json"
START_BYTES = 512  # enough to see what a file is
GIT_LFS_START = b"version https://git-lfs"
# What is given for a checkpoint now and then, by its first bytes, and what to do.
OTHER_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"GGUF", "a GGUF file", "Use the checkpoint that it was converted from."),
    (b"lmgg", "a ggml file", "Use the checkpoint that it was converted from."),
    (b"\x1f\x8b", "a gzip archive", "Unpack it."),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it."),
    (b"Rar!", "a RAR archive", "Unpack it."),
)
GATED = "Download it again: a link that needs a login, or terms that are not accepted yet, answers with such a page."
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
        if weight_file.name.endswith(INDEX_SUFFIX):
            _check_shards(weight_file, readers)
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
    dangling = next((name for name in DIRECTORY_FILES if os.path.islink(folder / name)), None)
    if dangling:
        found = f"'{dangling}', a link to a file that is not there"
        raise CheckpointError(f"no weights in directory '{folder}'", found=found, fix="Complete the download.")
    raise CheckpointError(
        f"no weights in directory '{folder}'",
        found=", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing",
        expected=" or ".join(DIRECTORY_FILES), fix="Name the weight file itself, or complete the download.",
    )  # fmt: skip


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index, INDEX_CAP_BYTES).get("weight_map")
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


def _check_shards(index: Path, readers: Mapping[str, Reader]) -> None:
    lacking = [key for key in read_json(index, INDEX_CAP_BYTES)["weight_map"] if key not in readers]
    if lacking:
        raise CheckpointError(
            f"shards of '{index}' lack weights that it lists", found=f"no '{lacking[0]}', {len(lacking)} in all",
            expected="shards and an index of one release", fix="Complete the download.",
        )  # fmt: skip


def _config(weight_file: Path) -> Mapping[str, Any]:
    path = weight_file.parent / "config.json"
    belongs = weight_file.name in DIRECTORY_FILES  # beside other files it may be any program's
    return read_json(path, CONFIG_CAP_BYTES) if belongs and os.path.lexists(path) else {}


def read_json(path: Path, cap: int) -> dict[str, Any]:
    """Read a JSON file beside the weights; what is no object counts as an empty one.

    Raises: CheckpointError.
    """
    try:
        data = parse(read_file(path, cap, f"'{path}'", CheckpointError), f"'{path}'")
    except ArtifactError as cause:
        raise CheckpointError(f"'{path}' is not valid JSON", found=cause.found, fix=DOWNLOAD_AGAIN) from cause
    return data if isinstance(data, dict) else {}


def _open_file(path: Path) -> tuple[dict[str, Reader], dict[str, str]]:
    with open_regular(path, f"checkpoint '{path}'", CheckpointError) as file:
        start = file.read(START_BYTES)
    if not start:
        raise _refusal(f"checkpoint '{path}' is empty", "0 bytes")
    if start.startswith(GIT_LFS_START):
        raise _refusal(f"'{path}' is a Git LFS pointer, not the weights", fix="Fetch the file: git lfs pull.")
    if start.startswith(HDF5_START):
        return open_keras(path), {"format": KERAS_FORMAT}
    _refuse_other_kinds(path, start)
    # A safetensors file starts with the length of its JSON header, eight bytes, and then the header's brace.
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _open_safetensors(path)
    return _open_torch(path, is_zip=start.startswith(b"PK")), {}


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    for mark, kind, fix in OTHER_KINDS:
        if start.startswith(mark):
            raise _refusal(f"'{path}' is {kind}, not weights that samx reads", fix=fix)
    try:
        words = codecs.getincrementaldecoder("utf-8")().decode(start)  # the last letter may be cut
    except UnicodeDecodeError:
        return
    if words and all(letter.isprintable() or letter.isspace() for letter in words):
        raise _refusal(f"'{path}' is text, not weights", f"'{' '.join(words.split())[:80]}'", GATED)


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
        with open_regular(path, f"checkpoint '{path}'", CheckpointError) as file:
            readers = open_torch(file, is_zip).readers()
    except (CheckpointError, OSError, MemoryError):
        raise
    except Exception as cause:  # what others than PickleError say is no text for people
        found = (
            cause if isinstance(cause, PickleError) else f"other bytes than torch.save writes ({type(cause).__name__})"
        )
        raise _refusal(f"checkpoint '{path}' is damaged or no PyTorch file", found) from cause
    return {key: partial(_read, path, key, reader) for key, reader in readers.items()}


def _read(path: Path, key: str, reader: Reader) -> Tensor:
    try:
        return reader()
    except NotPlainError as cause:
        raise not_floats(path, key, cause) from cause


def not_floats(path: Path, key: str, found: object) -> CheckpointError:
    """Say that a weight is quantised, sparse or otherwise no array of floats."""
    return CheckpointError(
        f"weight '{key}' of '{path}' is not an array of floats", found=found,
        expected="float32, float16 or bfloat16", fix="Use the checkpoint from before its quantization.",
    )  # fmt: skip


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise _refusal(f"checkpoint '{path}' is truncated", "a zip file without its end")
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
    if any(name.endswith(".h5") for name in members):
        raise _refusal(f"'{path}' is a Keras model", "HDF5 in a zip file", KERAS_FIX)
    if any(name.endswith("/constants.pkl") for name in members):
        raise _refusal(f"'{path}' is a TorchScript program, not a weights file", fix=SAVE_WEIGHTS_ONLY)
