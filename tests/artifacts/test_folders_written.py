"""An artifact with directories in it is sealed, committed and replaced whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from toy_artifact import LINKS, MANIFEST, MODEL, PACKAGE, ROLES, WEIGHTS, build, directory_for_a_file, edit, pipe

from samx.artifacts import commit
from samx.artifacts.commit import seal
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, WriteError

PACKAGE_ROLES = {**ROLES, **dict.fromkeys(PACKAGE, "package")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return build(tmp_path / "toy", more=PACKAGE)


def _touch(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).touch()


def _mkdir(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).mkdir()


EXTRAS: dict[str, tuple[Callable[[Path], object], str]] = {
    "file": (_touch("decoder.mlpackage/Data/scratch"), r"scratch"),
    "hidden file": (_touch("decoder.mlpackage/.DS_Store"), r"\.DS_Store"),
    "manifest": (_touch("decoder.mlpackage/manifest.json"), r"decoder\.mlpackage/manifest\.json"),
    "empty directory": (_mkdir("decoder.mlpackage/empty"), r"decoder\.mlpackage/empty"),
    "empty directory at the top": (_mkdir("empty"), r"empty"),
    "directory of the manifest's name": (_mkdir("manifest.json"), r"manifest\.json"),
    "directory of files": (lambda directory: shutil.copytree(directory / "decoder.mlpackage", directory / "x"), "'x'"),
    "named pipe": (lambda directory: os.mkfifo(directory / "decoder.mlpackage" / "pipe"), r"mlpackage/pipe"),
    "link": (lambda directory: (directory / "decoder.mlpackage" / "up").symlink_to(".."), r"mlpackage/up"),
    "linked directory": (LINKS["outer directory"], r"decoder\.mlpackage"),
    "linked file": (LINKS["file"], r"no regular file"),
    "pipe for a file": (pipe, r"no regular file"),
    "directory for a file": (directory_for_a_file, r"model\.mlmodel"),
    "missing file": (lambda directory: (directory / WEIGHTS).unlink(), r"weight\.bin: found nothing"),
}


@pytest.mark.parametrize("what", EXTRAS)
def test_seal_wants_exactly_the_files_of_the_roles(tmp_path: Path, what: str) -> None:
    plant, told = EXTRAS[what]
    with pytest.raises(WriteError, match=rf"cannot seal .*{told}"):
        build(tmp_path / "toy", more=PACKAGE, before_seal=plant)
    assert not (tmp_path / "toy").exists()


def test_seal_refuses_names_that_no_manifest_takes(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "outside").touch()
    for roles in ({"../outside": "decoder"}, {"a": "x", "a/b": "y"}, {"a/b": "x", "A/c": "y"}):
        with pytest.raises(ArtifactError):
            seal(tmp_path / "toy", MANIFEST, roles)
    assert list((tmp_path / "toy").iterdir()) == []


def test_seal_again_keeps_nested_files(path: Path) -> None:
    more = "decoder.mlpackage/Data/more.bin"
    (path / more).write_bytes(b"more")
    sealed = seal(path, replace(MANIFEST, target="coreml"), {**PACKAGE_ROLES, more: "package"})
    assert Artifact.open(path).manifest == sealed
    assert set(sealed.files) == {*PACKAGE_ROLES, more}


@pytest.mark.parametrize("what", ["decoder.mlpackage/late", "decoder.mlpackage/Data/late"])
@pytest.mark.parametrize("plant", [_touch, _mkdir])
def test_nothing_is_added_after_sealing(
    tmp_path: Path, what: str, plant: Callable[[str], Callable[[Path], None]]
) -> None:
    with pytest.raises(WriteError, match=f"after sealing: found {what}"):
        build(tmp_path / "toy", more=PACKAGE, after_seal=plant(what))
    assert list(tmp_path.iterdir()) == []


def test_a_nested_file_that_is_altered_after_sealing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="was altered"):
        build(tmp_path / "toy", more=PACKAGE, after_seal=lambda directory: (directory / MODEL).write_bytes(b"PROGRAM"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_replace(path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(commit, "_exchange", lambda staged, target: False)
    build(path, more={**PACKAGE, MODEL: b"new program"}, overwrite=True)
    assert Artifact.open(path).read(MODEL) == b"new program"
    build(path, overwrite=True)
    assert sorted(os.listdir(path)) == ["cases.npz", "decoder.onnx", "manifest.json"]
    assert os.listdir(path.parent) == ["toy"]


FOREIGN: dict[str, Callable[[Path], object]] = {
    "file": _touch("decoder.mlpackage/Data/notes.txt"),
    "manifest of a package": _touch("decoder.mlpackage/Data/manifest.json"),
    "empty directory": _mkdir("decoder.mlpackage/Data/notes.txt"),
    "directory in a file's place": directory_for_a_file,
    "linked directory": LINKS["inner directory"],
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_samx_did_not_write_is_never_replaced(path: Path, what: str) -> None:
    FOREIGN[what](path)
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(WriteError, match=r"not replaced.*also decoder\.mlpackage/Data/"):
        build(path, overwrite=True)
    assert sorted(path.parent.rglob("*")) == before


def test_damaged_package_can_be_replaced(path: Path) -> None:
    shutil.rmtree(path / "decoder.mlpackage" / "Data")
    assert Artifact.open(build(path, more=PACKAGE, overwrite=True)).read(MODEL) == b"program"


def test_what_another_manifest_lists_is_walked_without_harm(path: Path) -> None:
    """What --force looks at may be hostile: its names are compared, never opened."""
    names = ["../" * 9 + "etc", "/etc/passwd", "a//b", "a/" * 100_000]
    edit(path, lambda data: data["files"].update(dict.fromkeys(names)))
    assert Artifact.open(build(path, b"new", overwrite=True)).read("decoder.onnx") == b"new"


def test_a_folder_that_cannot_be_looked_into(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Path.iterdir

    def refuse(self: Path) -> object:
        if self.name == "Data":  # root may look everywhere, so the refusal itself is played
            raise PermissionError(13, "Permission denied", str(self))
        return listing(self)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(WriteError, match="Permission denied"):
        build(path, overwrite=True)
    monkeypatch.undo()
    assert Artifact.open(path).read(WEIGHTS) == b"weights"


def test_everything_is_synced_before_the_folder_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(commit, "_sync", synced.append)
    build(tmp_path / "toy", more=PACKAGE)
    staged = synced[-2]  # the last one is the folder that it was renamed in
    order = synced[2:-1]  # the first two are the manifest's own
    files = [staged / name for name in ("manifest.json", *PACKAGE_ROLES)]
    folders = {folder for file in files for folder in file.parents if folder.is_relative_to(staged)}
    assert sorted(order) == sorted([*files, *folders])
    assert all(order.index(entry) < order.index(entry.parent) for entry in order if entry != staged)
    assert synced[-1] == tmp_path
