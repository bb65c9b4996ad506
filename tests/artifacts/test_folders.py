"""Files in directories of an artifact: none is handed out whose path or content was tampered with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_artifact import LINKS, MODEL, PACKAGE, WEIGHTS, build, directory_for_a_file, pipe

from samx.artifacts import store
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return build(tmp_path / "toy", more=PACKAGE)


def test_nested_files_are_read(path: Path) -> None:
    artifact = Artifact.open(path)
    assert {name: artifact.read(name) for name in PACKAGE} == PACKAGE
    assert Artifact.open(path).facts()["unlisted_files"] == []


def test_an_artifact_is_found_through_a_link(path: Path) -> None:
    path.with_name("latest").symlink_to(path)
    assert Artifact.open(path.with_name("latest")).read(WEIGHTS) == b"weights"


def test_files_under_a_folder(path: Path) -> None:
    artifact = Artifact.open(path)
    assert artifact.files_under("decoder.mlpackage") == sorted(PACKAGE)
    assert artifact.files_under("decoder.mlpackage/Data") == [MODEL, WEIGHTS]


@pytest.mark.parametrize("folder", ["prompt_encoder.mlpackage", "decoder", "decoder.onnx", ""])
def test_no_files_under_a_folder(path: Path, folder: str) -> None:
    with pytest.raises(ArtifactError, match=f"'{folder}'") as caught:
        Artifact.open(path).files_under(folder)
    assert caught.value.found == "cases.npz, decoder.mlpackage, decoder.onnx"


def _file_for_a_directory(path: Path) -> None:
    shutil.rmtree(path / "decoder.mlpackage")
    (path / "decoder.mlpackage").write_bytes(b"program")


TAMPERING: dict[str, Callable[[Path], object]] = {
    "one byte": lambda path: (path / WEIGHTS).write_bytes(b"weighty"),
    "longer": lambda path: (path / WEIGHTS).write_bytes(b"weights more"),
    "missing": lambda path: (path / WEIGHTS).unlink(),
    "missing directory": lambda path: shutil.rmtree(path / "decoder.mlpackage"),
    "named pipe": pipe,
    "directory for a file": directory_for_a_file,
    "file for a directory": _file_for_a_directory,
}


@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_inside_is_seen(path: Path, how: str) -> None:
    TAMPERING[how](path)
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(path)
    assert str(path / "decoder.mlpackage") in str(caught.value)


@pytest.mark.parametrize("where", LINKS)
@pytest.mark.parametrize("system", ["with descriptors", "without"])
def test_a_link_is_refused(path: Path, where: str, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if system == "without":  # Windows: no relative opening, no O_NOFOLLOW
        system_open = os.open
        monkeypatch.setattr(os, "open", lambda path, flags: system_open(path, flags))
        monkeypatch.setattr(store, "FILE_FLAGS", os.O_RDONLY)
    artifact = Artifact.open(path)
    LINKS[where](path)
    with pytest.raises(ArtifactError, match="found a link"):
        artifact.read(MODEL)
    with pytest.raises(ArtifactError, match="found a link"):
        Artifact.open(path)


@pytest.mark.parametrize("where", LINKS)
def test_a_link_that_is_planted_while_we_look_is_refused(
    path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The opening itself refuses; it does not rely on having looked before or after."""
    artifact = Artifact.open(path)
    LINKS[where](path)
    monkeypatch.setattr(store, "_has_link", lambda directory, name: False)
    with pytest.raises(ArtifactError, match="cannot read"):
        artifact.read(MODEL)


def test_no_descriptor_is_left_open(path: Path) -> None:
    def next_descriptor() -> int:
        descriptor = os.open(os.devnull, os.O_RDONLY)
        os.close(descriptor)
        return descriptor

    artifact, before = Artifact.open(path), next_descriptor()
    artifact.read(WEIGHTS)
    directory_for_a_file(path)
    with pytest.raises(ArtifactError, match="no regular file"):
        artifact.read(MODEL)
    shutil.rmtree(path / "decoder.mlpackage/Data")
    with pytest.raises(ArtifactError, match="No such file"):
        artifact.read(WEIGHTS)
    assert next_descriptor() == before


def _plant(path: Path) -> None:
    """Put what no manifest lists everywhere in the artifact."""
    (path / "decoder.mlpackage" / "notes.txt").write_text("mine")
    (path / "decoder.mlpackage" / "manifest.json").write_text("{}")
    (path / "decoder.mlpackage" / "Data" / "empty").mkdir()
    (path / "thesis" / "chapters").mkdir(parents=True)
    (path / "thesis" / "chapters" / "1.txt").write_text("mine")
    (path / "home").symlink_to(path.parent)


PLANTED = ["decoder.mlpackage/Data/empty", "decoder.mlpackage/manifest.json", "decoder.mlpackage/notes.txt",
           "home", "thesis"]  # fmt: skip


def test_inspect_lists_what_is_not_part_of_it(path: Path) -> None:
    _plant(path)
    assert Artifact.open(path).facts()["unlisted_files"] == PLANTED
