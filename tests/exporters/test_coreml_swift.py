"""The Swift example: it parses, and says what the package says."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from swift_parser import faults

import samx
from samx.exporters.coreml.export import swift_source
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec

FUNCTIONS = {"points_4": 4, "points_1": 1, "points_16": 16}
CASES = {
    "sam1": (sam1_spec(), "samx", "fp16", FUNCTIONS),
    "sam1_float32": (sam1_spec(masks="single"), "samx", "fp32", {"main": 8}),
    "sam2": (sam2_spec(mask_input=True), "samx", "fp16", FUNCTIONS),
    "sam2_int8": (sam2_spec(), "samx", "int8", FUNCTIONS),
    "apple": (sam2_spec(), "apple", "fp16", FUNCTIONS),
}
Case = tuple[DecoderSpec, str, str, Mapping[str, int]]


def source(case: Case) -> str:
    spec, contract, precision, functions = case
    return swift_source(spec, contract, precision, functions, spec.image_inputs)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_parses(case: Case) -> None:
    text = source(case)
    assert faults(text) == []
    assert "$fill" not in text


def test_the_parser_sees_a_fault() -> None:
    assert faults(source(CASES["sam1"]).replace("func decode(", "func decode((")) != []


def test_the_templates_are_found_in_an_archive(tmp_path: Path) -> None:
    package = Path(samx.__file__).parent
    with zipfile.ZipFile(tmp_path / "samx.zip", "w") as archive:
        for path in package.rglob("*"):
            if path.suffix in (".py", ".in"):
                archive.write(path, path.relative_to(package.parent))
    code = (
        "from samx.exporters.coreml.export import swift_source; from samx.models.spec import sam1_spec; import sys; "
        "sys.stdout.write(swift_source(sam1_spec(), 'samx', 'fp16', {'points_1': 1}, sam1_spec().image_inputs))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "samx.zip")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == source((sam1_spec(), "samx", "fp16", {"points_1": 1})), done.stderr


def test_functions_come_smallest_first() -> None:
    assert '[(1, "points_1"), (4, "points_4"), (16, "points_16")]' in source(CASES["sam1"])


def test_a_single_function_is_not_named() -> None:
    assert "functionName" in source(CASES["sam1"])
    assert "functionName" not in source(CASES["sam1_float32"])


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("sam1", ["iou_predictions", "Float16", "label: Float)", "label: -2", "a prompt without a box ends with"]),
        ("sam1_float32", ["best of 1 masks", "MLShapedArray<Float>(output", "label: Float)"]),
        ("sam2", ["high_res_features_0", "every prompt ends with"]),
        ("sam2_int8", ["sam2, int8, contract samx", "MLShapedArray<Float16>(output"]),
        ("apple", ["scores", "label: Int32)", "sparse_embedding", "the prompt encoder adds itself"]),
    ],
)
def test_says_what_the_package_takes(case: str, words: list[str]) -> None:
    text = source(CASES[case])
    assert [word for word in words if word not in text] == []
