"""Images to calibrate on: demo scenes with their regions, embeddings, pictures through an encoder; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from samx.demo import demo_checkpoint
from samx.demo.model import PARITY_SCENES, load_demo
from samx.demo.picture import PICTURE_SEED
from samx.demo.sampling import find_regions
from samx.demo.scenes import generate_scene
from samx.errors import ImageError, InputError, UsageError
from samx.models.checkpoint import load_checkpoint
from samx.models.spec import PIXELS, DecoderSpec, sam1_spec, sam2_spec
from samx.processing.frames import Frame
from samx.processing.images import to_frame
from samx.quantization import sources
from samx.quantization.calibration import MIN_IMAGES, MOST_IMAGES
from samx.quantization.sources import CALIBRATION_SCENES, HELD_OUT_SCENES, Source, open_source
from tools.train_demo.evaluate import HELD_OUT_SCENES as EVALUATED
from tools.train_demo.evaluate import HELD_OUT_SEED
from tools.train_demo.pool import TRAIN_SEED
from tools.train_demo.train import VALIDATION_SEEDS

DEMO = demo_checkpoint("sam1")
NO_DEMO = Path("vit_b.pth")
SPEC = sam1_spec(image_size=128)
SIZE_PX = 256  # of demo scenes here: a sixteenth of the work


def opened(spec: DecoderSpec = SPEC, checkpoint: Path = NO_DEMO, seed: int = 0, **options: Any) -> Source:
    return open_source(checkpoint, spec, seed, **options)


# --- Demo scenes ------------------------------------------------------------------------------------------------------


def test_scenes_are_nobody_elses() -> None:
    mine = {*CALIBRATION_SCENES, *HELD_OUT_SCENES}
    assert len(mine) == len(CALIBRATION_SCENES) + len(HELD_OUT_SCENES)
    others = {*range(HELD_OUT_SEED, HELD_OUT_SEED + EVALUATED), *VALIDATION_SEEDS, PICTURE_SEED}
    others |= {seed for seed, _ in PARITY_SCENES}
    assert mine.isdisjoint(others)
    assert max(mine) < TRAIN_SEED


def test_every_scene_has_regions_to_ask_for() -> None:
    assert all(find_regions(generate_scene(seed, 256).ids) for seed in (*CALIBRATION_SCENES, *HELD_OUT_SCENES))


@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_a_demo_checkpoint_brings_its_scenes(family: str) -> None:
    checkpoint = demo_checkpoint(family)
    spec = load_checkpoint(checkpoint, image_size=SIZE_PX).spec
    found = opened(spec, checkpoint, images=MIN_IMAGES)
    assert found.scenes == tuple(CALIBRATION_SCENES[:MIN_IMAGES])
    assert found.words == "demo scenes 700000 to 700003, demo encoder"
    square, wide = (found.images[i]() for i in (0, 1))
    assert {name: value.shape for name, value in square.features.items()} == {
        t.name: t.shape for t in spec.image_inputs
    }
    assert square.extent == (SIZE_PX, SIZE_PX)
    assert wide.extent == ((SIZE_PX, 192) if family == "sam1" else (SIZE_PX, SIZE_PX))


def test_a_scenes_features_are_its_pictures() -> None:
    spec = load_checkpoint(DEMO, image_size=SIZE_PX).spec
    scene = generate_scene(CALIBRATION_SCENES[0], SIZE_PX)
    pixels = to_frame(scene.image, Frame.of(spec, SIZE_PX, SIZE_PX))
    model = load_demo("sam1", grid=spec.grid)
    with torch.inference_mode():
        expected = model.encoder(torch.from_numpy(pixels))[0].numpy()
    found = opened(spec, DEMO).images[0]().features["image_embeddings"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("family", "valid"), [(sam1_spec(), 192), (sam2_spec(), 256)])
def test_regions_lie_where_the_mask_has_them(family: DecoderSpec, valid: int) -> None:
    scene = generate_scene(5, (1024, 768))
    found = sources._mask_ids(scene.ids, Frame.of(family, 1024, 768), family)
    assert not found[:, valid:].any()
    drawn = Image.fromarray(scene.ids[1]).resize((256, valid), Image.Resampling.NEAREST)
    assert (found[1, :valid] == np.asarray(drawn)).mean() > 0.99
    assert (np.roll(found[1, :valid], 2, axis=1) == np.asarray(drawn)).mean() < 0.99  # the comparison sees 2 px


@pytest.mark.parametrize(("side_px", "expected"), [(1024, 256), (1023, 256), (1022, 255), (768, 192), (3, 1), (1, 1)])
def test_the_masks_pixels_in_a_part_of_the_frame(side_px: int, expected: int) -> None:
    assert sources.mask_px(side_px, sam1_spec()) == expected


def test_another_checkpoint_needs_images() -> None:
    with pytest.raises(UsageError, match=r"no image to calibrate 'vit_b.pth' on.*Give --pictures DIR"):
        opened()


# --- Embeddings -------------------------------------------------------------------------------------------------------


def embeddings(folder: Path, count: int, change: Callable[[Any], Any] = lambda value: value) -> Path:
    """Save embeddings, .npz and .npy in turn; the last one is changed."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        value = np.random.default_rng(i).normal(size=SPEC.image_inputs[0].shape).astype(np.float32)  # type: ignore[arg-type]
        value = change(value) if i == count - 1 else value
        if i % 2:
            np.save(folder / f"{i}.npy", value)
        else:
            np.savez(folder / f"{i}.npz", image_embeddings=value)
    return folder


def test_embeddings_are_read_from_a_folder(tmp_path: Path) -> None:
    folder = embeddings(tmp_path / "mine", 5)
    (folder / "readme.txt").write_text("mine")
    found = opened(embeddings=folder)
    assert (found.words, found.scenes) == ("5 of 5 embeddings in 'mine'", ())
    first = found.images[0]()
    expected = np.random.default_rng(0).normal(size=(1, 256, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(first.features["image_embeddings"], expected)
    assert (first.extent, first.ids) == ((128, 128), None)


def chosen(source: Source) -> list[str]:
    return [image.args[0].name for image in source.images if isinstance(image, partial)]


def test_the_seed_chooses_from_a_large_folder(tmp_path: Path) -> None:
    folder = embeddings(tmp_path, 20)
    assert chosen(opened(embeddings=folder)) == chosen(opened(embeddings=folder))
    assert len(chosen(opened(embeddings=folder))) == sources.DEFAULT_IMAGES
    assert chosen(opened(embeddings=folder)) != chosen(opened(embeddings=folder, seed=1))
    assert opened(embeddings=folder, images=6).words.startswith("6 of 20 embeddings")
    assert len(set(chosen(opened(embeddings=folder, images=20)))) == 20


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"has no embeddings: found nothing, expected \.npz, \.npy"):
        opened(embeddings=tmp_path)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ImageError, match="found 1 other files"):
        opened(embeddings=tmp_path)


@pytest.mark.parametrize("name", ["missing", "file.npz"])
def test_a_folder_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.npz").touch()
    with pytest.raises(ImageError, match="cannot be read"):
        opened(embeddings=tmp_path / name)


def test_too_few_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=f"too few embeddings: found 3, expected at least {MIN_IMAGES}"):
        opened(embeddings=embeddings(tmp_path, 3))
    with pytest.raises(ImageError, match="found 6, expected at least 9"):
        opened(embeddings=embeddings(tmp_path, 6), images=9)


SPOILED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "wrong shape": (lambda value: value[:, :, :7], "wrong shape"),
    "of another family": (lambda value: value[:, :32], "wrong shape"),
    "NaN": (lambda value: np.where(value > 1, np.nan, value), "not finite"),
    "infinity": (lambda value: np.where(value > 1, np.inf, value), "not finite"),
    "beyond float16": (lambda value: 1e5 * value, "expected values that float16 holds"),
    "constant": (lambda value: np.full_like(value, 0.5), "constant: found 0.5 throughout"),
    "integers": (lambda value: value.astype(np.int64), "wrong type"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_spoiled_embedding_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    change, words = SPOILED[fault]
    found = opened(embeddings=embeddings(tmp_path, 5, change))
    with pytest.raises(ImageError, match=words) as caught:
        [image() for image in found.images]
    assert "4.npz" in str(caught.value)


def test_an_embedding_for_sam2_must_have_every_feature(tmp_path: Path) -> None:
    found = opened(sam2_spec(image_size=128), embeddings=embeddings(tmp_path, 4))
    with pytest.raises(ImageError, match="other arrays than the decoder takes"):
        found.images[0]()


# --- Pictures ---------------------------------------------------------------------------------------------------------


def encoder(path: Path, output: str = "image_embeddings", channels: int = 256, gain: float = 1.0) -> Path:
    """Write an encoder: averages over patches, mixed into channels."""
    weights = gain * np.random.default_rng(0).normal(size=(channels, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["picture"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Conv", ["pooled", "weights"], [output]),
    ]
    graph = helper.make_graph(
        nodes, "encoder", [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, 128, 128])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, channels, 8, 8])],
        [helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.ravel())],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Make a folder of wide and square pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 255, (60 + 20 * (i % 2), 80, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


def test_pictures_go_through_the_encoder(tmp_path: Path, pictures: Path) -> None:
    found = opened(pictures=pictures, encoder=encoder(tmp_path / "vit.onnx"))
    assert found.words == "4 of 4 pictures in 'photos', encoder 'vit.onnx'"
    wide, square = (found.images[i]() for i in (0, 1))
    assert (wide.extent, square.extent) == ((128, 96), (128, 128))
    values = wide.features["image_embeddings"]
    assert values.shape == (1, 256, 8, 8)
    assert values.dtype == np.float32
    assert not values[:, :, 6:].any()  # the padding
    assert values[:, :, :6].any()


def test_pixels_are_normalised_as_the_encoder_wants(tmp_path: Path, pictures: Path) -> None:
    path = encoder(tmp_path / "vit.onnx")
    found = [opened(pictures=pictures, encoder=path, pixels=kind).images[0]() for kind in PIXELS]
    for one, other in combinations((image.features["image_embeddings"] for image in found), 2):
        assert not np.allclose(one, other)


def test_a_picture_that_is_too_thin_to_click_on_is_refused(tmp_path: Path, pictures: Path) -> None:
    Image.new("RGB", (100, 8)).save(pictures / "0.png")
    found = opened(pictures=pictures, encoder=encoder(tmp_path / "vit.onnx"))
    with pytest.raises(ImageError, match=r"0\.png. is too thin to click on and beside: found 100 x 8 px"):
        found.images[0]()


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        ({"output": "features"}, "has other features: found features, expected image_embeddings"),
        ({"channels": 255}, "has the wrong shape: found \\(1, 255, 8, 8\\)"),
        ({"gain": 0.0}, "is constant"),
        ({"gain": float("nan")}, "is not finite"),
    ],
)
def test_a_spoiled_encoder_is_refused(tmp_path: Path, pictures: Path, spoiled: Any, words: str) -> None:
    found = opened(pictures=pictures, encoder=encoder(tmp_path / "vit.onnx", **spoiled))
    with pytest.raises(InputError, match=words) as caught:
        found.images[0]()
    assert "0.png" in str(caught.value)


def test_a_missing_encoder_is_refused(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(ImageError, match=r"encoder .* does not exist"):
        opened(pictures=pictures, encoder=tmp_path / "missing.onnx")


HERE = Path()
UNCLEAR: dict[str, tuple[dict[str, Any], str]] = {
    "two sources": ({"embeddings": HERE, "pictures": HERE, "encoder": HERE}, "found --embeddings and --pictures"),
    "no encoder": ({"pictures": HERE}, "found --pictures without --encoder"),
    "encoder alone": ({"encoder": HERE}, "found --encoder without --pictures"),
    "encoder with embeddings": ({"encoder": HERE, "embeddings": HERE}, "found --encoder without --pictures"),
    "unknown pixels": ({"pixels": "bgr"}, "expected imagenet or half or minmax or unit"),
    "too few images": ({"images": MIN_IMAGES - 1}, f"found 3, expected {MIN_IMAGES} to {MOST_IMAGES}"),
    "too many images": ({"images": MOST_IMAGES + 1}, f"found 65, expected {MIN_IMAGES} to {MOST_IMAGES}"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_unclear_options_are_refused(case: str) -> None:
    options, words = UNCLEAR[case]
    with pytest.raises(UsageError, match=words):
        opened(checkpoint=DEMO, **options)
