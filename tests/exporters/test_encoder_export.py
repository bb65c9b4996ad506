"""The image encoder goes along with the decoder, or people are told that it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_toys import home as home
from toys import toy_checkpoint

from samx.artifacts.manifest import EncoderEntry
from samx.demo import demo_checkpoint
from samx.errors import ArtifactError, CheckpointError
from samx.exporters import aoti
from samx.exporters import encoder as module
from samx.exporters.base import ExportJob
from samx.exporters.encoder import export_encoder
from samx.models.encoders.load import Found
from samx.models.shape_range import ShapeRange
from samx.models.spec import sam1_spec
from samx.registry import BACKENDS, backend, load

SPEC = sam1_spec(image_size=256)


def job(target: str = "onnx", precision: str = "fp32") -> ExportJob:
    options = load(backend(target).options)()
    return ExportJob(toy_checkpoint(SPEC), SPEC, options, precision, target)


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Name a checkpoint whose encoder is none that samx knows."""
    monkeypatch.setattr(module, "open_weights", lambda path: None)
    monkeypatch.setattr(module, "find_encoder", lambda *arguments: Found(None, ("Its keys are odd.",)))
    return tmp_path / "mine.pth"


def test_an_encoder_that_is_not_known_is_said_loudly(unknown: Path, tmp_path: Path) -> None:
    exported = export_encoder(unknown, job(), None, tmp_path)
    assert (exported.files, exported.options) == ({}, {})
    assert list(tmp_path.iterdir()) == []
    note, why = exported.notes
    assert why == "Its keys are odd."
    assert note.startswith("NO IMAGE ENCODER was exported")
    assert "'mine.pth'" in note


def test_pictures_for_an_encoder_that_is_not_known_are_refused(unknown: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"NO IMAGE ENCODER.*found --pictures 1:2:4") as caught:
        export_encoder(unknown, job(), ShapeRange(1, 2, 4), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", [entry.target for entry in BACKENDS])
@pytest.mark.usefixtures("home")
def test_the_manifest_says_what_the_encoder_takes_and_people_who_runs_it(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aoti, "write_package", lambda graphs, path: path.write_bytes(b"a minute's work of a compiler"))
    exported = export_encoder(demo_checkpoint("sam1"), job(target), ShapeRange(2, 2, 2), tmp_path)
    said = EncoderEntry.from_json(exported.options["encoder"], "here")
    assert said == EncoderEntry("demo", 256, "fp32", ShapeRange(2, 2, 2))
    assert "encoder" in exported.files.values()
    own = backend(target).encoder
    assert any(f"target '{target}' does not run it itself" in note for note in exported.notes) == (own is None)


def test_an_encoder_in_float32_beside_another_decoder_is_said_unless_it_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "asked").mkdir()
    silent = export_encoder(demo_checkpoint("sam1"), job("onnx", "int8"), None, tmp_path / "asked", "fp32")
    told = export_encoder(demo_checkpoint("sam1"), job("onnx", "int8"), None, tmp_path)
    assert silent.notes == ()
    assert told.notes == ("The image encoder computes in float32: '--encoder-precision int8' asks for it in INT8.",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"takes": "floats"}, "takes is unknown: found 'floats', expected levels"),
        ({"pictures": [2, 1, 4]}, "pictures is no range"),
        ({"picture_px": 0}, "picture_px is out of range"),
        ({"mood": "good"}, "unknown mood"),
    ],
)
def test_an_encoder_that_is_described_otherwise_is_refused(change: dict[str, Any], words: str) -> None:
    good = EncoderEntry("demo", 256, "fp32", ShapeRange(1, 1, 1)).to_json()
    with pytest.raises(ArtifactError, match=words):
        EncoderEntry.from_json({**good, **change}, "here")
