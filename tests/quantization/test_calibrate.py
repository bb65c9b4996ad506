"""The library call behind `samx calibrate`: a set at its place with its facts, or nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from samx.artifacts.manifest import EncoderEntry
from samx.commands.calibrate import calibrate
from samx.commands.references import picture_reference
from samx.demo import demo_checkpoint
from samx.demo.scenes import generate_scene
from samx.errors import CheckpointError, ImageError, SamxError, UsageError, WriteError
from samx.exporters.base import ExportJob
from samx.exporters.encoder import export_encoder
from samx.models.checkpoint import load_checkpoint
from samx.picture_encoder import encoder_inputs
from samx.processing.images import read_image
from samx.quantization.calibration import CalibrationSet

SIZE_PX = 256  # a sixteenth of the work


def made(out: Path, **options: Any) -> dict[str, Any]:
    return calibrate(out, **{"image_size": SIZE_PX, "images": 4, "samples": 24, **options})


@pytest.mark.parametrize("family", ["sam1", pytest.param("sam2", marks=pytest.mark.slow)])
def test_a_demo_set_lies_where_it_was_asked_for(tmp_path: Path, family: Any) -> None:
    out = tmp_path / "set.npz"
    result = made(out, family=family)
    read = CalibrationSet.load(out)
    loaded = load_checkpoint(demo_checkpoint(family), image_size=SIZE_PX)
    read.check_for(loaded.spec, loaded.sha256)
    facts = json.loads(json.dumps(result))
    assert facts["sha256"] == read.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (facts["bytes"], facts["path"], facts["checkpoint"]) == (out.stat().st_size, str(out), family)
    assert (facts["images"], sum(facts["samples"].values()), facts["held_out"]) == (4, 24, 0)
    assert facts["seconds"] > 0
    assert result["summary"].startswith(f"24 prompts on 4 images in {out} (")
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_the_same_request_gives_the_same_file(tmp_path: Path) -> None:
    first, again, other = (made(tmp_path / f"{i}.npz", seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert (tmp_path / "0.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()
    assert first["sha256"] == again["sha256"] != other["sha256"]


@pytest.mark.slow
def test_the_users_own_embeddings(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(6):
        noise = np.random.default_rng(i).normal(size=(1, 256, 16, 16)).astype(np.float16)
        np.save(folder / f"{i}.npy", noise)
    said: list[tuple[str, int, int]] = []
    result = calibrate(
        tmp_path / "set.npz", image_size=SIZE_PX, embeddings=folder, samples=24,
        progress=lambda text, done=0, total=0, /: said.append((text, done, total)),
    )  # fmt: skip
    assert result["source"] == "6 of 6 embeddings in 'mine'; 2 images held out"
    assert result["held_out"] > 0
    rolled = [("Rolling out calibration prompts, image by image", i, 6) for i in range(6)]
    assert said == [("Reading sam1.safetensors", 0, 0), *rolled]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write pictures of several shapes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, size in enumerate([(200, 120), (100, 160), (256, 256), (300, 150)]):
        Image.fromarray(generate_scene(900_100 + i, size).image).save(folder / f"{i}.png")
    return folder


def test_pictures_go_through_the_checkpoints_own_encoder_as_in_an_artifact(tmp_path: Path, photos: Path) -> None:
    result = calibrate(tmp_path / "set.npz", image_size=SIZE_PX, pictures=photos, samples=24)
    assert result["source"].startswith("4 of 4 pictures in 'photos', the checkpoint's encoder")
    found = CalibrationSet.load(tmp_path / "set.npz")
    checkpoint = demo_checkpoint("sam1")
    loaded = load_checkpoint(checkpoint, image_size=SIZE_PX)
    exported = export_encoder(checkpoint, ExportJob(loaded, loaded.spec, None, target="onnx"), None, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    entry = EncoderEntry.from_json(exported.options["encoder"], "here")
    for path, image in zip(sorted(photos.iterdir()), found.images, strict=True):
        (expected,) = session.run(None, encoder_inputs([read_image(path)], loaded.spec, entry))
        encoded = picture_reference(checkpoint, loaded)(read_image(path))["image_embeddings"]
        np.testing.assert_allclose(encoded, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        # A set keeps float16.
        np.testing.assert_allclose(image["image_embeddings"], expected, rtol=2**-10, atol=1e-5 * np.abs(expected).max())


def test_pictures_for_a_checkpoint_without_an_encoder_are_refused(tmp_path: Path, photos: Path) -> None:
    torch.save(load_file(demo_checkpoint("sam1")), tmp_path / "mine.pth")
    with pytest.raises(UsageError, match=r"'mine\.pth' has no image encoder that samx knows.*--encoder FILE\.onnx"):
        calibrate(tmp_path / "set.npz", tmp_path / "mine.pth", pictures=photos, samples=24)
    assert not (tmp_path / "set.npz").exists()


REFUSED: dict[str, tuple[dict[str, Any], type[SamxError], str]] = {
    "negative seed": ({"seed": -1}, UsageError, "seed is negative"),
    "too few samples": ({"samples": 3}, UsageError, "cannot calibrate 4 images with so many samples"),
    "too few images": ({"images": 1}, UsageError, "cannot calibrate on so many images"),
    "no such family": ({"family": "sam9"}, UsageError, "no demo weights"),
    "no such checkpoint": ({"checkpoint": Path("missing.pth")}, CheckpointError, "missing.pth"),
    "no such folder": ({"embeddings": Path("missing")}, ImageError, "folder 'missing' cannot be read"),
    "no such pictures": ({"pictures": Path("missing")}, ImageError, "folder 'missing' cannot be read"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_refused_leaves_nothing(tmp_path: Path, fault: str) -> None:
    options, error, words = REFUSED[fault]
    with pytest.raises(error, match=words) as caught:
        made(tmp_path / "set.npz", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    out = tmp_path / "set.npz"
    out.write_text("precious")
    with pytest.raises(WriteError, match="exists already"):
        made(out)
    assert out.read_text() == "precious"
    made(out, overwrite=True)
    assert len(CalibrationSet.load(out).samples) == 24


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="found no folder"):
        made(tmp_path / "missing" / "set.npz", checkpoint=Path("not read"))
    with pytest.raises(WriteError, match="found a folder"):
        made(tmp_path, overwrite=True, checkpoint=Path("not read"))


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(5):
        value = np.random.default_rng(i).normal(size=(1, 256, 16, 16))
        np.save(folder / f"{i}.npy", np.where(value > 2, np.nan, value) if i == 4 else value)
    with pytest.raises(ImageError, match=r"4\.npy"):
        made(tmp_path / "set.npz", embeddings=folder, images=None)
    assert list(tmp_path.iterdir()) == [folder]
