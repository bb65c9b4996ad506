"""The comparison with other people's decoders: who takes part, that all agree, and what the table says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toys import toy_checkpoint

from samx.benchmarks.agreement import Parts
from samx.benchmarks.boxes import box_feed
from samx.benchmarks.compare import Group, agree, chosen
from samx.benchmarks.compare_decoders import DECODERS, Boxes, Call, points_of
from samx.benchmarks.compare_table import markdown
from samx.benchmarks.interleave import Samples
from samx.benchmarks.peers import huggingface, require_peer
from samx.benchmarks.peers.weights import fill
from samx.benchmarks.summary import by_name, speedup
from samx.decoders.checkpoint import load_checkpoint
from samx.decoders.spec import sam1_spec
from samx.demo import demo_checkpoint
from samx.errors import CheckpointError, ParityError, UnavailableError
from samx.exporters.encoder import demo_images
from samx.runtimes.torch import reference_session

SPEC = sam1_spec()


def decoder(shift: float = 0.0, masks: int = 3) -> Call:
    """Answer every box with the same logits, shifted."""

    def call(boxes: Boxes) -> Parts:
        n = len(boxes)
        return [[np.full((n, masks, 4, 4), 1 + shift, np.float32), np.full((n, masks), 0.5, np.float32)]]

    return call


@pytest.mark.parametrize(("family", "baseline"), [("sam1", "Meta's ONNX export"), ("sam2", "samexporter")])
def test_the_baseline_comes_first_and_names_are_unique(family: str, baseline: str) -> None:
    names = [entry.name for entry in chosen(family, compiled=True)]
    assert names[0] == baseline
    assert len(set(names)) == len(names)


def test_what_takes_minutes_to_compile_can_be_left_out() -> None:
    left_out = {entry.name for entry in DECODERS} - {entry.name for entry in chosen("sam1", compiled=False)}
    assert left_out == {"Hugging Face, compiled", "samx, PyTorch compiled"}


def test_decoders_that_agree_are_measured() -> None:
    errors = agree({"theirs": decoder(), "ours": decoder(1e-4)}, SPEC)
    assert errors["theirs"] == 0
    assert errors["ours"] == pytest.approx(1e-4, rel=0.1)


@pytest.mark.parametrize("other", [decoder(0.1), decoder(float("nan")), decoder(masks=4)])
def test_one_that_computes_something_else_stops_the_comparison(other: Call) -> None:
    with pytest.raises(ParityError, match="ours"):
        agree({"theirs": decoder(), "ours": other}, SPEC)


def test_sam2_gets_its_padding_point() -> None:
    boxes = box_feed(SPEC, 0, 2)["point_coords"]
    padded, plain = points_of(boxes, padded=True), points_of(boxes, padded=False)
    assert padded["point_labels"].tolist() == [[2, 3, -1]] * 2
    assert plain["point_labels"].tolist() == [[2, 3]] * 2
    assert padded["point_coords"].shape == (2, 3, 2)


@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_hugging_face_computes_what_the_reference_computes(family: str) -> None:
    checkpoint = demo_checkpoint(family)
    loaded = load_checkpoint(checkpoint)
    spec = replace(loaded.spec, masks="multimask")
    image = demo_images(checkpoint, spec)[0]
    boxes = box_feed(spec, 0, 1)["point_coords"]
    masks, scores = huggingface.build(loaded, image)(torch.from_numpy(boxes.reshape(1, 4)))
    reference = reference_session(loaded, spec)
    reference.set_image(image)
    expected = reference.decode(points_of(boxes, padded=family == "sam2"))
    np.testing.assert_allclose(masks.numpy(), expected["low_res_masks"], atol=1e-3)
    np.testing.assert_allclose(scores.numpy(), expected["iou_predictions"], atol=1e-4)


def test_a_weight_that_a_peer_does_not_take_is_an_error() -> None:
    loaded = toy_checkpoint(SPEC)
    with pytest.raises(CheckpointError, match="other weights"):
        fill(torch.nn.Module(), loaded)


def test_a_peer_that_is_not_there_names_the_command() -> None:
    with pytest.raises(UnavailableError, match="make compare"):
        require_peer("a_package_that_nobody_has")


def report(load: str = "0.00") -> dict[str, Any]:
    samples = tuple(
        Samples(name, 8, tuple(int(ms * 8e6) for ms in times))
        for name, times in {"theirs": [40.0] * 10, "ours": [10.0] * 9 + [11.0], "shaky": [10.0, 30.0] * 5}.items()
    )
    named = by_name(samples)
    ratios = {name: speedup(named["theirs"], named[name]) for name in ("ours", "shaky")}
    groups = [Group("sam1", 1, 8, "theirs", samples, ratios), Group("sam1", 2, 8, "theirs", samples, ratios)]
    environment = {"cpu": "A CPU", "isa": "avx2", "platform": "Linux", "load_1min": load, "cpus_usable": "2"}
    return {
        "created": "2026-01-01T00:00:00+00:00", "environment": environment, "versions": {"onnxruntime": "1.0"},
        "errors": {"sam1": {"theirs": 0.0, "ours": 1e-5, "shaky": 2e-5}}, "groups": [one.to_json() for one in groups],
    }  # fmt: skip


def test_the_table_holds_times_ratios_and_what_was_compared() -> None:
    text = markdown(report())
    assert "**sam1, 1 thread**" in text
    assert "**sam1, 2 threads**" in text
    assert "| theirs | 40.0 | 0.0e+00 |" in text
    assert "| ours | 10.0, 4.00 (4.00 to 4.00) | 1.0e-05 |" in text
    assert "| shaky | 20.0!, 2.00" in text
    assert "onnxruntime 1.0" in text
    assert "busy" not in text


def test_a_busy_machine_is_told() -> None:
    assert "The machine was busy" in markdown(report(load="1.90"))
