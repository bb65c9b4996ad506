"""Clients of ONNX Runtime, from picture to mask, beside the predictor: in Python, in JavaScript, and compiled C++."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client_cases import Case, cases, code_of, exported, rewritten, tool
from PIL import Image

pytestmark = pytest.mark.long

CPP_STUBS = Path(__file__).parent / "stubs" / "cpp"
FAMILIES = ("sam1", "sam2")
RUN_ALL = """
import { readFileSync, writeFileSync } from "node:fs";
const [code, folder, modules, asked] = process.argv.slice(2);
const { Sam } = await import(code);
const { default: ort } = await import(`${modules}/onnxruntime-node/dist/index.js`);
const model = await Sam.open(ort, (name) => `${folder}/${name}`);
for (const { picture, width, height, out, ...prompt } of JSON.parse(readFileSync(asked))) {
  const ppm = readFileSync(picture);
  await model.setImage({ data: new Uint8Array(ppm.subarray(ppm.length - width * height * 3)), width, height });
  writeFileSync(out, (await model.predict(prompt)).mask);
}
"""


@pytest.fixture(scope="module", params=FAMILIES)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("clients") / request.param, request.param)


@pytest.fixture(scope="module")
def asked(artifact: Path) -> list[Case]:
    return cases(artifact, artifact.with_name(f"{artifact.name}-pictures"))


def imported(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"client_{path.parents[1].name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_python(module: Any, folder: Path, case: Case) -> Any:
    model = module.Sam(folder)
    with Image.open(case.picture) as picture:
        model.set_image(picture)
    return model.predict(case.points, case.labels, case.box)[0]


def test_python_gives_the_predictors_masks(artifact: Path, asked: list[Case]) -> None:
    module = imported(code_of(artifact, "sam.py"))
    for case in asked:
        case.check(by_python(module, artifact, case))


@pytest.mark.parametrize("fixture", ["sam2_artifact", "all_masks_artifact"])
def test_python_takes_two_graphs_mask_inputs_and_all_masks(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    made: Path = request.getfixturevalue(fixture)
    module = imported(rewritten(made, "python", tmp_path, "onnx"))
    for case in cases(made, tmp_path / "pictures"):
        case.check(by_python(module, made, case))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("PADS_BOXES or not corners", "not PADS_BOXES or not corners"),
        ("scale = width / self.size[0]", "scale = width / self.size[1]"),
        ("if PADS:", "if not PADS:"),
        ("Image.Resampling.BILINEAR", "Image.Resampling.NEAREST"),
    ],
)
def test_a_wrong_rule_would_be_seen(artifact: Path, asked: list[Case], right: str, wrong: str, tmp_path: Path) -> None:
    text = code_of(artifact, "sam.py").read_text()
    assert right in text
    path = tmp_path / "code" / "sam.py"
    path.parent.mkdir()
    path.write_text(text.replace(right, wrong))
    module = imported(path)
    assert not all(np.array_equal(by_python(module, artifact, case), case.expected) for case in asked)


def test_python_is_a_program(artifact: Path, asked: list[Case], tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    given = [code_of(artifact, "sam.py"), asked[3].picture, mask, *asked[3].options()]
    command = [sys.executable, *map(str, given)]
    without = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=without, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "predicted IoU" in done.stdout
    with Image.open(mask) as written:
        asked[3].check(np.asarray(written) > 0)
    again = subprocess.run(command, capture_output=True, text=True, check=False, env=without, cwd=tmp_path)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)  # none is replaced, in one line
    assert "error: " in again.stderr


def test_python_refuses_what_is_no_picture_and_no_prompt(artifact: Path, asked: list[Case]) -> None:
    module = imported(code_of(artifact, "sam.py"))
    model = module.Sam(artifact)
    with pytest.raises(ValueError, match="call set_image"):
        model.predict([(1, 1)], [1])
    deep = Image.fromarray(np.zeros((20, 30), np.uint16))
    for picture in (deep, Image.new("F", (30, 20)), Image.new("I", (30, 20))):
        with pytest.raises(ValueError, match="8 bits a channel are needed"):
            model.set_image(picture)
    model.set_image(Image.new("RGBA", (30, 20)))
    for given, words in (
        (([(40, 1)], [1]), "outside"), (([(1, 1)], [2]), "labels"), (((), ()), "at least a point or a box"),
        (((), (), (9, 9, 3, 3)), "x0 < x1"), (([(1, float("nan"))], [1]), "outside"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            model.predict(*given)


def test_python_turns_a_picture_as_it_is_seen(artifact: Path, asked: list[Case], tmp_path: Path) -> None:
    module, case = imported(code_of(artifact, "sam.py")), asked[0]
    turned = tmp_path / "turned.png"
    with Image.open(case.picture) as picture:
        exif = picture.getexif()
        exif[0x0112] = 6  # seen after a turn to the right
        picture.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    case.check(by_python(module, artifact, Case(turned, case.points, case.labels, case.box, case.expected)))


def test_javascript_gives_the_predictors_masks(artifact: Path, asked: list[Case], tmp_path: Path) -> None:
    modules, out = tool("node_modules/onnxruntime-node").parent, tmp_path / "mask"
    prompts = [
        {
            "picture": str(case.picture.with_suffix(".ppm")), "width": case.expected.shape[1],
            "height": case.expected.shape[0], "out": f"{out}{i}", "points": case.points, "labels": case.labels,
            "box": case.box,
        }
        for i, case in enumerate(asked)
    ]  # fmt: skip
    driver, listed = tmp_path / "run.mjs", tmp_path / "asked.json"
    driver.write_text(RUN_ALL)
    listed.write_text(json.dumps(prompts))
    code = code_of(artifact, "sam.mjs")
    done = subprocess.run(
        ["node", driver, code, artifact, modules, listed], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for i, case in enumerate(asked):
        case.check((np.fromfile(f"{out}{i}", np.uint8) > 0).reshape(case.expected.shape))


def test_javascript_is_a_program(artifact: Path, asked: list[Case], tmp_path: Path) -> None:
    modules = tool("node_modules/sharp").parent
    home = tmp_path / "artifact"
    shutil.copytree(artifact, home)
    (home / "code" / "node_modules").symlink_to(modules)
    (home / "code" / "sam.mjs").rename(home / "code" / "my client.mjs")

    def run(*given: object) -> subprocess.CompletedProcess[str]:
        command = ["node", home / "code" / "my client.mjs", *given]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)

    mask, options = tmp_path / "mask.png", asked[3].options()
    done = run(asked[3].picture, mask, *options)
    assert done.returncode == 0, done.stderr
    with Image.open(mask) as written:
        asked[3].check(np.asarray(written) > 0)
    deep = tmp_path / "deep.png"
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(deep)
    for given, words in (
        ((asked[3].picture, mask, *options), "EEXIST"),
        ((deep, tmp_path / "b.png", "--point", "1,1"), "8 bits a channel"),
        ((asked[0].picture, tmp_path / "b.png", "--point", "9999,1"), "outside"),
        ((asked[0].picture, tmp_path / "b.png", "--point", "1"), "wants 2 numbers"),
        ((asked[0].picture, tmp_path / "b.png", "--point", "1,"), "wants 2 numbers"),
        ((asked[0].picture, tmp_path / "b.png", "--box", "1,1,5,5", "--box", "2,2,5,5"), "one --box"),
        ((asked[0].picture, tmp_path / "b.png", "--dot", "1,1"), "usage"),
    ):  # fmt: skip
        refused = run(*given)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: ")
        assert words in refused.stderr


@pytest.mark.parametrize("target", ["onnx", "trt"])
def test_cpp_compiles_against_declarations(artifact: Path, target: str, tmp_path: Path) -> None:
    """ONNX Runtime's and TensorRT's own headers are not on a registry: these declare what the client calls."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    compile_cpp(cpp_of(artifact, target, tmp_path))


def test_the_declarations_see_a_fault(artifact: Path, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    for target, right, wrong in (("onnx", "GetInputCount", "InputCount"), ("trt", "enqueueV3", "enqueueV2")):
        path = cpp_of(artifact, target, tmp_path)
        path.write_text(path.read_text().replace(right, wrong))
        with pytest.raises(subprocess.CalledProcessError):
            compile_cpp(path)


def cpp_of(artifact: Path, target: str, folder: Path) -> Path:
    if target == "onnx":
        return Path(shutil.copy(code_of(artifact, "sam.cpp"), folder / "sam.cpp"))
    return rewritten(artifact, "cpp", folder, target)


def compile_cpp(path: Path) -> None:
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    subprocess.run(["g++", *flags, "-I", CPP_STUBS, path], check=True, capture_output=True)
