"""Core ML artifacts of a toy decoder, and a runtime on a Mac that is none."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from fake_mac import FakeMac, Line, package
from fake_mac import fake_mac as fake_mac
from numpy.typing import NDArray

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.artifacts.store import Artifact
from samx.formats.coreml.package import DECODER, read_package
from samx.formats.coreml.program import load_program
from samx.models.session import Feed, Placement
from samx.models.spec import PADDED_POINT, sam1_spec
from samx.runtimes.coreml.runtime import CoreMLRuntime, open_artifact
from samx.runtimes.mil.evaluate import Evaluator

SPEC = sam1_spec(image_size=16)  # one cell of embedding, masks of 4 x 4
CHECKPOINT = CheckpointEntry("toy.pth", "sam1", hashlib.sha256(b"toy").hexdigest(), 3)
MANY = {"points_1": 1, "points_2": 2, "points_4": 4}
ON_ENGINE: list[Line] = [("const", None, None), ("ios18.conv", "ANE", 0.75), ("ios18.cast", "CPU", 0.25)]
ON_CPU: list[Line] = [("ios18.conv", "CPU", 0.75), ("ios18.cast", "CPU", 0.25), ("ios18.add", None, None)]


def toy_masks(image: NDArray[Any], coords: NDArray[Any], labels: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Compute what toy_program() computes: rows with the empty label count for nothing."""
    rows = (coords.sum(2) + labels) * (labels != PADDED_POINT)
    scores = rows.sum(1)[:, None] + np.arange(3, dtype=np.float32)
    masks = np.broadcast_to((scores + image.mean())[:, :, None, None], (len(coords), 3, 4, 4))
    return {"low_res_masks": masks, "iou_predictions": scores}


def toy_program(rows: int, prompts: int = 1) -> Any:
    """Make a program with a decoder's tensors, float16 at the border as an export has it."""
    mb, types = ct.converters.mil.Builder, ct.converters.mil.mil.types
    specs = [
        mb.TensorSpec((1, 256, 1, 1), types.fp16), mb.TensorSpec((prompts, rows, 2), types.fp32),
        mb.TensorSpec((prompts, rows), types.fp32),
    ]  # fmt: skip

    def decode(image_embeddings: Any, point_coords: Any, point_labels: Any) -> Any:
        real = mb.cast(x=mb.not_equal(x=point_labels, y=np.float32(PADDED_POINT)), dtype="fp32")
        sums = mb.add(x=mb.reduce_sum(x=point_coords, axes=[2]), y=point_labels)
        total = mb.reduce_sum(x=mb.mul(x=sums, y=real), axes=[1], keep_dims=True)
        scores = mb.add(x=total, y=np.arange(3, dtype=np.float32)[None])
        mean = mb.reduce_mean(x=mb.cast(x=image_embeddings, dtype="fp32"), axes=[1, 2, 3], keep_dims=True)
        cells = mb.add(x=mb.reshape(x=scores, shape=(prompts, 3, 1, 1)), y=mean)
        masks = mb.cast(x=mb.tile(x=cells, reps=(1, 1, 4, 4)), dtype="fp16", name="low_res_masks")
        return masks, mb.cast(x=scores, dtype="fp16", name="iou_predictions")

    return mb.program(input_specs=specs, opset_version=ct.target.iOS18)(decode)


def artifact(folder: Path, functions: Mapping[str, int], prompts: int = 1, /, **changes: Any) -> Artifact:
    """Write an artifact with one package of toy programs."""
    rows = sorted(functions.values())
    options = {
        "slots": True, "points": [rows[0], rows[0], rows[-1]], "prompts": [prompts] * 3, "ios": 18,
        "functions": dict(functions), "contract": "samx", **changes,
    }  # fmt: skip
    with staging(folder, overwrite=False) as directory:
        package(directory / DECODER, {name: toy_program(count, prompts) for name, count in functions.items()})
        (directory / DECODER / "Data/com.apple.CoreML/weights").rmdir()  # too small to have a file of their own
        files = [path for path in (directory / DECODER).rglob("*") if path.is_file()]
        roles = {path.relative_to(directory).as_posix(): "package" for path in files}
        seal(directory, Manifest("coreml", "fp16", SPEC, CHECKPOINT, options), roles)
    return Artifact.open(folder)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(tmp_path_factory.mktemp("coreml") / "many", MANY)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(tmp_path_factory.mktemp("coreml") / "single", {"main": 4})


def run_on(mac: FakeMac, found: Artifact) -> None:
    """Let the stand-in compute what the package says."""
    program = load_program(read_package(found, DECODER), "toy")

    def predict(function: str, feed: Mapping[str, Any]) -> dict[str, Any]:
        evaluate = Evaluator(program, function or program.default)
        assert all(type(value) is np.ndarray and value.dtype == np.float32 for value in feed.values())
        return evaluate({tensor.name: feed[tensor.name].astype(tensor.array_type) for tensor in evaluate.inputs})

    mac.predict = predict
    mac.plans = dict.fromkeys(program.functions, ON_ENGINE)


@pytest.fixture
def runtime(fake_mac: FakeMac, many: Artifact) -> CoreMLRuntime:
    run_on(fake_mac, many)
    opened = open_artifact(many)
    opened.set_image(image())
    return opened


def image(seed: int = 0) -> Feed:
    return {"image_embeddings": np.random.default_rng(seed).standard_normal((1, 256, 1, 1)).astype(np.float32)}


def prompts(n: int, points: int, seed: int = 0) -> Feed:
    random = np.random.default_rng(seed)
    coords = random.uniform(0, 16, (n, points, 2)).astype(np.float32)
    return {"point_coords": coords, "point_labels": random.choice([-1, 0, 1], (n, points)).astype(np.float32)}


def check(outputs: Mapping[str, NDArray[Any]], picture: Feed, feed: Feed) -> None:
    want = toy_masks(picture["image_embeddings"], feed["point_coords"], feed["point_labels"])
    assert list(outputs) == [tensor.name for tensor in SPEC.outputs]
    for name, value in want.items():
        assert outputs[name].dtype == np.float32
        np.testing.assert_allclose(outputs[name], value, rtol=2e-3, atol=2e-2)


def loaded(mac: FakeMac) -> list[Any]:
    return [entry[1:] for entry in mac.log if entry[0] == "load"]


def placed(runtime: CoreMLRuntime, *points: int) -> Placement:
    for count in points:
        runtime.decode(prompts(1, count))
    return runtime.placement()
