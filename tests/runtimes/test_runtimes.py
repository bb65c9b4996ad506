"""Runtimes: checks, chunks, placement, and no silent change of device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exports import float_encoder
from toys import arrays, image_tensors, prompt_tensors, toy_checkpoint, toy_decoder

from samx.errors import ArtifactError, ImageError, PromptError, UnavailableError, UsageError
from samx.models.fast.decoder import FastDecoder
from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec
from samx.runtimes import onnxruntime
from samx.runtimes.base import Runtime
from samx.runtimes.torch import TorchRuntime, reference_session

SPEC = sam1_spec(image_size=128)
IMAGE = arrays(image_tensors(SPEC))


class CountingRuntime(Runtime):
    """Remember how many prompts each call got; answer with each prompt's first coordinate."""

    def __init__(self, chunk: int) -> None:
        super().__init__(SPEC, chunk)
        self.calls: list[int] = []

    def _set_image(self, image: Feed) -> None:
        pass

    def _decode(self, prompts: Feed) -> Outputs:
        self.calls.append(len(prompts["point_coords"]))
        return {"iou_predictions": prompts["point_coords"][:, :1, 0]}

    def placement(self) -> Placement:
        return Placement("counting", "cpu", {"cpu": 1}, {})


def prompts(n: int) -> Feed:
    return arrays(prompt_tensors(SPEC, n, [1, -1]))


@pytest.mark.parametrize(("n", "calls"), [(1, [1]), (8, [8]), (9, [4, 5]), (17, [5, 6, 6])])
def test_prompts_are_cut_evenly_and_put_back_in_order(n: int, calls: list[int]) -> None:
    runtime = CountingRuntime(chunk=8)
    runtime.set_image(IMAGE)
    feed = prompts(n)
    outputs = runtime.decode(feed)
    assert runtime.calls == calls
    np.testing.assert_array_equal(outputs["iou_predictions"], feed["point_coords"][:, :1, 0])


def test_a_chunk_must_hold_a_prompt() -> None:
    with pytest.raises(UsageError, match="found 0"):
        CountingRuntime(chunk=0)


def test_an_image_comes_first() -> None:
    with pytest.raises(UsageError, match="no image is set"):
        CountingRuntime(8).decode(prompts(1))


def test_a_refused_image_leaves_no_older_one_in_place() -> None:
    runtime = CountingRuntime(8)
    runtime.set_image(IMAGE)
    with pytest.raises(ImageError):
        runtime.set_image({})
    with pytest.raises(UsageError, match="no image is set"):
        runtime.decode(prompts(1))


def spoil(feed: Feed, name: str, value: object) -> Feed:
    return {**feed, name: np.asarray(value)}


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ({}, "wrong tensors: found none, expected image_embeddings"),
        ({**IMAGE, "extra": IMAGE["image_embeddings"]}, "found extra, image_embeddings"),
        (spoil(IMAGE, "image_embeddings", np.zeros((1, 256, 8, 8))), "found float64, expected float32"),
        (spoil(IMAGE, "image_embeddings", np.zeros((1, 256, 4, 8), np.float32)), r"expected \(1, 256, 8, 8\)"),
        (spoil(IMAGE, "image_embeddings", np.full((1, 256, 8, 8), np.nan, np.float32)), "NaN"),
    ],
)
def test_bad_images_are_refused(image: Feed, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        CountingRuntime(8).set_image(image)


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        (prompts(0), "no prompts: found N = 0"),
        (spoil(prompts(2), "point_labels", np.zeros((1, 2), np.float32)), r"found \(1, 2\), expected \(2, 2\)"),
        (spoil(prompts(2), "point_coords", np.full((2, 2, 2), np.inf, np.float32)), "NaN or infinity"),
        (spoil(prompts(2), "point_labels", np.zeros((2, 2), np.int64)), "found int64"),
    ],
)
def test_bad_prompts_are_refused(feed: Feed, words: str) -> None:
    runtime = CountingRuntime(8)
    runtime.set_image(IMAGE)
    with pytest.raises(PromptError, match=words):
        runtime.decode(feed)


@pytest.mark.parametrize("spec", [SPEC, sam2_spec(image_size=128, mask_input=True)], ids=["sam1", "sam2"])
def test_torch_runs_reference_and_fast_form_alike(spec: DecoderSpec) -> None:
    image, feed = arrays(image_tensors(spec)), arrays(prompt_tensors(spec, 3, [1, -1]))
    sessions = [TorchRuntime(toy_decoder(spec)), TorchRuntime(FastDecoder(toy_decoder(spec)))]
    for session in sessions:
        session.set_image(image)
    reference, fast = (session.decode(feed) for session in sessions)
    for name, want in reference.items():
        np.testing.assert_allclose(fast[name], want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_torch_places_everything_on_the_device_asked_for() -> None:
    session = reference_session(toy_checkpoint(SPEC), SPEC)
    placement = session.placement()
    assert placement.honoured
    assert placement.operations["cpu"] > 50
    assert placement.details["form"] == "ReferenceDecoder"


def test_a_device_that_is_not_there_is_no_other_device() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.fail("this test is for machines without CUDA")
    with pytest.raises(UnavailableError, match="PyTorch finds no CUDA device"):
        TorchRuntime(toy_decoder(SPEC), device="cuda")
    with pytest.raises(UnavailableError, match="ONNX Runtime cannot run on 'cuda' here"):
        onnxruntime._session("decoder.onnx", b"", "cuda", None)
    with pytest.raises(UnavailableError, match="expected cpu or cuda"):
        onnxruntime._session("decoder.onnx", b"", "npu", None)


def test_a_file_that_is_no_model_is_one_line() -> None:
    with pytest.raises(ArtifactError, match="ONNX Runtime cannot load") as caught:
        onnxruntime._session("decoder.onnx", b"not a model", "cpu", None)
    assert "\n" not in str(caught.value)


def test_an_encoder_must_take_the_picture(all_masks_artifact: Path, tmp_path: Path) -> None:
    for path, size in (
        (float_encoder(tmp_path, 256), 64),
        (all_masks_artifact / "encoder.onnx", 256),
    ):  # the latter takes bytes
        encode = onnxruntime.open_float_encoder(path.read_bytes(), "encoder.onnx")
        with pytest.raises(ArtifactError, match="does not take this picture"):
            encode(np.zeros((1, 3, size, size), np.float32))
