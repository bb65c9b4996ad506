"""The static site: what it holds, what is refused before the work, and that a folder is replaced whole or not."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from web_browser import fake_runtime

from samx.artifacts.commit import write_file
from samx.artifacts.store import Artifact
from samx.commands.web import web
from samx.errors import ArtifactError, ImageError, InputError, UnavailableError, UsageError, WriteError
from samx.files import MIB
from samx.web.onnxruntime_web import NAMES, runtime_files, unpacked


@pytest.fixture
def runtime(tmp_path: Path) -> str:
    return str(fake_runtime(tmp_path / "dist"))


def test_it_holds_the_page_the_model_and_the_runtime(demo_artifact: Path, runtime: str, tmp_path: Path) -> None:
    told = web(demo_artifact, tmp_path / "site", runtime=runtime)
    site = json.loads((tmp_path / "site" / "site.json").read_text())
    there = {
        path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*") if path.is_file()
    }
    assert there == set(site["files"]) == set(told["files"])
    assert there >= {"index.html", "app.js", "worker.js", "example.png", *(f"runtime/{name}" for name in NAMES)}
    assert [entry["file"] for entry in site["graphs"]] == ["model/encoder.onnx", "model/decoder.onnx"]
    for entry in site["graphs"]:
        data = (tmp_path / "site" / entry["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
        assert entry["largest_tensor_bytes"] >= 2 * MIB  # a table of positions: 128 x 4096 numbers
    assert site["webgpu"] == ""
    assert told["bytes"]["page"] <= MIB


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("text.png", None, "none that browsers show: expected PNG"), ("photo.tiff", (4, 4), "none that browsers show"),
        ("cut.png", (40, 40), "damaged"), ("large.png", (8001, 8000), "found 8001 x 8000 px, expected at most 64"),
    ],
)  # fmt: skip
def test_an_example_is_a_picture_that_the_page_takes(
    name: str, size: tuple[int, int] | None, words: str, demo_artifact: Path, runtime: str, tmp_path: Path
) -> None:
    example = tmp_path / name
    example.write_bytes(b"hello")
    if size is not None:
        Image.new("L", size).save(example)
    if name.startswith("cut"):
        example.write_bytes(example.read_bytes()[:-20])
    with pytest.raises(ImageError, match=words):
        web(demo_artifact, tmp_path / "site", runtime=runtime, example=example)
    assert not (tmp_path / "site").exists()


def test_another_opset_says_why_webgpu_is_not_taken(sam2_artifact: Path, runtime: str, tmp_path: Path) -> None:
    web(sam2_artifact, tmp_path / "site", runtime=runtime)
    site = json.loads((tmp_path / "site" / "site.json").read_text())
    assert "opset 23" in site["webgpu"]
    assert [Path(entry["file"]).stem for entry in site["graphs"]] == ["encoder", "image", "prompt"]
    assert site["picture"] == {"size_px": 256, "type": "float32", "valid": False}


def changed(artifact: Path, **fields: object) -> None:
    manifest = replace(Artifact.open(artifact).manifest, **fields)  # type: ignore[arg-type]
    write_file(artifact / "manifest.json", manifest.to_bytes())


def test_another_target_is_named(artifact_copy: Path, runtime: str, tmp_path: Path) -> None:
    changed(artifact_copy, target="aoti")
    with pytest.raises(UsageError, match="found target 'aoti', expected target 'onnx'"):
        web(artifact_copy, tmp_path / "site", runtime=runtime)
    assert not (tmp_path / "site").exists()


def test_an_artifact_without_an_encoder_is_refused(artifact_copy: Path, runtime: str, tmp_path: Path) -> None:
    options = {**Artifact.open(artifact_copy).manifest.options}
    options.pop("encoder")
    changed(artifact_copy, options=options)
    with pytest.raises(ArtifactError, match="no image encoder"):
        web(artifact_copy, tmp_path / "site", runtime=runtime)


def test_no_runtime_says_what_to_do(demo_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="npm pack onnxruntime-web@"):
        web(demo_artifact, tmp_path / "site")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"ort\.wasm\.min\.mjs"):
        web(demo_artifact, tmp_path / "site", runtime="empty")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="npm is not here"):
        web(demo_artifact, tmp_path / "site", runtime="npm")


def test_another_archive_is_refused() -> None:
    with pytest.raises(InputError, match="not the archive"):
        unpacked(b"another")


def test_scripts_of_two_versions_are_refused(runtime: str) -> None:
    (Path(runtime) / NAMES[0]).write_bytes(b"/*! ONNX Runtime Web v1.2.3 */")
    with pytest.raises(InputError, match="several versions"):
        runtime_files(runtime, lambda *_: None)


def test_npm_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'no network' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr("samx.web.onnxruntime_web.shutil.which", lambda _: str(npm))
    with pytest.raises(UnavailableError, match="no network"):
        runtime_files("npm", lambda *_: None)


def test_only_a_site_is_replaced(demo_artifact: Path, runtime: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    web(demo_artifact, site, runtime=runtime)
    with pytest.raises(WriteError, match="exists already"):
        web(demo_artifact, site, runtime=runtime)
    (site / "mine.txt").write_text("mine")
    with pytest.raises(WriteError, match=r"found mine\.txt"):
        web(demo_artifact, site, runtime=runtime, overwrite=True)
    (site / "mine.txt").unlink()
    web(demo_artifact, site, runtime=runtime, overwrite=True)
    shutil.rmtree(site)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".site")] == []
