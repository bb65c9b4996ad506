"""A Core ML kit has what a phone needs: whole packages, a click for each, and the steps with Apple's tools."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from coreml_toys import MANY, toy_program
from fake_mac import package
from kits import artifact, kit_of, suite

from samx.formats.coreml.package import DECODER


def coreml_artifact(folder: Path, functions: Mapping[str, int]) -> Path:
    """Write an artifact of toy programs, with parity evidence."""
    made = package(folder / "made.mlpackage", {name: toy_program(rows) for name, rows in functions.items()})
    names = [path for path in made.rglob("*") if path.is_file()]
    files = {f"{DECODER}/{path.relative_to(made).as_posix()}": ("package", path.read_bytes()) for path in names}
    rows = sorted(functions.values())
    options = {
        "slots": True, "points": [rows[0], rows[0], rows[-1]], "prompts": [1, 1, 1], "ios": 18,
        "functions": dict(functions), "contract": "samx",
    }  # fmt: skip
    small = suite(extent=0.4)  # float16 has room for it
    return artifact(folder / "toy", files, "coreml", options, small, precision="fp16")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coreml_artifact(tmp_path_factory.mktemp("coreml"), MANY)


@pytest.fixture(scope="module")
def kit(made: Path) -> Path:
    return kit_of(made)


def test_inputs_for_a_phone_fit_the_package(kit: Path) -> None:
    with np.load(kit / "inputs" / "decoder.npz", allow_pickle=False) as stored:
        feed = {name: stored[name] for name in stored.files}
    assert {name: (value.shape, value.dtype.name) for name, value in feed.items()} == {
        "image_embeddings": ((1, 256, 1, 1), "float16"), "point_coords": ((1, 2, 2), "float32"),
        "point_labels": ((1, 2), "float32"),
    }  # fmt: skip
    assert feed["point_labels"].tolist() == [[1, -1]]


def test_the_readme_names_the_package_and_the_function_of_a_click(kit: Path) -> None:
    text = (kit / "README.txt").read_text()
    assert 'on_phone("artifact/decoder.mlpackage", "inputs/decoder.npz", "TEAM")' in text
    assert "function_name='points_2'" in text
    assert (kit / "artifact" / DECODER).is_dir()


def code_of(text: str) -> str:
    lines = [line.removeprefix("    ") for line in text.splitlines() if line.startswith("    ") or not line]
    return "\n".join(lines)


def test_what_the_readme_imports_of_coremltools_is_there(kit: Path) -> None:
    text = (kit / "README.txt").read_text()
    part = text[text.index("    import asyncio") : text.index("That measures and compares nothing")]
    tree = ast.parse(code_of(part))
    found = [(str(node.module), alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             for alias in node.names]  # fmt: skip
    assert len(found) == 4
    assert [name for module, name in found if not hasattr(importlib.import_module(module), name)] == []
    assert "asyncio.run(on_phone(" in part


def test_a_package_of_one_function_needs_no_name(tmp_path: Path) -> None:
    text = (kit_of(coreml_artifact(tmp_path, {"main": 4})) / "README.txt").read_text()
    assert "function_name=None)" in text


def test_the_page_has_the_commands_of_each_processor(kit: Path) -> None:
    text = (kit / "README.txt").read_text()
    for device in ("cpu+ane", "cpu+gpu", "all", "coreml-cpu"):
        assert f"python3 samx.pyz validate artifact --device {device}\n" in text
