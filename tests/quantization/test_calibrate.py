"""The library call behind `samx calibrate`: a set at its place with its facts, or nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samx.commands.calibrate import calibrate
from samx.demo import demo_checkpoint
from samx.errors import CheckpointError, ImageError, SamxError, UsageError, WriteError
from samx.models.checkpoint import load_checkpoint
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


REFUSED: dict[str, tuple[dict[str, Any], type[SamxError], str]] = {
    "negative seed": ({"seed": -1}, UsageError, "seed is negative"),
    "too few samples": ({"samples": 3}, UsageError, "cannot calibrate 4 images with so many samples"),
    "too few images": ({"images": 1}, UsageError, "cannot calibrate on so many images"),
    "no such family": ({"family": "sam9"}, UsageError, "no demo weights"),
    "no such checkpoint": ({"checkpoint": Path("missing.pth")}, CheckpointError, "missing.pth"),
    "no such folder": ({"embeddings": Path("missing")}, ImageError, "folder 'missing' cannot be read"),
    "no encoder": ({"pictures": Path("missing")}, UsageError, "--pictures without --encoder"),
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
