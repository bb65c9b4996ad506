"""Pictures on their way to a mask: every part is in the figure, and the figure is of the right thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bench_toys import MS, SPEC, TimedSession, harness, toy_subject
from fake_candidates import FakeClock

from samx.artifacts.manifest import EncoderEntry
from samx.artifacts.store import Artifact
from samx.benchmarks import photo
from samx.benchmarks.results import BenchReport
from samx.benchmarks.scenarios import BY_NAME
from samx.benchmarks.subjects import Subject
from samx.models.session import Feed
from samx.models.shape_range import ShapeRange
from samx.picture_encoder import PictureEncoder
from samx.registry import backend

ENCODER_MS, RESIZE_MS = 300, 3
ENTRY = EncoderEntry("toy", 64, "fp32", ShapeRange(1, 1, 1))


def artifact(entry: EncoderEntry | None = ENTRY) -> Artifact:
    return Artifact(Path("toy"), SimpleNamespace(encoder=entry, spec=SPEC, target="onnx"))  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Let an encoder take its time on a clock that moves only then."""
    clock = FakeClock()

    def encode(taken: Mapping[str, Any]) -> Feed:
        assert taken["picture"].shape == (1, 64, 64, 3)
        clock.now_ns += ENCODER_MS * MS
        shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in SPEC.image_inputs}
        return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}

    def resize(pictures: Sequence[Any], spec: object, entry: object) -> dict[str, Any]:
        assert pictures[0].shape == (3000, 4000, 3)
        clock.now_ns += RESIZE_MS * MS
        return {"picture": np.zeros((1, 64, 64, 3), np.uint8)}

    monkeypatch.setattr(photo, "encoder_inputs", resize)
    monkeypatch.setattr(PictureEncoder, "opened_levels", lambda self: encode)
    monkeypatch.setattr(photo, "picture_mask", lambda *arguments: setattr(clock, "now_ns", clock.now_ns + 7 * MS))
    return clock


def measured(clock: FakeClock, *names: str, entry: EncoderEntry | None = ENTRY) -> Any:
    session = TimedSession(clock, "toy", 20)
    run = replace(harness([session]), subjects=[Subject(session, toy_subject("toy"), artifact(entry))])
    run.run([BY_NAME[name] for name in names])
    assert run.partial is None
    return run


def test_the_whole_way_is_the_sum_of_its_parts(clock: FakeClock) -> None:
    run = measured(clock, "photo")
    found = {result.phase: result.summary.median_ms for result in run.results}
    assert found == {"steady": 335, "resize": 3, "encode": 300, "decode": 25, "post_processing": 7}
    assert {result.scenario for result in run.results} == {"photo"}


def test_the_encoder_alone_is_without_its_decoder(clock: FakeClock) -> None:
    (result,) = measured(clock, "encode").results
    assert (result.scenario, result.phase, result.summary.median_ms) == ("encode", "steady", ENCODER_MS)


@pytest.mark.parametrize("name", ["encode", "photo"])
def test_what_has_no_encoder_says_so_and_is_not_timed(clock: FakeClock, name: str) -> None:
    run = measured(clock, name, entry=None)
    assert run.results == []
    assert [one.reason for one in run.not_measured if one.scenario == name] == [photo.NO_ENCODER]
    peer = Subject(TimedSession(clock, "peer", 20), toy_subject("peer"))
    assert photo.problem(peer, "cpu") == photo.NOT_BESIDE


def test_an_encoder_that_would_run_elsewhere_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Subject(TimedSession(FakeClock(), "toy", 20), toy_subject("toy"), artifact())
    assert photo.problem(own, "cpu") is None
    without = replace(backend("onnx"), encoder=None)
    monkeypatch.setattr(photo, "backend", lambda target: without)
    assert photo.problem(own, "cuda") == "its image encoder would run on 'cpu', not on 'cuda'"


def test_the_picture_has_12_megapixels() -> None:
    assert photo.picture().shape == (3000, 4000, 3)
    assert photo.picture().std() > 50


def test_people_are_told_what_a_figure_contains(clock: FakeClock) -> None:
    found = measured(clock, "encode", "photo").results
    report = BenchReport.__new__(BenchReport)
    for results, words in (
        ((), "decoder only"),
        (tuple(found), "decoder only; in encode the image encoder alone, in photo both"),
    ):
        object.__setattr__(report, "results", results)
        assert report.figures == words


def test_a_contender_with_nothing_to_compare_it_with_is_not_timed(clock: FakeClock) -> None:
    session = TimedSession(clock, "peer", 20)
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in SPEC.image_inputs}
    peer = Subject(
        session,
        toy_subject("peer"),
        encoder=lambda: lambda taken: {name: np.ones(shapes[name], np.float32) for name in shapes},
    )
    run = replace(harness([session]), subjects=[peer])
    run.run([BY_NAME["photo"]])
    assert run.results == []
    assert [one.reason for one in run.not_measured if one.scenario == "photo"] == [photo.NO_TRUTH]
