"""The graph that takes bytes normalises and pads as the encoder's upstream does, for one picture and for several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from toy_artifact import MANIFEST

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import EncoderEntry
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, UnavailableError
from samx.exporters import onnx as exporter
from samx.formats.onnx import ELEMENT_TYPES
from samx.models.encoders.base import Encoder
from samx.models.encoders.picture import PictureGraph, picture_graph
from samx.models.shape_range import ShapeRange
from samx.models.spec import PIXELS, DecoderSpec, sam1_spec, sam2_spec
from samx.picture_encoder import encode_levels, encoder_inputs
from samx.processing.embeddings import encoder_id
from samx.processing.frames import Frame
from samx.processing.images import RgbArray, normalised, to_frame
from samx.runtimes import onnxruntime

SIZE = 128
SAM1, SAM2 = sam1_spec(image_size=SIZE), sam2_spec(image_size=SIZE)
SHAPES = ((40, 100), (100, 40), (60, 60), (3, 90))  # wide, tall, square, thin
Arrays = dict[str, NDArray[Any]]


class Pixels(Encoder):
    """Return the pixels that came."""

    picture_px = SIZE

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return (pixels,)


class Toy(Encoder):
    """Return features of the right shapes."""

    def __init__(self, spec: DecoderSpec, picture_px: int = SIZE) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.picture_px = picture_px
        self.sides = [int(tensor.shape[-1]) for tensor in spec.image_inputs]
        self.convs = nn.ModuleList(nn.Conv2d(3, int(tensor.shape[1]), 1) for tensor in spec.image_inputs)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        strides = [pixels.shape[-1] // side for side in self.sides]
        return tuple(
            conv(F.avg_pool2d(pixels, stride) if stride else pixels)
            for conv, stride in zip(self.convs, strides, strict=True)
        )


def pictures() -> list[RgbArray]:
    random = np.random.default_rng(0)
    return [random.integers(20, 200, (*shape, 3), dtype=np.uint8) for shape in SHAPES]


def entry(most: int = 1, least: int | None = None, picture_px: int = SIZE) -> EncoderEntry:
    return EncoderEntry("toy", picture_px, "fp32", ShapeRange(least or most, most, most))


def spoilt(inputs: Arrays, value: int) -> Arrays:
    """Put something else than zeros where no picture is."""
    if "valid" not in inputs:
        return inputs
    changed = np.full_like(inputs["picture"], value)
    for place, (height, width) in enumerate(inputs["valid"]):
        changed[place, :height, :width] = inputs["picture"][place, :height, :width]
    return {**inputs, "picture": changed}


@pytest.mark.parametrize("kind", [*PIXELS, None])
@pytest.mark.parametrize("frame", ["pad", "stretch"])
def test_bytes_become_what_the_encoder_takes(kind: Any, frame: Any) -> None:
    spec = replace(SAM1, pixels=kind, frame=frame)  # of a family that resizes to 8 bits, as to_frame() does then
    graph = PictureGraph(Pixels(), spec)
    given: Arrays = dict(encoder_inputs(pictures(), spec, entry(len(SHAPES))))
    for inputs in (given, spoilt(given, 0), spoilt(given, 255)):
        (found,) = graph(*map(torch.from_numpy, inputs.values()))
        for place, picture in enumerate(pictures()):
            area = Frame.of(spec, picture.shape[1], picture.shape[0])
            expected = normalised(to_frame(picture, area), area, kind or "unit")
            np.testing.assert_allclose(found[place : place + 1].numpy(), expected, atol=2e-6)


def test_a_picture_of_one_value_has_no_range() -> None:
    spec = replace(SAM1, pixels="minmax")
    inputs = encoder_inputs([np.full((40, 100, 3), 77, np.uint8)], spec, entry())
    (found,) = PictureGraph(Pixels(), spec)(*(torch.from_numpy(value) for value in inputs.values()))
    assert (found == 0).all()


def test_a_smaller_picture_than_the_frame_is_resized_to_its_own_size() -> None:
    inputs = encoder_inputs(pictures(), SAM1, entry(len(SHAPES), picture_px=64))
    assert inputs["picture"].shape == (len(SHAPES), 64, 64, 3)
    assert inputs["valid"].tolist() == [[26, 64], [64, 26], [64, 64], [2, 64]]
    assert inputs["picture"][0, 26:].max() == 0
    assert encoder_inputs(pictures(), SAM2, entry(len(SHAPES), picture_px=64)).keys() == {"picture"}


@pytest.mark.parametrize("spec", [SAM1, SAM2], ids=["pad", "stretch"])
@pytest.mark.parametrize("allowed", ["1", "3", "1:2:4", "2:2:3"])
def test_the_exported_graph_encodes_as_many_as_it_is_asked(spec: DecoderSpec, allowed: str, tmp_path: Path) -> None:
    encoder, batch = Toy(spec).eval().requires_grad_(False), ShapeRange.parse(allowed, "pictures")
    graph = picture_graph(encoder, spec, batch)
    exporter.write_onnx([graph], tmp_path, simplify=False)
    session = ort.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    seen: list[int] = []

    def run(inputs: Any) -> Any:
        seen.append(len(inputs["picture"]))
        names = [tensor.name for tensor in spec.image_inputs]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    found = list(encode_levels(run, spec, EncoderEntry("toy", SIZE, "fp32", batch), pictures()))
    assert len(found) == len(SHAPES)
    assert set(seen) <= set(range(batch.min, batch.max + 1))
    assert sum(seen) >= len(SHAPES)
    module = PictureGraph(encoder, spec)
    for picture, features in zip(pictures(), found, strict=True):
        inputs = encoder_inputs([picture], spec, entry())
        expected = module(*(torch.from_numpy(value) for value in inputs.values()))
        for tensor, value in zip(spec.image_inputs, expected, strict=True):
            assert features[tensor.name].shape == tensor.shape
            np.testing.assert_allclose(features[tensor.name], value.numpy(), atol=1e-5)


def test_the_graph_says_its_types(tmp_path: Path) -> None:
    import onnx

    exporter.write_onnx([picture_graph(Toy(SAM1), SAM1)], tmp_path, simplify=False)
    model = onnx.load(tmp_path / "encoder.onnx")
    found = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    assert found == {"picture": ELEMENT_TYPES["uint8"], "valid": ELEMENT_TYPES["int32"]}


# Weights that are too large for a graph's own file


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write an artifact whose encoder's weights lie beside its graph."""
    monkeypatch.setattr(exporter, "MOST_INSIDE_BYTES", 1000)
    with staging(tmp_path / "out", overwrite=False) as directory:
        written = exporter.write_onnx([picture_graph(Toy(SAM1).requires_grad_(False), SAM1)], directory, simplify=False)
        assert written.files == {"encoder.onnx": "encoder", "encoder.onnx.data": "encoder_weights"}
        seal(directory, replace(MANIFEST, spec=SAM1), written.files)
    return tmp_path / "out"


def test_weights_beside_a_graph_are_verified_and_used(beside: Path) -> None:
    artifact = Artifact.open(beside)
    run = onnxruntime.open_encoder(artifact)
    inputs = encoder_inputs(pictures()[:1], SAM1, entry())
    expected = PictureGraph(Toy(SAM1), SAM1)(*(torch.from_numpy(value) for value in inputs.values()))
    found = run(inputs)
    np.testing.assert_allclose(found["image_embeddings"], expected[0].detach().numpy(), atol=1e-5)
    before = encoder_id(artifact.manifest)
    assert before not in {file.sha256 for file in artifact.manifest.files.values()}  # it stands for both
    with (beside / "encoder.onnx.data").open("r+b") as file:
        file.write(b"other")
    with pytest.raises(ArtifactError, match=r"encoder\.onnx\.data was altered"):
        onnxruntime.open_encoder(artifact)
    with pytest.raises(ArtifactError, match=r"encoder\.onnx\.data was altered"):
        Artifact.open(beside)


def test_an_onnx_runtime_without_weights_from_memory_is_told(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ort.SessionOptions, "add_external_initializers_from_files_in_memory")
    with pytest.raises(UnavailableError, match="takes no weights beside a graph"):
        onnxruntime.open_encoder(Artifact.open(beside))
