"""An altered artifact does not open, and no unchecked byte is handed out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_artifact import build, edit

from samx.artifacts.store import MANIFEST_CAP_BYTES, Artifact
from samx.errors import ArtifactError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return build(tmp_path / "toy")


def test_open_and_read(path: Path) -> None:
    artifact = Artifact.open(path)
    assert artifact.read("decoder.onnx") == b"model"
    assert artifact.file_with_role("parity_cases") == "cases.npz"
    assert artifact.manifest.options == {"opset": 18}


def test_inspect_lists_what_is_not_part_of_it(path: Path) -> None:
    (path / "notes.txt").write_text("mine")
    facts = Artifact.open(path).facts()
    assert facts["unlisted_files"] == ["notes.txt"]
    assert facts["bytes"] == len(b"model") + len(b"cases")
    assert facts["manifest"]["target"] == "onnx"


def _replace_by_link(path: Path) -> None:
    (path / "elsewhere").write_bytes(b"model")
    (path / "decoder.onnx").unlink()
    (path / "decoder.onnx").symlink_to("elsewhere")


def _replace_by_directory(path: Path) -> None:
    (path / "decoder.onnx").unlink()
    (path / "decoder.onnx").mkdir()


def _replace_by_pipe(path: Path) -> None:
    (path / "decoder.onnx").unlink()
    os.mkfifo(path / "decoder.onnx")


def _link_the_manifest(path: Path) -> None:
    (path / "manifest.json").rename(path / "other.json")
    (path / "manifest.json").symlink_to("other.json")


TAMPERING: dict[str, Callable[[Path], object]] = {
    "one byte": lambda path: (path / "decoder.onnx").write_bytes(b"modem"),
    "shorter": lambda path: (path / "decoder.onnx").write_bytes(b"mode"),
    "longer": lambda path: (path / "decoder.onnx").write_bytes(b"models"),
    "empty": lambda path: (path / "decoder.onnx").write_bytes(b""),
    "missing": lambda path: (path / "decoder.onnx").unlink(),
    "link": _replace_by_link,
    "directory": _replace_by_directory,
    "named pipe": _replace_by_pipe,
    "manifest missing": lambda path: (path / "manifest.json").unlink(),
    "manifest link": _link_the_manifest,
    "manifest empty": lambda path: (path / "manifest.json").write_bytes(b""),
    "manifest huge": lambda path: (path / "manifest.json").write_bytes(b" " * (MANIFEST_CAP_BYTES + 1)),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_is_seen(path: Path, how: str) -> None:
    TAMPERING[how](path)
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(path)
    assert str(path) in str(caught.value)


def test_swapped_files_are_seen(path: Path) -> None:
    (path / "decoder.onnx").rename(path / "x")
    (path / "cases.npz").rename(path / "decoder.onnx")
    (path / "x").rename(path / "cases.npz")
    with pytest.raises(ArtifactError, match="was altered"):
        Artifact.open(path)


def test_a_file_altered_after_opening_is_not_handed_out(path: Path) -> None:
    artifact = Artifact.open(path)
    (path / "decoder.onnx").write_bytes(b"modem")
    with pytest.raises(ArtifactError, match="was altered"):
        artifact.read("decoder.onnx")
    (path / "decoder.onnx").write_bytes(b"model and more")
    with pytest.raises(ArtifactError, match="another size"):
        artifact.read("decoder.onnx")


def test_only_listed_files_are_read(path: Path) -> None:
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="no file of this name"):
        Artifact.open(path).read("notes.txt")


def test_a_role_must_be_clear(path: Path) -> None:
    with pytest.raises(ArtifactError, match="'encoder'"):
        Artifact.open(path).file_with_role("encoder")
    edit(path, lambda data: data["files"]["cases.npz"].update(role="decoder"))
    with pytest.raises(ArtifactError, match=r"decoder\.onnx, cases\.npz"):
        Artifact.open(path).file_with_role("decoder")


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="found nothing"):
        Artifact.open(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="found a file"):
        Artifact.open(tmp_path / "file")
