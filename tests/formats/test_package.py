"""Packages: only what Core ML's own layout knows, whole, and private where it must lie on disk."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mil_packages import artifact, function, mb, save_function

from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, WriteError
from samx.formats.coreml import package as module
from samx.formats.coreml.package import DECODER, package_from_directory, read_package, unpacked
from samx.models.spec import sam1_spec

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHT = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of one multiplication by a stored weight."""
    weight = [[float(i) for i in range(64)]]
    made = function(lambda x: mb.matmul(x=x, y=weight, transpose_y=True), {"x": ((2, 64), "fp32")})
    return save_function(made, tmp_path_factory.mktemp("package") / "toy.mlpackage")


@pytest.fixture
def copy(toy: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    made = tmp_path / "copy.mlpackage"
    with unpacked(package_from_directory(toy)) as path:
        path.rename(made)
    return made


def test_a_package_is_read_whole(toy: Path) -> None:
    package = package_from_directory(toy)
    assert set(package.files) == {"Manifest.json", MODEL, WEIGHT}
    assert package.model == (toy / MODEL).read_bytes()
    assert package.weights_folder == "Data/com.apple.CoreML/weights"
    assert package.size == sum(len(data) for data in package.files.values())


def test_it_is_unpacked_for_its_owner_alone_and_removed(toy: Path) -> None:
    package = package_from_directory(toy)
    with unpacked(package) as path:
        assert path.suffix == ".mlpackage"
        assert package_from_directory(path) == package
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()


def test_it_is_removed_after_an_error_too(toy: Path) -> None:
    with pytest.raises(KeyError), unpacked(package_from_directory(toy)) as path:
        raise KeyError
    assert not path.parent.exists()


def test_a_full_disk_is_a_write_error(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match="No space left"), unpacked(package_from_directory(toy)):
        pytest.fail("the body must not run")


class TestInAnArtifact:
    @pytest.fixture
    def sealed(self, toy: Path, tmp_path: Path) -> Artifact:
        return artifact(tmp_path / "artifact", toy, sam1_spec(), {})

    def test_it_is_what_was_sealed(self, sealed: Artifact, toy: Path) -> None:
        assert read_package(sealed, DECODER).files == package_from_directory(toy).files

    @pytest.mark.parametrize("name", ["Manifest.json", MODEL, WEIGHT])
    def test_an_altered_byte_is_seen_after_opening(self, sealed: Artifact, name: str) -> None:
        file = sealed.path / DECODER / name
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        with pytest.raises(ArtifactError, match="was altered"):
            read_package(sealed, DECODER)

    def test_another_folder_is_named(self, sealed: Artifact) -> None:
        with pytest.raises(ArtifactError, match=r"has no files in a folder 'other\.mlpackage'"):
            read_package(sealed, "other.mlpackage")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "Manifest.json").read_text())
    change(manifest)
    (path / "Manifest.json").write_text(json.dumps(manifest))


def root(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]


def add(name: str) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"more")

    return change


def link(name: str) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        (path / name).rename(path.parent / "elsewhere")
        (path / name).symlink_to(path.parent / "elsewhere")

    return change


def in_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda path: edit(path, change)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda path: (path / "Manifest.json").unlink(), "half-written: found no Manifest.json"),
    "no JSON": (lambda path: (path / "Manifest.json").write_text("{"), "Manifest.json is not valid JSON"),
    "a list": (lambda path: (path / "Manifest.json").write_text("[]"), "has the wrong type"),
    "no model": (lambda path: (path / MODEL).unlink(), "is half-written: found no Data/com.apple.CoreML/model.mlmodel"),
    "no root": (in_manifest(lambda m: m.pop("rootModelIdentifier")), "rootModelIdentifier has the wrong type"),
    "unknown root": (in_manifest(lambda m: m.update(rootModelIdentifier="x")), "rootModelIdentifier names no item"),
    "no items": (in_manifest(lambda m: m.pop("itemInfoEntries")), "itemInfoEntries has the wrong type"),
    "an item of text": (
        in_manifest(lambda m: m["itemInfoEntries"].update(x="y")),
        "Entries: x has the wrong type",
    ),
    "another format": (in_manifest(lambda m: m.update(fileFormatVersion="2.0.0")), "has another format: found '2.0.0'"),
    "a way out": (in_manifest(lambda m: root(m).update(path="../../model.mlmodel")), "no artifact can hold"),
    "an absolute path": (in_manifest(lambda m: root(m).update(path="/etc/passwd")), "no artifact can hold"),
    "another item": (
        in_manifest(lambda m: m["itemInfoEntries"].update(x={"path": "com.apple.CoreML/code.dylib"})),
        "holds what no ML Program has: found Data/com.apple.CoreML/code.dylib",
    ),
    "a file at the top": (add("notes.txt"), "holds what no ML Program has: found notes.txt"),
    "a file beside the model": (add("Data/com.apple.CoreML/.DS_Store"), "found Data/com.apple.CoreML/.DS_Store"),
    "a file of another kind": (add("Data/com.apple.CoreML/weights/run.py"), "found Data/com.apple.CoreML/weights/run"),
    "a folder in the weights": (add("Data/com.apple.CoreML/weights/a/b.bin"), "found Data/com.apple.CoreML/weights/a"),
    "weights that no item names": (
        in_manifest(lambda m: m.update(itemInfoEntries={m["rootModelIdentifier"]: root(m)})),
        "found Data/com.apple.CoreML/weights/weight.bin",
    ),
    "a linked file": (link(WEIGHT), "weight.bin: found a link"),
    "a linked folder": (link("Data/com.apple.CoreML"), "com.apple.CoreML: found a link"),
    "a pipe": (lambda path: os.mkfifo(path / "pipe"), "pipe: found no regular file"),
    "a huge manifest": (lambda path: (path / "Manifest.json").write_bytes(b" " * 2**21), "is too large"),
    "many files": (lambda path: [add(f"w/{i}.bin")(path) for i in range(99)], "is too large: found 102"),
}


@pytest.mark.parametrize(("change", "words"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(copy: Path, change: Callable[[Path], object], words: str) -> None:
    change(copy)
    with pytest.raises(ArtifactError, match=words) as caught:
        package_from_directory(copy)
    assert "\n" not in str(caught.value)


def test_an_absurd_size_is_not_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGE_CAP_BYTES", 10)
    monkeypatch.setattr(module, "_bytes", lambda path, size: pytest.fail("read"))
    with pytest.raises(ArtifactError, match="is too large"):
        package_from_directory(copy)


def test_a_file_that_grows_meanwhile_is_seen(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {name: size - (name == WEIGHT) for name, size in module._listed(copy, "")}
    monkeypatch.setattr(module, "_listed", lambda folder, prefix: sizes.items())
    with pytest.raises(ArtifactError, match="changed while it was read"):
        package_from_directory(copy)


def test_what_coremltools_leaves_beside_the_manifest_is_tolerated(copy: Path) -> None:
    add(module.LEFTOVER)(copy)
    assert module.LEFTOVER in package_from_directory(copy).files


@pytest.mark.parametrize("kind", ["nothing", "a file", "a link"])
def test_what_is_no_directory_is_named(toy: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.mlpackage"
    if kind == "a file":
        path.write_bytes(b"")
    if kind == "a link":
        path.symlink_to(toy)
    with pytest.raises(ArtifactError, match=f"found {kind}, expected a directory"):
        package_from_directory(path)
