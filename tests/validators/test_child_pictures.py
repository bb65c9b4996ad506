"""An artifact's encoder is judged by the pictures that were handed over, where some were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samx.artifacts.store import Artifact
from samx.commands.references import job_of
from samx.commands.validate import _fresh_pictures, validate
from samx.demo import demo_checkpoint
from samx.validators.child import ENCODER_SUITE_ROLE, gate_in_child
from samx.validators.encoder_suite import EncoderSuite


@pytest.fixture(scope="module")
def fresh(demo_artifact: Path) -> EncoderSuite:
    artifact, checkpoint = Artifact.open(demo_artifact), demo_checkpoint("sam1")
    return _fresh_pictures(artifact, checkpoint, job_of(artifact, checkpoint))


def test_the_references_answer_as_at_the_export(demo_artifact: Path, fresh: EncoderSuite) -> None:
    artifact = Artifact.open(demo_artifact)
    stored = EncoderSuite.load(artifact.read(artifact.file_with_role(ENCODER_SUITE_ROLE)))
    assert [picture.digest for picture in fresh.pictures] == [picture.digest for picture in stored.pictures]
    for ours, theirs in zip(fresh.pictures, stored.pictures, strict=True):
        for one, other in zip(ours.answers, theirs.answers, strict=True):
            assert np.array_equal(one.above | one.undecided, other.above | one.undecided)


def test_pictures_with_other_answers_fail(demo_artifact: Path, fresh: EncoderSuite, tmp_path: Path) -> None:
    # Steady masks are what is judged, and of pictures drawn anew one may have none.
    first = max(fresh.pictures, key=lambda picture: max(one.stability.max() for one in picture.answers))
    changed = replace(first, answers=tuple(replace(one, above=~one.above) for one in first.answers))
    pictures = tuple(changed if picture is first else picture for picture in fresh.pictures)
    (tmp_path / "pictures.npz").write_bytes(replace(fresh, pictures=pictures).to_bytes())
    report = gate_in_child(demo_artifact, level="graph", pictures=tmp_path / "pictures.npz")
    assert not report.passed
    assert report.encoder is not None
    assert any(first.name in line for line in report.encoder.all_failures())


def test_validating_against_the_checkpoint_asks_its_encoder_too(
    demo_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def noted(path: Path, *, pictures: Path | None = None, **more: object) -> None:
        assert pictures is not None
        asked.append(EncoderSuite.load(pictures.read_bytes()).pictures[0].name)

    monkeypatch.setattr("samx.commands.validate.gate_in_child", noted)
    validate(demo_artifact, checkpoint=demo_checkpoint("sam1"))
    assert asked == ["square, a cat"]
