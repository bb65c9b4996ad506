"""Strategies that damage what samx reads: bytes, documents, arrays, chunks of pictures."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from hypothesis import strategies as st

NASTY: Sequence[Any] = (
    None, True, False, 0, -1, 1, 2**31, 2**62, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ",
    "a", "\0", "..", "../x", "/etc/passwd", "\ud800", "x" * 5000, [], {}, [[]], [0] * 1000, {"a": {}}, {"": 0},
)  # fmt: skip
WORDS = (b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"[" * 2000, b'{"a":' * 500, b"1e999", b"NaN", b"PK")
DTYPES = ("<f2", "<f4", "<f8", "<i8", "|u1", "|b1", ">f4", "<c8", "<U4", "|S3")
SHAPES: Sequence[tuple[int, ...]] = ((), (0,), (1,), (2, 2), (1, 0, 3), (1, 1, 1, 1), (1,) * 30)


def damaged(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Cut, copy, overwrite and stuff bytes, up to four times."""
    new = st.binary(min_size=1, max_size=8)
    step = st.tuples(st.integers(0, len(CUTS) - 1), st.floats(0, 1), st.floats(0, 0.2), new)
    words = st.sampled_from(WORDS)
    return st.builds(_bytes, st.sampled_from(seeds), st.lists(st.tuples(step, words), min_size=1, max_size=4))


CUTS: Sequence[Callable[[bytes, int, int, bytes, bytes], bytes]] = (
    lambda data, at, end, new, word: data[:at] + new + data[at + len(new) :],
    lambda data, at, end, new, word: data[:at] + data[end:],
    lambda data, at, end, new, word: data[:at],
    lambda data, at, end, new, word: data[:end] + data[at:],
    lambda data, at, end, new, word: data[:at] + word + data[at:],
    lambda data, at, end, new, word: data[:at] + new + data[at:],
)


def _bytes(data: bytes, steps: list[tuple[tuple[int, float, float, bytes], bytes]]) -> bytes:
    for (kind, where, share, new), word in steps:
        at = int(where * len(data))
        data = CUTS[kind](data, at, at + int(share * len(data)), new, word)
    return data


def values() -> st.SearchStrategy[Any]:
    """Draw what may stand in JSON, mostly what breaks readers."""
    leaves = st.one_of(st.sampled_from(NASTY), st.integers(), st.floats(), st.text(max_size=8))
    return st.recursive(leaves, lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(max_size=3), of))


def document(seed: Any) -> st.SearchStrategy[Any]:
    """Change a document at up to three places."""
    change = st.tuples(st.sampled_from(("set", "drop", "add", "copy")), st.floats(0, 1), values())
    return st.builds(_document, st.just(seed), st.lists(change, min_size=1, max_size=3))


def _document(seed: Any, changes: list[tuple[str, float, Any]]) -> Any:
    found = json.loads(json.dumps(seed))
    for kind, where, drawn in changes:
        places, value = _places(found), deepcopy(drawn)  # drawn ones are shared
        if not places:
            return value
        holder, key = places[int(where * (len(places) - 1))]
        if kind == "drop":
            del holder[key]
        elif isinstance(holder, list):
            holder[key] = value if kind == "set" else [*holder[:key], value]
        else:
            holder[f"{key}x" if kind == "add" else key] = value if kind != "copy" else json.loads(_json(holder))
    return found


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys: Sequence[Any] = (
        list(value) if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    )
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def documents(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Damage JSON documents, as documents and as bytes."""
    changed = [document(json.loads(seed)).map(_json) for seed in seeds]
    return st.one_of(*changed, *changed, damaged(seeds))


def archives(seed: bytes, header: str | None) -> st.SearchStrategy[bytes]:
    """Damage an .npz: its arrays, its JSON header, its bytes; packed so that all checksums fit."""
    with np.load(io.BytesIO(seed), allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    names = st.sampled_from([name for name in arrays if name != header])
    array = st.tuples(names, st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.booleans())
    changed = st.lists(array, max_size=3).map(lambda changes: _arrays(arrays, changes))
    lied = st.tuples(names, st.sampled_from((*SHAPES, (2**40,), (2**62, 4), (-1,)))).map(lambda lie: _lie(arrays, *lie))
    ways = [changed, lied, damaged([seed])]
    if header is not None:
        told = document(json.loads(arrays[header].tobytes()))
        ways.append(told.map(lambda text: _packed({**arrays, header: np.frombuffer(_json(text), np.uint8)})))
    return st.one_of(*ways)


def _arrays(arrays: Mapping[str, Any], changes: list[tuple[str, str, tuple[int, ...], bool]]) -> bytes:
    made = dict(arrays)
    for name, dtype, shape, gone in changes:
        made.pop(name, None)
        if not gone:
            made[name] = np.zeros(shape, dtype)
    return _packed(made)


def _packed(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _lie(arrays: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> bytes:
    """State another shape in an array's header than it has."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, value in arrays.items():
            with archive.open(f"{key}.npy", "w") as member:
                facts = np.lib.format.header_data_from_array_1_0(value)
                np.lib.format.write_array_header_1_0(member, {**facts, "shape": shape} if key == name else facts)
                member.write(value.tobytes())
    return buffer.getvalue()


def pictures(png: bytes) -> st.SearchStrategy[bytes]:
    """Damage a PNG's chunks, checksums right."""
    chunks = _chunks(png)
    numbers = st.sampled_from((0, 1, 2, 3, 4, 6, 8, 16, 255, 2**31 - 1, 2**31, 2**32 - 1, 20_000))
    head = st.tuples(numbers, numbers, *[st.integers(0, 17)] * 5).map(
        lambda of: [(b"IHDR", struct.pack(">IIBBBBB", *of)), *chunks[1:]]
    )
    body = st.tuples(st.integers(0, len(chunks) - 1), st.binary(max_size=40)).map(
        lambda of: [*chunks[: of[0]], (chunks[of[0]][0], of[1]), *chunks[of[0] + 1 :]]
    )
    pixels = st.tuples(st.binary(max_size=200), st.integers(0, 3)).map(
        lambda of: [chunks[0], (b"PLTE", of[0][:9]), (b"IDAT", zlib.compress(of[0] * 10 ** of[1])), chunks[-1]]
    )
    more = st.tuples(
        st.sampled_from((b"eXIf", b"iCCP", b"tEXt", b"zTXt", b"tRNS", b"acTL")), st.binary(max_size=60)
    ).map(lambda of: [chunks[0], of, *chunks[1:]])
    return st.one_of(st.one_of(head, body, pixels, more).map(_joined), damaged([png]))


def _chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def _joined(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def tensors(seed: bytes) -> st.SearchStrategy[bytes]:
    """Damage a safetensors file: its header, the length of that, its bytes."""
    size = int.from_bytes(seed[:8], "little")
    told, rest = json.loads(seed[8 : 8 + size]), seed[8 + size :]
    headers = document(told).map(_json)
    framed = headers.map(lambda text: len(text).to_bytes(8, "little") + text + rest)
    lied = st.sampled_from((0, 1, 2**31, 2**63, 2**64 - 1)).map(lambda size: size.to_bytes(8, "little") + seed[8:])
    return st.one_of(framed, framed, lied, damaged([seed]))


def repacked(seed: bytes) -> st.SearchStrategy[bytes]:
    """Damage the members of a zip file, such as a torch checkpoint's pickle; checksums right."""
    with zipfile.ZipFile(io.BytesIO(seed)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = st.sampled_from([*members, *[each for each in members if each.endswith(".pkl")] * len(members)])
    return st.one_of(
        name.flatmap(lambda one: damaged([members[one]]).map(lambda data: _zipped({**members, one: data}))),
        damaged([seed]),
    )


def _zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()
