"""Image encoders as Core ML packages compute what they do in PyTorch; what is changed in one of them shows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "encoders"))
import mobile_encoders
import test_encoder_graphs as small
from test_mobile_encoders import built

from samx.artifacts.manifest import EncoderEntry
from samx.demo import demo_checkpoint
from samx.demo.model import demo_encoder
from samx.errors import ArtifactError, UsageError
from samx.exporters.coreml.encoder import check_pictures, write_encoder_package
from samx.formats.coreml.package import package_from_directory
from samx.formats.coreml.program import Program, load_program, operations, parse_model
from samx.models.encoders import attention, hiera, vit
from samx.models.encoders.base import Encoder
from samx.models.encoders.picture import picture_graph
from samx.models.graph import Graph
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.picture_encoder import encoder_inputs
from samx.runtimes.mil.evaluate import Evaluator
from samx.validators.pictures import package_pictures

pytestmark = pytest.mark.long

MOST_AXES = 5  # that Core ML takes
BOUNDS = {"fp32": 1e-5, "fp16": 5e-3}


def built_vit(monkeypatch: pytest.MonkeyPatch) -> tuple[Encoder, DecoderSpec]:
    monkeypatch.setattr(vit, "QUERIES", 128)
    return small.small_vit(), sam1_spec(image_size=small.SIZE_PX, width=32)


def built_hiera(monkeypatch: pytest.MonkeyPatch) -> tuple[Encoder, DecoderSpec]:
    monkeypatch.setattr(hiera, "LAYOUTS", {**hiera.LAYOUTS, small.HIERA: small.LAYOUT})
    monkeypatch.setattr(attention.attended, "__defaults__", (128, None))
    return small.small_hiera(), sam2_spec(image_size=small.SIZE_PX)


def built_demo(monkeypatch: pytest.MonkeyPatch) -> tuple[Encoder, DecoderSpec]:
    spec = sam1_spec(image_size=256)
    return demo_encoder(demo_checkpoint("sam1"), spec).module, spec


def mobile(name: str) -> Callable[[pytest.MonkeyPatch], tuple[Encoder, DecoderSpec]]:
    def build(monkeypatch: pytest.MonkeyPatch) -> tuple[Encoder, DecoderSpec]:
        case = mobile_encoders.CASES[name]()
        return built(case, monkeypatch), case.spec

    return build


BUILDERS = {
    "demo": built_demo, "ViT": built_vit, "Hiera": built_hiera,
    **{name: mobile(name) for name in ("MobileSAM", "EdgeSAM", "EdgeTAM", "EfficientViT-SAM L")},
}  # fmt: skip


def feed_of(graph: Graph, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Return levels, and a valid part that is no square."""
    count, side, *_ = map(int, graph.inputs[0].shape)
    picture = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.float32)
    valid = np.array([[side // 2 + 3, side]] * count, np.int32)
    return {"picture": picture, "valid": valid} if len(graph.inputs) > 1 else {"picture": picture}


def package(graph: Graph, path: Path, precision: str = "fp32", image: bool = False) -> Program:
    path.mkdir(exist_ok=True)
    written = write_encoder_package(graph, path, ios=17, precision=precision, image=image)
    return load_program(package_from_directory(written), "here")


def errors(program: Program, graph: Graph, image: bool = False) -> list[float]:
    feed = feed_of(graph)
    with torch.inference_mode():
        wanted = graph.module(*(torch.from_numpy(value) for value in feed.values()))
    if image:
        feed["picture"] = np.ascontiguousarray(feed["picture"].transpose(0, 3, 1, 2))
    found = Evaluator(program, "main")(feed)
    pairs = zip(found.values(), wanted, strict=True)
    return [float(np.abs(one.astype(np.float32) - w.numpy()).max() / np.abs(w.numpy()).max()) for one, w in pairs]


# Of the mobile ones two each time, one that has the GELU of hyperbolic tangents; the others are slow.
QUICK = ("demo", "ViT", "Hiera", "MobileSAM", "EfficientViT-SAM L")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS]
)
def test_a_package_computes_what_the_module_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = picture_graph(*BUILDERS[name](monkeypatch))
    program = package(graph, tmp_path / "full")
    axes = [len(var.shape) for op in operations(program.function("main")) for var in op.outputs]
    assert max(axes) <= MOST_AXES
    assert [tensor.name for tensor in program.outputs("main")] == [tensor.name for tensor in graph.outputs]
    assert max(errors(program, graph)) <= BOUNDS["fp32"]
    half = package(graph, tmp_path / "half", "fp16")
    assert {tensor.dtype for tensor in half.outputs("main")} == {"fp16"}
    assert BOUNDS["fp32"] < max(errors(half, graph)) <= BOUNDS["fp16"]


def test_an_image_comes_channels_first_and_planted_faults_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = picture_graph(*BUILDERS["MobileSAM"](monkeypatch))
    program = package(graph, tmp_path, image=True)
    side = graph.inputs[0].shape[1]
    assert program.inputs("main")[0].shape == (1, 3, side, side)
    assert max(errors(program, graph, image=True)) <= BOUNDS["fp32"]
    files = package_from_directory(tmp_path / "encoder.mlpackage")
    name = f"{files.weights_folder}/weight.bin"
    weights = bytearray(files.files[name])
    middle = len(weights) // 2
    weights[middle : middle + 256] = bytes(255 - byte & 0x3F for byte in weights[middle : middle + 256])
    changed = load_program(replace(files, files={**files.files, name: bytes(weights)}), "here")
    assert max(errors(changed, graph, image=True)) > BOUNDS["fp32"]
    spec = parse_model(files.model, "a test")
    spec.description.input[0].type.imageType.colorSpace = spec.description.input[0].type.imageType.BGR
    swapped = {**files.files, files.model_path: spec.SerializeToString()}
    with pytest.raises(ArtifactError, match=r"described wrongly: found picture .* BGR"):
        load_program(replace(files, files=swapped), "here")


@pytest.mark.parametrize(
    ("pictures", "image", "words"),
    [(ShapeRange(1, 2, 4), False, "a Core ML package has fixed shapes"), (ShapeRange(2, 2, 2), True, "one picture")],
)
def test_pictures_that_no_package_takes_are_refused(pictures: ShapeRange, image: bool, words: str) -> None:
    spec = sam1_spec(image_size=256)
    graph = picture_graph(demo_encoder(demo_checkpoint("sam1"), spec).module, spec, pictures)
    with pytest.raises(UsageError, match=words):
        check_pictures(graph, image, "fp16")


def test_an_image_of_8_bits_is_refused_in_float32_where_levels_are_numbers_and_fits_float16() -> None:
    """The cause is measured: what rounding alone does to features lies between the bounds of the two precisions."""
    spec = sam2_spec(image_size=256)
    graph = picture_graph(demo_encoder(demo_checkpoint("sam2"), spec).module, spec)
    with pytest.raises(UsageError, match=r"rounds levels to 8 bits.*found an encoder in fp32, expected one in fp16"):
        check_pictures(graph, True, "fp32")
    check_pictures(graph, True, "fp16")
    check_pictures(graph, False, "fp32")
    (_, photo), *_ = package_pictures(256)
    entry = EncoderEntry("demo", 256, "fp16", ShapeRange(1, 1, 1))
    levels = encoder_inputs([photo], spec, entry)["picture"]
    with torch.inference_mode():
        right, rounded = (graph.module(torch.from_numpy(one)) for one in (levels, np.rint(levels)))
    costs = [float((a - b).norm() / b.norm()) for a, b in zip(rounded, right, strict=True)]
    assert 100 * BOUNDS["fp32"] < min(costs) <= max(costs) < BOUNDS["fp16"]
