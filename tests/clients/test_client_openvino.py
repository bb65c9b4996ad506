"""Clients of OpenVINO, picture to mask, beside the predictor: in Python, and in C++ with the wheel's library."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import openvino
import pytest
from client_cases import Case, cases, code_of, exported, read_pgm
from test_client_onnx import FAMILIES, by_python, imported

pytestmark = pytest.mark.long

HOME = Path(openvino.__path__[0])


@pytest.fixture(scope="module", params=FAMILIES)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("clients") / request.param, request.param, "openvino")


@pytest.fixture(scope="module")
def asked(artifact: Path) -> list[Case]:
    return cases(artifact, artifact.with_name(f"{artifact.name}-pictures"))


@pytest.fixture(scope="module")
def program(artifact: Path) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    built = artifact.with_name(f"{artifact.name}-program")
    [library] = HOME.glob("libs/libopenvino.so.*")
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", f"-I{HOME / 'include'}", f"-Wl,-rpath,{HOME / 'libs'}"]
    source = code_of(artifact, "sam.cpp")
    subprocess.run(["g++", *flags, source, library, "-o", built], check=True, capture_output=True)
    return built


def run(program: Path, *given: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, given)], capture_output=True, text=True, check=False)


def test_python_gives_the_predictors_masks(artifact: Path, asked: list[Case]) -> None:
    module = imported(code_of(artifact, "sam.py"))
    for case in asked:
        case.check(by_python(module, artifact, case))


def test_cpp_gives_the_predictors_masks(artifact: Path, asked: list[Case], program: Path, tmp_path: Path) -> None:
    for i, case in enumerate(asked):
        mask = tmp_path / f"{i}.pgm"
        done = run(program, artifact, case.picture.with_suffix(".ppm"), mask, *case.options())
        assert done.returncode == 0, done.stderr
        case.check(read_pgm(mask))


def test_cpp_refuses_what_is_no_picture_and_no_prompt(
    artifact: Path, asked: list[Case], program: Path, tmp_path: Path
) -> None:
    picture, mask = asked[0].picture.with_suffix(".ppm"), tmp_path / "mask.pgm"
    short, deep = tmp_path / "short.ppm", tmp_path / "deep.ppm"
    short.write_bytes(picture.read_bytes()[:-1])
    deep.write_bytes(b"P6\n1 1\n65535\n" + bytes(6))
    for given, words in (
        ((asked[0].picture, mask, "--point", "1,1"), "no binary PPM"),
        ((deep, mask, "--point", "1,1"), "no binary PPM"),
        ((short, mask, "--point", "1,1"), "ends early"),
        ((picture, mask, "--point", "1"), "not 2 numbers"),
        ((picture, mask, "--point", "1,2x"), "not 2 numbers"),
        ((picture, mask, "--point", "1,2,"), "not 2 numbers"),
        ((picture, mask, "--point", "1 2,3"), "not 2 numbers"),
        ((picture, mask, "--point", "999,1"), "outside"),
        ((picture, mask, "--box", "9,9,3,3"), "x0 < x1"),
        ((picture, mask, "--dot", "1,1"), "no option"),
        ((picture, short, "--point", "1,1"), "exists already"),
        ((picture, mask), "usage"),
    ):
        done = run(program, artifact, *given)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert words in done.stderr
    assert not mask.exists()
