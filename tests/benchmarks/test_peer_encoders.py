"""Others' image encoders hold the checkpoint's weights and compute what ours does; or they are not measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision_operators
import upstream_encoders as upstream
from bench_toys import TimedSession, toy_subject
from fake_candidates import FakeClock
from torch import nn

from samx.artifacts.manifest import EncoderEntry
from samx.benchmarks import photo
from samx.benchmarks.contenders import Setting, encoders, huggingface, meta, samexporter
from samx.benchmarks.subjects import Subject
from samx.errors import CheckpointError, UnavailableError
from samx.models.checkpoint import load_checkpoint
from samx.models.encoders import hiera
from samx.models.encoders.load import find_encoder
from samx.models.encoders.picture import picture_graph
from samx.models.shape_range import ShapeRange
from samx.models.weight_files import open_weights
from samx.picture_encoder import RunLevels

SIZE_PX, HIERA_PX = 128, 1024  # what the checkpoints are of
TOLERANCE = 1e-5


@pytest.fixture(scope="module", autouse=True)
def _setting() -> Any:
    torchvision_operators.define()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hiera, "LAYOUTS", {**hiera.LAYOUTS, upstream.SMALL_HIERA: upstream.SMALL_LAYOUT})
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Setting]:
    states = {
        "vit": upstream.meta_vit_state(upstream.meta_vit(SIZE_PX)),
        "hiera": upstream.meta_hiera_state(upstream.meta_hiera()),
    }
    made = {}
    for name, state in states.items():
        path = tmp_path_factory.mktemp("checkpoints") / f"{name}.pth"
        torch.save(state, path)
        made[name] = Setting(path, load_checkpoint(path))
    return made


def taken(setting: Setting) -> dict[str, Any]:
    size, rng = setting.loaded.spec.image_size, np.random.default_rng(0)
    picture = rng.integers(0, 256, (1, size, size, 3)).astype(setting.loaded.spec.picture_type)
    valid = {"valid": np.array([[size, size * 3 // 4]], np.int32)} if setting.loaded.spec.keeps_aspect else {}
    return {"picture": picture, **valid}


def ours(setting: Setting) -> RunLevels:
    found = find_encoder(open_weights(setting.checkpoint), setting.loaded.spec).encoder
    assert found is not None
    graph = picture_graph(found.module, setting.loaded.spec)

    def run(given: Any) -> Any:
        outputs = graph.module(*(torch.from_numpy(given[tensor.name]) for tensor in graph.inputs))
        return {tensor.name: value.numpy() for tensor, value in zip(graph.outputs, outputs, strict=True)}

    return run


class TheirSam2(nn.Module):
    """What samexporter's module returns, fine features first."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fine, coarse, embedding = self.model.image_encoder(pixels)["backbone_fpn"]
        decoder = self.model.sam_mask_decoder
        return (
            decoder["conv_s0"](fine),
            decoder["conv_s1"](coarse),
            embedding + self.model.no_mem_embed.reshape(1, -1, 1, 1),
        )


class TheirSam1(nn.Module):
    def __init__(self, model: Any, use_preprocess: bool) -> None:
        super().__init__()
        assert not use_preprocess
        self.image_encoder = model.image_encoder

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.image_encoder(pixels)
        return found


@pytest.fixture
def _script(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = SimpleNamespace(ImageEncoderOnnxModel=TheirSam1, SAM2ImageEncoder=TheirSam2)
    monkeypatch.setattr(samexporter, "_script", lambda name: scripts)


PEERS: dict[str, tuple[str, encoders.Build]] = {
    "meta": ("vit", meta.build_encoder),
    "meta, ONNX": ("vit", encoders.onnx_of(meta.build_encoder)),
    "huggingface, SAM": ("vit", huggingface.build_encoder),
    "huggingface, SAM 2": ("hiera", huggingface.build_encoder),
    "samexporter, SAM": ("vit", samexporter.build_encoder),
    "samexporter, SAM 2": ("hiera", samexporter.build_encoder),
}


@pytest.mark.usefixtures("_script")
@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_computes_what_our_encoder_computes(settings: dict[str, Setting], peer: str) -> None:
    name, build = PEERS[peer]
    setting = settings[name]
    asked = taken(setting)
    expected, found = ours(setting)(asked), encoders.opened(setting, build)(asked)
    assert expected.keys() == found.keys()
    for output, value in expected.items():
        assert np.abs(found[output] - value).max() <= TOLERANCE * np.abs(value).max(), output


def test_a_peer_without_the_architecture_or_the_size_is_not_measured(settings: dict[str, Setting]) -> None:
    with pytest.raises(UnavailableError, match="Meta's package has the ViT alone: found SAM 2's Hiera"):
        encoders.opened(settings["hiera"], meta.build_encoder)
    larger = Setting(settings["vit"].checkpoint, load_checkpoint(settings["vit"].checkpoint, image_size=256))
    with pytest.raises(UnavailableError, match="the checkpoint's own size: found 256, expected 128"):
        encoders.opened(larger, meta.build_encoder)


def test_a_weight_without_a_place_is_refused(settings: dict[str, Setting]) -> None:
    _, weights = encoders.read(settings["vit"])
    linear = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="other weights: found bias"):
        encoders.fill(linear, {"weight": torch.ones(2, 2)}, {"weight": "weight", "bias": "bias"})
    with pytest.raises(CheckpointError, match="other weights: found more"):
        encoders.fill(linear, {"weight": torch.ones(2, 2), "more": torch.ones(1)}, {"weight": "weight"})
    assert weights


def test_a_peer_that_computes_something_else_is_not_measured(settings: dict[str, Setting]) -> None:
    setting = settings["vit"]
    run = ours(setting)
    session: Any = SimpleNamespace(spec=setting.loaded.spec)
    entry = EncoderEntry("vit", SIZE_PX, "fp32", ShapeRange(1, 1, 1))
    truth, same = (photo.Way(session, entry, lambda: run) for _ in range(2))
    assert photo.difference(same, truth) is None

    def off(given: Any) -> Any:
        return {name: value * np.float32(1.001) for name, value in run(given).items()}

    said = photo.difference(photo.Way(session, entry, lambda: off), truth)
    assert said == "its features are off by 0.001 (at most 2e-05)"


def test_a_peer_s_picture_has_the_decoder_s_frame() -> None:
    peer = Subject(TimedSession(FakeClock(), "peer", 20), toy_subject("peer"), encoder=lambda: lambda given: {})
    assert photo.problem(peer, "cpu") is None
    assert photo.way_of(peer, "cpu", 1).entry.picture_px == peer.session.spec.image_size
