"""'samx validate' compares the pieces of a video's loop again: with what was kept, and with the checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from toy_artifact import resealed

from samx.artifacts.store import Artifact
from samx.commands.validate import validate
from samx.errors import ArtifactError
from samx.validators.video_pieces import CASES_FILE, KEPT, sample

PIECES = ["memory_encoder", "object_decoder"]


@pytest.fixture
def copy(video_export: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(video_export / "artifact", tmp_path / "copy"))


def change_weights(path: Path) -> None:
    """Make the largest weights of a graph another's."""
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    largest.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(largest) * np.float32(1.01), largest.name))
    onnx.save(model, path)


@pytest.mark.parametrize("with_checkpoint", [False, True], ids=["kept", "checkpoint"])
def test_pieces_are_compared_again(video_export: Path, with_checkpoint: bool) -> None:
    report = validate(video_export / "artifact", checkpoint=video_export / "video.pt" if with_checkpoint else None)
    assert report.passed
    assert report.suite["video_pieces"] == PIECES


@pytest.mark.parametrize("with_checkpoint", [False, True], ids=["kept", "checkpoint"])
@pytest.mark.parametrize("piece", PIECES)
def test_another_graph_is_found(copy: Path, video_export: Path, piece: str, with_checkpoint: bool) -> None:
    resealed(copy, f"{piece}.onnx", change_weights)
    report = validate(copy, checkpoint=video_export / "video.pt" if with_checkpoint else None)
    assert not report.passed
    assert len(report.failures) == 1
    assert "something else than PyTorch: relative error" in report.failures[0]


DAMAGED: dict[str, Callable[[Path], object]] = {
    "no archive": lambda path: path.write_bytes(b"none"),
    "empty": lambda path: np.savez(path),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_answers_are_refused(copy: Path, how: str) -> None:
    resealed(copy, CASES_FILE, DAMAGED[how])
    with pytest.raises(ArtifactError) as caught:
        validate(copy)
    assert "\n" not in str(caught.value)


def test_fewer_answers_are_refused(copy: Path) -> None:
    def drop(path: Path) -> None:
        with np.load(path) as found:
            arrays = {name: found[name] for name in found.files if name != "object_decoder1.low_res_masks"}
        np.savez(path, **arrays)

    resealed(copy, CASES_FILE, drop)
    with pytest.raises(ArtifactError, match="object_decoder1"):
        validate(copy)


def test_answers_that_are_kept_are_small(video_export: Path) -> None:
    artifact = Artifact.open(video_export / "artifact")
    assert artifact.manifest.files[CASES_FILE].bytes < 700_000


def test_a_sample_is_spread_over_rows_and_columns() -> None:
    value = np.arange(2 * 3 * 64 * 64, dtype=np.float32).reshape(2, 3, 64, 64)
    chosen = sample(value).astype(int)
    assert len(np.unique(chosen)) == KEPT
    assert set(chosen // 64**2) == set(range(6))
    assert len(set(chosen % 64)) == 64
    assert len(set(chosen // 64 % 64)) == 64
    assert np.array_equal(sample(value[:1, :1, :3, :3]), value[0, 0, :3, :3].ravel())
