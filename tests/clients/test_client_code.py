"""Client code: which there is, what it is written from, and what is refused before the work."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from client_cases import FRAME_PX

import samx
from samx.artifacts.manifest import EncoderEntry
from samx.clients.code import CODE_FOLDER, check_decoder, check_encoder, check_languages, languages, write_code
from samx.commands.export import ExportRequest, export
from samx.errors import CheckpointError, UsageError
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec, family_spec, sam1_spec, sam2_spec
from samx.registry import BACKENDS, Backend, backend

ONE = EncoderEntry("demo", 1024, "fp32", ShapeRange(1, 1, 1))
WRITTEN = {"decoder.onnx": "decoder", "encoder.onnx": "encoder", "encoder.onnx.data": "encoder_weights"}
EVERY = [(entry, language) for entry in BACKENDS for language in languages(entry)]


def source(entry: Backend, language: str, folder: Path, spec: DecoderSpec) -> str:
    [path] = write_code([language], entry, spec, ONE, "fp32", WRITTEN, folder)
    return (folder / path).read_text()


@pytest.mark.parametrize(("entry", "language"), EVERY, ids=[f"{entry.target}-{name}" for entry, name in EVERY])
@pytest.mark.parametrize("spec", [sam1_spec(), sam2_spec(masks="all", mask_input=True)], ids=["sam1", "sam2"])
def test_every_template_is_filled_in(entry: Backend, language: str, spec: DecoderSpec, tmp_path: Path) -> None:
    text = source(entry, language, tmp_path, spec)
    assert re.findall(r"(?<!\w)@\w+", text) == []
    assert spec.rules.title in text
    assert max(map(len, text.splitlines())) <= 140


@pytest.mark.parametrize("entry", [entry for entry in BACKENDS if "python" in languages(entry)], ids=lambda e: e.target)
def test_python_needs_nothing_but_numpy_pillow_and_the_runtime(entry: Backend, tmp_path: Path) -> None:
    tree = ast.parse(source(entry, "python", tmp_path, sam1_spec()))
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert plain - {"argparse", "sys", entry.library} == {"numpy"}
    assert named - {"cuda.bindings"} == {"pathlib", "PIL"}
    assert entry.library in plain


def test_rules_of_the_family_are_filled_in(tmp_path: Path) -> None:
    sam1 = source(backend("onnx"), "python", tmp_path, sam1_spec())
    sam2 = source(backend("onnx"), "python", tmp_path, sam2_spec(masks="all"))
    for name, one, two in (
        ("PADS", True, False), ("ROUNDS", True, False), ("BOX_FIRST", False, True), ("PADS_BOXES", False, True),
        ("FIRST", 0, 1),
    ):  # fmt: skip
        assert f"\n{name} = {one}  #" in sam1
        assert f"\n{name} = {two}  #" in sam2


def test_graphs_are_run_in_their_order(tmp_path: Path) -> None:
    written = {"prompt.onnx": "prompt", "image.onnx": "image", **WRITTEN, "memory_encoder.onnx": "memory_encoder"}
    del written["decoder.onnx"]
    write_code(["python"], backend("onnx"), sam1_spec(), ONE, "fp32", written, tmp_path)
    text = (tmp_path / CODE_FOLDER / "sam.py").read_text()
    assert 'GRAPHS = ["encoder.onnx", "image.onnx", "prompt.onnx"]' in text


def test_a_language_that_a_target_has_not_is_refused_with_those_it_has() -> None:
    with pytest.raises(UsageError, match=r"'onnx' has no client code.*found swift, expected cpp or javascript"):
        check_languages(["python", "swift"], backend("onnx"))
    with pytest.raises(UsageError, match=r"'aoti'.*expected one of onnx cpp, javascript, kotlin, python; trt cpp"):
        check_languages(["python"], backend("aoti"))


def test_a_family_that_no_client_prepares_is_refused() -> None:
    check_decoder(sam2_spec())
    with pytest.raises(UsageError, match="EfficientSAM"):
        check_decoder(family_spec("efficientsam"))


def test_an_encoder_is_needed_that_takes_one_picture() -> None:
    with pytest.raises(CheckpointError, match=r"no image encoder.*found mine\.pth"):
        check_encoder(None, "mine.pth")
    with pytest.raises(UsageError, match=r"one picture a call: found --pictures 2"):
        check_encoder(replace(ONE, pictures=ShapeRange(2, 2, 2)), "it")
    assert check_encoder(replace(ONE, pictures=ShapeRange(1, 2, 4)), "it").pictures.max == 4


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"client": ["swift"]}, "no client code in this language"),
        ({"client": ["python"], "encoder": False}, "--client with --no-encoder"),
        ({"client": ["swift"], "target": "coreml", "image_input": True}, "--image-input"),
        ({"client": ["swift"], "target": "coreml", "contract": "apple"}, "--contract apple"),
    ],
)
def test_an_export_refuses_before_the_work(asked: dict[str, object], words: str, tmp_path: Path) -> None:
    steps: list[str] = []
    with pytest.raises(UsageError, match=words):
        samx.export(None, tmp_path / "out", progress=steps.append, **asked)  # type: ignore[arg-type]
    assert (steps, list(tmp_path.iterdir())) == ([], [])


def test_the_files_are_hashed_as_the_others_are(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(ExportRequest(out, image_size=FRAME_PX // 2, client=("python", "python", "kotlin")))
    artifact = samx.Artifact.open(out)
    assert sorted(name for name, entry in artifact.manifest.files.items() if entry.role == "code") == [
        "code/Sam.kt", "code/sam.py",
    ]  # fmt: skip
    assert f"FRAME, PICTURE = {FRAME_PX // 2}, {FRAME_PX // 2}" in artifact.read("code/sam.py").decode()
    (out / "code" / "sam.py").write_text("print('mine')")
    with pytest.raises(samx.ArtifactError, match=r"sam\.py"):
        samx.Artifact.open(out).read("code/sam.py")


def test_javascript_is_taken_by_node(tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("no node here")
    source(backend("onnx"), "javascript", tmp_path, sam1_spec())
    path = tmp_path / CODE_FOLDER / "sam.mjs"
    assert subprocess.run(["node", "--check", path], check=False).returncode == 0
    path.write_text(path.read_text().replace("class Sam {", "class Sam {{"))
    assert subprocess.run(["node", "--check", path], check=False, capture_output=True).returncode != 0
