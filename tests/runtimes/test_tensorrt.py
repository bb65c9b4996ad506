"""The TensorRT adapter on a fake device: buffers, shapes, graphs, kept kernels, and what the library refuses."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from engine_toys import POINTS, toy_masks, toy_plan
from engine_toys import home as home
from fake_gpu import FakeCache, FakeDevice, FakeEngine, fake_runtime, image, prompts

from samx.errors import PromptError, SamxError, UnavailableError
from samx.models.session import Feed, Outputs
from samx.models.shape_range import ShapeRange
from samx.runtimes.base import Padding
from samx.runtimes.cuda import Buffers

pytestmark = pytest.mark.usefixtures("home")
TARGETS = pytest.mark.parametrize("target", ["trt", "trt-rtx"])


def check(outputs: Outputs, picture: Feed, feed: Feed) -> None:
    want = toy_masks(picture["image_embeddings"], feed["point_coords"], feed["point_labels"])
    assert set(outputs) == set(want)
    for name, value in want.items():
        assert outputs[name].dtype == np.float32
        np.testing.assert_allclose(outputs[name], value, rtol=1e-5, atol=1e-5)


@TARGETS
@pytest.mark.parametrize(("n", "points"), [(1, 1), (2, 2), (4, 3), (9, 2)])
def test_masks_come_out_in_the_right_shape_and_order(target: str, n: int, points: int) -> None:
    runtime, _ = fake_runtime(toy_plan(target), FakeDevice())
    runtime.set_image(image())
    feed = prompts(n, points)
    check(runtime.decode(feed), image(), feed)


def test_more_prompts_than_the_engine_takes_are_cut_and_put_back_together() -> None:
    device = FakeDevice()
    runtime, _ = fake_runtime(toy_plan(), device)  # built for at most four
    runtime.set_image(image())
    feed = prompts(9)
    check(runtime.decode(feed), image(), feed)
    assert device.counted("compute") == 3


@pytest.mark.parametrize("n", [1, 7, 8, 9])
def test_fewer_prompts_than_a_fixed_engine_takes_are_filled_up(n: int) -> None:
    eight, padding = ShapeRange(8, 8, 8), Padding(POINTS, ShapeRange(8, 8, 8))
    runtime, engine = fake_runtime(toy_plan(prompts=eight), FakeDevice(), padding=padding)
    runtime.set_image(image())
    feed = prompts(n)
    check(runtime.decode(feed), image(), feed)
    assert engine.context is not None
    assert engine.context.shapes["point_labels"] == (8, 2)


def test_a_fixed_engine_without_slots_says_its_limits() -> None:
    runtime, _ = fake_runtime(toy_plan(prompts=ShapeRange(8, 8, 8)), FakeDevice())
    runtime.set_image(image())
    with pytest.raises(PromptError, match=r"that many prompts a call.*: found 7, expected 8 to 8"):
        runtime.decode(prompts(7))


@pytest.mark.parametrize("points", [0, 4])
def test_points_outside_the_profile_are_refused_with_the_limits(points: int) -> None:
    runtime, _ = fake_runtime(toy_plan(), FakeDevice())
    runtime.set_image(image())
    with pytest.raises(PromptError, match=f"that many points a prompt.*: found {points}, expected 1 to 3") as caught:
        runtime.decode(prompts(1, points))
    assert caught.value.exit_code == 6


def test_no_prompts_are_refused() -> None:
    runtime, _ = fake_runtime(toy_plan(), FakeDevice())
    runtime.set_image(image())
    with pytest.raises(PromptError, match="no prompts"):
        runtime.decode(prompts(0))


def test_buffers_are_reused_and_grow_only_when_they_must() -> None:
    device = FakeDevice()
    runtime, _ = fake_runtime(toy_plan(), device)
    runtime.set_image(image())
    assert device.counted("allocate") == 1
    for n, allocated in [(2, 4), (2, 0), (1, 0), (2, 0), (4, 4), (3, 0), (4, 0)]:
        feed = prompts(n, seed=n)
        check(runtime.decode(feed), image(), feed)
        assert device.counted("allocate") == allocated, f"after {n} prompts"
    assert device.counted("free") == 4  # what had grown
    assert len(device.memory) == 5


def test_an_image_is_uploaded_once() -> None:
    device = FakeDevice()
    runtime, _ = fake_runtime(toy_plan(), device)
    runtime.set_image(image())
    assert device.counted("upload") == 1
    for _ in range(3):
        runtime.decode(prompts(2))
        assert device.counted("upload") == 2  # coordinates and labels
    runtime.set_image(image(1))
    check(runtime.decode(prompts(2)), image(1), prompts(2))


def test_outputs_are_the_callers_own() -> None:
    runtime, _ = fake_runtime(toy_plan(), FakeDevice())
    runtime.set_image(image())
    first, kept = runtime.decode(prompts(2, seed=1)), runtime.decode(prompts(2, seed=1))
    runtime.decode(prompts(2, seed=2))
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)


def test_rtx_compiles_for_a_new_shape_at_once_and_records_no_graph() -> None:
    _, engine = fake_runtime(toy_plan("trt-rtx"), FakeDevice())
    assert engine.config.cuda_graph_strategy == "none"
    assert engine.config.dynamic_shapes_kernel_specialization_strategy == "eager"


def test_everything_is_given_back() -> None:
    device = FakeDevice()
    runtime, _ = fake_runtime(toy_plan("trt"), device)
    runtime.set_image(image())
    for _ in range(2):
        runtime.decode(prompts(2))
    del runtime
    gc.collect()
    assert device.memory == {}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("fails", "does not run the engine: found planted: illegal memory access"),
        ("refuses_shape", r"refuses shape \(2, 2, 2\) of point_coords: found shape says no"),
        ("wrong_output", r"gives low_res_masks the shape \(3, 3, 4, 4\) for 2 prompts"),
    ],
)
def test_what_the_library_refuses_is_said_and_does_not_stay(fault: str, words: str) -> None:
    runtime, engine = fake_runtime(toy_plan("trt"), FakeDevice())
    runtime.set_image(image())
    assert engine.context is not None
    setattr(engine.context, fault, True)
    with pytest.raises(SamxError, match=words):
        runtime.decode(prompts(2))
    setattr(engine.context, fault, False)
    check(runtime.decode(prompts(2)), image(), prompts(2))


def test_a_full_gpu_is_unavailable_and_small_requests_still_work() -> None:
    device = FakeDevice(room=2000)
    runtime, _ = fake_runtime(toy_plan(prompts=ShapeRange(1, 2, 64)), device)
    runtime.set_image(image())
    check(runtime.decode(prompts(2)), image(), prompts(2))
    with pytest.raises(UnavailableError, match="cannot reserve memory"):
        runtime.decode(prompts(60))
    check(runtime.decode(prompts(2)), image(), prompts(2))


def test_no_room_for_the_engine_is_unavailable() -> None:
    device = FakeDevice()
    engine = FakeEngine(device, [])
    engine.context = None
    with pytest.raises(UnavailableError, match="cannot make room for the engine on Toy GPU"):
        fake_runtime(toy_plan("trt"), device, engine=engine)


def test_buffers_forget_what_was_freed() -> None:
    device = FakeDevice(room=100)
    buffers = Buffers(device)
    buffers.address("a", 100)
    with pytest.raises(UnavailableError):
        buffers.address("a", 101)
    assert buffers.total == 0
    assert buffers.address("a", 50) in device.memory


def test_compiled_kernels_are_kept_for_the_next_start(home: Path) -> None:
    device = FakeDevice()
    runtime, _ = fake_runtime(toy_plan(), device)
    assert runtime.placement().details["kernel_cache"] == "new"
    runtime.set_image(image())
    for n in (1, 1, 2):
        runtime.decode(prompts(n))
    (file,) = (home / "cache" / "samx" / "kernels").iterdir()
    assert file.read_bytes()[32:] == b"kernel" * 2  # one new shape, one more kernel; a repeated shape writes nothing
    again, engine = fake_runtime(toy_plan(), device)
    assert again.placement().details["kernel_cache"] == "kept"
    assert engine.cache.data == b"kernel" * 2


def test_kernels_of_another_driver_are_refused_by_the_library() -> None:
    device = FakeDevice()
    runtime, _ = fake_runtime(toy_plan(), device)
    runtime.set_image(image())
    runtime.decode(prompts(1))
    engine = FakeEngine(device, [])
    engine.cache = FakeCache(accepts=False)
    assert fake_runtime(toy_plan(), device, engine=engine)[0].placement().details["kernel_cache"] == "refused"


def test_kernels_that_cannot_be_kept_stop_nobody(home: Path) -> None:
    (home / "cache").write_text("in the way")
    runtime, _ = fake_runtime(toy_plan(), FakeDevice())
    runtime.set_image(image())
    check(runtime.decode(prompts(2)), image(), prompts(2))
    assert "not kept: cannot write" in runtime.placement().details["kernel_cache"]


def test_tensorrt_proper_keeps_no_kernels() -> None:
    assert fake_runtime(toy_plan("trt"), FakeDevice())[0].placement().details["kernel_cache"] is None


@pytest.mark.parametrize(
    ("text", "layers"), [('{"Layers": ["a", "b"]}', 2), ("no JSON", 5), ("{}", 5), ("", 5), ("[]", 5), ("null", 5)]
)
def test_the_placement_counts_the_engines_layers(text: str, layers: int) -> None:
    device = FakeDevice()
    runtime, _ = fake_runtime(toy_plan(), device, engine=FakeEngine(device, [], text))
    placement = runtime.placement()
    assert placement.operations == {"cuda": layers}
    assert placement.honoured
    assert placement.details["gpu"] == "Toy GPU"


def test_copies_can_be_had_without_the_work_between() -> None:
    device = FakeDevice()
    runtime, _ = fake_runtime(toy_plan(), device)
    runtime.set_image(image())
    feed = prompts(9)  # three calls of at most four
    runtime.decode(feed)
    uploads, downloads, _ = (device.counted(what) for what in ("upload", "download", "compute"))
    with runtime.copies_only():
        copied = runtime.decode(feed)
    assert device.counted("compute") == 0
    assert device.counted("upload") == uploads - len(image())
    assert device.counted("download") == downloads
    assert {name: value.shape for name, value in copied.items()} == {
        "low_res_masks": (9, 3, 4, 4), "iou_predictions": (9, 3),
    }  # fmt: skip
    check(runtime.decode(feed), image(), feed)  # and works again
