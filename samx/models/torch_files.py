"""Read what torch.save writes, both its zip files and the format before them, and run nothing of it.

Storages are parts of the mapped file: a tensor is read when it is asked for.
"""

from __future__ import annotations

import math
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from mmap import ACCESS_COPY, mmap
from typing import Any, BinaryIO

import torch
from torch import Tensor

from samx.models.inert_pickle import Inert, InertUnpickler, PickleError, Window
from samx.models.torch_tensors import KNOWN, Odd, Storages, Stored

PICKLE_CAP_BYTES = 128 << 20  # of the pickle alone; the numbers lie outside of it
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # at the start of the format before zip
LOCAL_HEADER_BYTES = 30
ENCRYPTED_FLAG = 1
# {"state": {"model": {"module": {...}}}} is the deepest wrapping seen; also ends a mapping that holds itself.
MAX_NESTING = 5
MAX_MODULES = 64  # a module within a module within ...
MAX_VISITS = 1_000_000  # entries of mappings and modules; a few bytes may make them many by naming one again and again


class NotPlainError(ValueError):
    """Tell what a weight is, where it is no plain array of numbers."""


@dataclass(frozen=True)
class TorchFile:
    """Hold what a file has under names, and how its tensors are read."""

    mapping: mmap
    is_swapped: bool
    data: object

    def readers(self) -> dict[str, Callable[[], Tensor]]:
        """Return a reader for each tensor, under the keys of state_dict().

        Raises (the readers): NotPlainError for a tensor that is more than an array of numbers.
        """
        return {key: partial(self.read, value) for key, value in Walk().entries(self.data, "", 0)}

    def read(self, value: Stored | Odd) -> Tensor:
        """Return a tensor over the mapped file, or over a copy where bytes are swapped or lie askew."""
        if isinstance(value, Odd):
            raise NotPlainError(value.kind)
        storage, count, size = value.storage, math.prod(value.shape), value.storage.dtype.itemsize
        if count * size > storage.nbytes:
            raise NotPlainError(f"{count} numbers that repeat {storage.nbytes // size}")
        if count == 0:
            return torch.empty(value.shape, dtype=storage.dtype)
        flat = torch.frombuffer(self.mapping, dtype=torch.uint8, count=storage.nbytes, offset=storage.start)
        if self.is_swapped or storage.start % size:
            flat = flat.clone()
        if self.is_swapped:
            flat.untyped_storage().byteswap(storage.dtype)
        return flat.view(storage.dtype).as_strided(value.shape, value.strides, value.offset)


class Walk:
    """Walk nested mappings and modules; the names of the outer ones become prefixes of the keys."""

    def __init__(self) -> None:
        self._visits = 0

    def entries(self, data: object, prefix: str, level: int) -> Iterator[tuple[str, Stored | Odd]]:
        """Return what is, or would be, a tensor, with its key."""
        if type(data) is Inert and (parts := _module(data)) is not None:
            yield from self._module(parts, prefix, 0)
            return
        held = data.items if type(data) is Inert else data
        if type(held) is not dict or level >= MAX_NESTING:
            return
        for key, value in held.items():
            self._visit()
            if isinstance(value, (Stored, Odd)):
                yield prefix + key, value
            else:
                yield from self.entries(value, f"{prefix}{key}.", level + 1)

    def _module(self, parts: Mapping[str, Any], prefix: str, level: int) -> Iterator[tuple[str, Stored | Odd]]:
        if level >= MAX_MODULES:
            raise PickleError("modules within modules without an end")
        temporary = _listed(parts.get("_non_persistent_buffers_set"))
        for name, value in (*_items(parts["_parameters"]), *_items(parts.get("_buffers"))):
            self._visit()
            if isinstance(value, (Stored, Odd)) and name not in temporary:
                yield prefix + name, value
        for name, child in _items(parts["_modules"]):
            self._visit()
            inner = _module(child)
            if inner is not None:
                yield from self._module(inner, f"{prefix}{name}.", level + 1)

    def _visit(self) -> None:
        self._visits += 1
        if self._visits > MAX_VISITS:
            raise PickleError(f"more than {MAX_VISITS} entries")


def _module(value: object) -> Mapping[str, Any] | None:
    """Return the attributes of a pickled nn.Module."""
    state = value.state if type(value) is Inert else None
    return state if type(state) is dict and "_parameters" in state and "_modules" in state else None


def _items(value: object) -> list[tuple[str, Any]]:
    return list(value.items()) if type(value) is dict else []


def _listed(value: object) -> list[str]:
    """Return a set's names; torch pickles it as a call of `set`."""
    arguments = value.arguments if type(value) is Inert else (value,)
    found = arguments[0] if type(arguments) is tuple and len(arguments) == 1 else None
    return [name for name in found if type(name) is str] if type(found) is list else []


def open_torch(file: BinaryIO, is_zip: bool) -> TorchFile:
    """Map a file and read its pickle.

    Raises: ValueError, of which PickleError's words are for people, or zipfile.BadZipFile.
    """
    mapping = mmap(file.fileno(), 0, access=ACCESS_COPY)
    return _open_zip(file, mapping) if is_zip else _open_stream(mapping)


def _open_zip(file: BinaryIO, mapping: mmap) -> TorchFile:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise PickleError("a zip file with two members of one name")
    roots = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise PickleError("a zip file that torch.save did not write")
    storages = Storages()
    start, end = _place(mapping, members[f"{roots[0]}data.pkl"])
    data = _unpickler(mapping, start, end, storages).load()
    for key, storage in storages.found.items():
        storage.start, end = _place(mapping, members.get(f"{roots[0]}data/{key}"))
        if end - storage.start != storage.nbytes:
            raise PickleError(f"{end - storage.start} bytes of numbers where {storage.nbytes} are listed")
    order = members.get(f"{roots[0]}byteorder")
    written = bytes(mapping[slice(*_place(mapping, order))]) if order else b"little"
    if written not in (b"little", b"big"):
        raise PickleError("numbers in an unknown order of bytes")
    return TorchFile(mapping, written != sys.byteorder.encode(), data)


def _place(mapping: mmap, info: zipfile.ZipInfo | None) -> tuple[int, int]:
    """Return where the bytes of a member that is not packed start and end."""
    if info is None:
        raise PickleError("a zip file without the numbers that it lists")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ENCRYPTED_FLAG:
        raise PickleError("a zip file that was packed by another program: its members are compressed or encrypted")
    head = mapping[info.header_offset : info.header_offset + LOCAL_HEADER_BYTES]
    if info.header_offset < 0 or len(head) < LOCAL_HEADER_BYTES or not head.startswith(b"PK\3\4"):
        raise PickleError("a zip file whose list of members points beside them")
    names = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    start = info.header_offset + LOCAL_HEADER_BYTES + names
    if start + info.file_size > len(mapping):
        raise PickleError("a zip file that ends before its members do")
    return start, start + info.file_size


def _open_stream(mapping: mmap) -> TorchFile:
    """Read five pickles (magic number, protocol, machine, object, keys) and then the numbers of each key."""
    storages, window = Storages(), Window(mapping, 0, min(len(mapping), PICKLE_CAP_BYTES))
    unpickler = InertUnpickler(window, KNOWN, storages)
    if unpickler.load() != MAGIC or unpickler.load() != PROTOCOL:
        raise PickleError("a pickle that torch.save did not write")
    unpickler.load()
    data, keys, at = unpickler.load(), unpickler.load(), window.tell()
    if type(keys) is not list or not all(type(key) is str for key in keys) or set(keys) != set(storages.found):
        raise PickleError("other keys of numbers than the object has")
    for key in keys:
        storage = storages.found[key]
        count = int.from_bytes(mapping[at : at + 8], "little")
        storage.start, at = at + 8, at + 8 + storage.nbytes
        if count * storage.dtype.itemsize != storage.nbytes or at > len(mapping):
            raise PickleError("a file that ends before its numbers, or has others than it lists")
    return TorchFile(mapping, sys.byteorder != "little", data)


def _unpickler(mapping: mmap, start: int, end: int, storages: Storages) -> InertUnpickler:
    if end - start > PICKLE_CAP_BYTES:
        raise PickleError(f"a pickle of more than {PICKLE_CAP_BYTES >> 20} MiB")
    return InertUnpickler(Window(mapping, start, end), KNOWN, storages)
