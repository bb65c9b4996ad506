"""Core ML's own way of opening an image encoder, on a Mac that is none: the MIL evaluator predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fake_mac import FakeMac
from fake_mac import fake_mac as fake_mac
from PIL import Image
from toy_artifact import MANIFEST

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import EncoderEntry
from samx.artifacts.store import Artifact
from samx.demo import demo_checkpoint
from samx.demo.model import demo_encoder
from samx.errors import ArtifactError, UnavailableError, UsageError
from samx.exporters.coreml.encoder import write_encoder_package
from samx.models.encoders.picture import picture_graph
from samx.models.graph import Graph
from samx.models.shape_range import ShapeRange
from samx.models.spec import sam1_spec
from samx.picture_encoder import encoder_inputs
from samx.runtimes.coreml.packages import open_encoder_package
from samx.runtimes.coreml.runtime import open_encoder
from samx.runtimes.mil.evaluate import Evaluator

SPEC = sam1_spec(image_size=256)
ENTRY = EncoderEntry("demo", SPEC.image_size, "fp32", ShapeRange(1, 1, 1))
FP32 = 1e-5  # of the largest feature
Made = tuple[Artifact, Graph]


@pytest.fixture(scope="module", params=[False, True], ids=["array", "image"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Export the demo's encoder, taking an array of levels or an image of Core ML's."""
    graph, path = picture_graph(demo_encoder(demo_checkpoint("sam1"), SPEC).module, SPEC), tmp_path_factory.mktemp("c")
    with staging(path / "out", overwrite=False) as directory:
        package = write_encoder_package(graph, directory, ios=17, precision="fp32", image=request.param)
        files = [file.relative_to(directory).as_posix() for file in package.rglob("*") if file.is_file()]
        manifest = replace(MANIFEST, target="coreml", spec=SPEC, options={"encoder": ENTRY.to_json()})
        seal(directory, manifest, dict.fromkeys(files, "encoder"))
    return Artifact.open(path / "out"), graph


def evaluated(artifact: Artifact, seen: list[Any]) -> Callable[[str, Mapping[str, Any]], dict[str, Any]]:
    """Return what predicts as Core ML does: an image comes channels first to the program."""
    evaluator = Evaluator(open_encoder_package(artifact).program, "main")

    def predict(function: str, feed: Mapping[str, Any]) -> dict[str, Any]:
        picture = feed["picture"]
        seen.append(picture)
        if isinstance(picture, Image.Image):
            picture = np.ascontiguousarray(np.asarray(picture, np.float32).transpose(2, 0, 1)[None])
        return evaluator({**feed, "picture": picture})

    return predict


def inputs() -> dict[str, Any]:
    picture = np.random.default_rng(3).integers(0, 256, (150, 240, 3), np.uint8)
    return encoder_inputs([picture], SPEC, ENTRY)


def test_the_demo_encoder_is_opened_and_computes_what_it_does_in_pytorch(made: Made, fake_mac: FakeMac) -> None:
    artifact, graph = made
    seen: list[Any] = []
    fake_mac.predict = evaluated(artifact, seen)
    encode = open_encoder(artifact, "cpu+ane")
    with torch.inference_mode():
        wanted = graph.module(*(torch.from_numpy(value) for value in inputs().values()))
    for _ in range(2):
        found = encode(inputs())
        assert list(found) == [tensor.name for tensor in SPEC.image_inputs]
        for value, right in zip(found.values(), wanted, strict=True):
            assert value.dtype == np.float32
            assert np.abs(value - right.numpy()).max() <= FP32 * float(right.abs().max())
    loads = [entry for entry in fake_mac.log if entry[0] == "load"]
    assert loads == [("load", "CPU_AND_NE", "")]  # once, on the units asked for; a package of one function has no name
    image = open_encoder_package(artifact).takes_image
    assert {isinstance(picture, Image.Image) for picture in seen} == {image}
    if image:
        assert (seen[0].mode, seen[0].size) == ("RGB", (SPEC.image_size,) * 2)
        np.testing.assert_array_equal(np.asarray(seen[0]), inputs()["picture"][0])


def test_what_a_mac_refuses_is_said(made: Made, fake_mac: FakeMac) -> None:
    artifact, _ = made
    with pytest.raises(UsageError, match="takes no number of threads"):
        open_encoder(artifact, threads=2)
    with pytest.raises(UnavailableError, match="no such compute units: found 'cuda'"):
        open_encoder(artifact, "cuda")
    encode = open_encoder(artifact)
    fake_mac.fault = RuntimeError("planted: error compiling model")
    with pytest.raises(ArtifactError, match=r"does not load function main: found .*planted"):
        encode(inputs())


def test_a_package_of_another_size_is_refused(made: Made, fake_mac: FakeMac) -> None:
    artifact, _ = made
    entry = replace(ENTRY, picture_px=128)
    other = Artifact(artifact.path, replace(artifact.manifest, options={"encoder": entry.to_json()}))
    with pytest.raises(ArtifactError, match="takes other tensors than the manifest says"):
        open_encoder(other)
