"""The comparison with other people's decoders: who takes part, that all agree, and what the table says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toys import toy_checkpoint

from samx import registry
from samx.benchmarks.agreement import Parts
from samx.benchmarks.bench_table import comparison_markdown
from samx.benchmarks.contenders import fill, huggingface, require_peer
from samx.benchmarks.interleave import Samples
from samx.benchmarks.scenarios import MIN_SIDE_PX, box_feed, object_boxes
from samx.commands import compare_decoders
from samx.commands.compare import agree, agree_in_masks, chosen, summary
from samx.commands.compare_decoders import DECODERS, Boxes, Call, points_of
from samx.demo import demo_checkpoint
from samx.demo.model import demo_images
from samx.errors import CheckpointError, ParityError, UnavailableError
from samx.models.checkpoint import load_checkpoint
from samx.models.spec import sam1_spec
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


def masked(flipped: float) -> Call:
    """Answer every box with masks of which a share of the pixels is another, and with logits of another size."""

    def call(boxes: Boxes) -> Parts:
        logits = np.full((len(boxes), 3, 100, 1), 7.0, np.float32)
        logits[:, :, : round(flipped * 100)] *= -1
        return [[logits, np.full((len(boxes), 3), 0.5, np.float32)]]

    return call


def test_fewer_bits_are_compared_in_masks() -> None:
    calls = {"theirs": decoder(), "float": decoder(9.0), "bits": masked(0.01)}
    assert agree_in_masks({**calls, "theirs": masked(0.0)}, {"bits"}) == {"bits": pytest.approx(0.99)}
    assert agree_in_masks(calls, set()) == {}


@pytest.mark.parametrize("other", [masked(0.03), masked(1.0)])
def test_fewer_bits_with_other_masks_stop_the_comparison(other: Call) -> None:
    with pytest.raises(ParityError, match=r"bits: masks differ from the peer's: found mean IoU 0\..*, expected 0.98"):
        agree_in_masks({"theirs": masked(0.0), "bits": other}, {"bits"})


def test_masks_of_nothing_that_can_be_compared_stop_the_comparison() -> None:
    with pytest.raises(ParityError, match=r"mean IoU 0\.0000"):
        agree_in_masks({"theirs": decoder(), "bits": decoder(float("nan"))}, {"bits"})


def test_only_what_has_fewer_bits_is_excused_from_equal_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    rounding = replace(
        registry.BACKENDS[0], title="Toy", precisions=dict.fromkeys(("fp32", "fp16", "bf16", "int8"), "")
    )
    monkeypatch.setattr(compare_decoders, "BACKENDS", (registry.BACKENDS[0], rounding))
    found = {entry.name: entry.rounded for entry in compare_decoders.split_elsewhere()}
    assert found == {"samx, Toy": False, "samx, Toy bfloat16": True, "samx, Toy INT8": True}
    assert all(entry.name.startswith("samx, ") for entry in DECODERS if entry.rounded)


def test_objects_are_boxed_by_corners_in_order() -> None:
    boxes = object_boxes(900_001, (256, 256))
    assert len(boxes) > 4
    assert (boxes[:, 1] - boxes[:, 0] >= MIN_SIDE_PX).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 256


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
    groups = [{"family": "sam1", "threads": threads, "prompts": 8, **summary(samples)} for threads in (1, 2)]
    environment = {"cpu": "A CPU", "isa": "avx2", "platform": "Linux", "load_1min": load, "cpus_usable": "2"}
    return {
        "created": "2026-01-01T00:00:00+00:00", "environment": environment, "versions": {"onnxruntime": "1.0"},
        "errors": {"sam1": {"theirs": 0.0, "ours": 1e-5}}, "mask_iou": {"sam1": {"shaky": 0.991}},
        "groups": groups,
    }  # fmt: skip


def test_the_table_holds_times_ratios_and_what_was_compared() -> None:
    text = comparison_markdown(report())
    assert "**sam1, 1 thread**" in text
    assert "**sam1, 2 threads**" in text
    assert "| theirs | 40.0 | logits within 0.0e+00 |" in text
    assert "| ours | 10.0, 4.00 (4.00 to 4.00) | logits within 1.0e-05 |" in text
    assert "| shaky | 20.0!, 2.00" in text
    assert "| mask IoU 0.9910 |" in text
    assert "onnxruntime 1.0" in text
    assert "busy" not in text


def test_a_busy_machine_is_told() -> None:
    assert "The machine was busy" in comparison_markdown(report(load="1.90"))
