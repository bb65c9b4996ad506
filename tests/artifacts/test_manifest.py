"""The manifest is read strictly: each kind of damage is one ArtifactError of one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from toy_artifact import MANIFEST

from samx.artifacts.manifest import Evidence, FileEntry, Manifest, utc_now
from samx.errors import ArtifactError

HASH = "0" * 64
Data = dict[str, Any]


@pytest.fixture
def complete() -> Manifest:
    files = {"decoder.onnx": FileEntry(HASH, 5, "decoder"), "report.json": FileEntry(HASH, 7, "parity_report")}
    evidence = Evidence("graph", "report.json", True, "onnxruntime", "cpu", utc_now())
    return replace(MANIFEST, files=files, evidence=(evidence,))


def test_manifest_survives_the_file(complete: Manifest) -> None:
    assert Manifest.from_bytes(complete.to_bytes(), "m") == complete


def _file(data: Data) -> Data:
    entry: Data = data["files"]["decoder.onnx"]
    return entry


def _set(**values: Any) -> Callable[[Data], None]:
    return lambda data: data.update(values)


def _set_file(**values: Any) -> Callable[[Data], None]:
    return lambda data: _file(data).update(values)


def _set_evidence(**values: Any) -> Callable[[Data], None]:
    return lambda data: data["evidence"][0].update(values)


def _add(data: Data, *names: str) -> None:
    data["files"].update(dict.fromkeys(names, _file(data)))


DAMAGES: dict[str, Callable[[Data], object]] = {
    "missing field": lambda data: data.pop("target"),
    "unknown field": _set(surprise=1),
    "other format": _set(format="zip"),
    "other schema": _set(schema_version=2),
    "schema true": _set(schema_version=True),
    "target number": _set(target=3),
    "precision empty": _set(precision=" "),
    "options list": _set(options=[]),
    "tools version number": _set(tools={"numpy": 2}),
    "created words": _set(created="yesterday"),
    "created without zone": _set(created="2026-01-01T00:00:00"),
    "created elsewhere": _set(created="2026-01-01T00:00:00+02:00"),
    "spec list": _set(spec=[]),
    "spec unknown field": lambda data: data["spec"].update(more=1),
    "spec wrong type": lambda data: data["spec"].update(image_size="1024"),
    "no files": _set(files={}),
    "files list": _set(files=[]),
    "file entry text": lambda data: data["files"].update({"decoder.onnx": "x"}),
    "file without role": lambda data: _file(data).pop("role"),
    "file extra field": _set_file(mode=0o777),
    "size negative": _set_file(bytes=-1),
    "size float": _set_file(bytes=5.0),
    "size true": _set_file(bytes=True),
    "hash short": _set_file(sha256="ab"),
    "hash upper": _set_file(sha256="A" * 64),
    "hash with newline": _set_file(sha256=HASH + "\n"),
    "checkpoint hash": lambda data: data["checkpoint"].update(sha256="none"),
    "checkpoint missing": _set(checkpoint=None),
    "evidence level": _set_evidence(level="hope"),
    "evidence passed text": _set_evidence(passed="true"),
    "evidence of no file": _set_evidence(report="elsewhere.json"),
    "evidence object": _set(evidence={}),
    "names differ in case": lambda data: _add(data, "Decoder.onnx"),
    "nested names differ in case": lambda data: _add(data, "a/weights/w.bin", "a/weights/W.bin"),
    "folders differ in case": lambda data: _add(data, "a/weights/w.bin", "a/Weights/v.bin"),
    "top folders differ in case": lambda data: _add(data, "a/b", "A/c"),
    "file and folder": lambda data: _add(data, "a", "a/b"),
    "file and folder two up": lambda data: _add(data, "a/b/c/d", "a/b"),
    "file and folder differ in case": lambda data: _add(data, "a/b", "A"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused(complete: Manifest, damage: str) -> None:
    data = json.loads(complete.to_bytes())
    DAMAGES[damage](data)
    with pytest.raises(ArtifactError) as caught:
        Manifest.from_bytes(json.dumps(data).encode(), "manifest m.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../up", "..", ".", "a\\b", "C:x", ".hidden", "manifest.json", "MANIFEST.JSON", "",
     "a\0b", "a\nb", "-x", "dot.", "x" * 129, "naïve",
     "/a", "a/", "a//b", "a/./b", "./a", "a/../b", "a/..", "a/b\\c", "a/.hidden", ".hidden/a", "a/b.", "a./b", "C:/x",
     "a/b:c", "a/b\n", "a/" + "x" * 129, "a/b/c/d/e/f/g", "a/" * 100_000 + "a", "manifest.json/a", "Manifest.json/a"],
)  # fmt: skip
def test_file_name_is_refused(complete: Manifest, name: str) -> None:
    data = json.loads(complete.to_bytes())
    data["files"][name] = _file(data)
    with pytest.raises(ArtifactError, match="no artifact can hold"):
        Manifest.from_bytes(json.dumps(data).encode(), "m")


@pytest.mark.parametrize("name", ["a/b", "decoder.mlpackage/Manifest.json", "a/manifest.json", "a/b/c/d/e/f", "a/a"])
def test_nested_file_name_is_taken(complete: Manifest, name: str) -> None:
    data = json.loads(complete.to_bytes())
    _add(data, name)
    assert name in Manifest.from_bytes(json.dumps(data).encode(), "m").files


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000, b'{"a": 1, "a": 2}', b"1" * 5000],
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"^m"):
        Manifest.from_bytes(data, "m")


def test_every_truncation_is_refused(complete: Manifest) -> None:
    data = complete.to_bytes().rstrip()
    for length in range(0, len(data), 37):
        with pytest.raises(ArtifactError):
            Manifest.from_bytes(data[:length], "m")
