"""The figures of half precision are of every picture's masks: an encoder agrees with itself, and not with another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from stub_session import StubSession, pooled

from samx.models.session import Feed
from samx.models.spec import sam1_spec
from samx.validators.encoder_suite import EncoderSuite
from tools.encoder_precision import agreement, files

SPEC = sam1_spec(image_size=64)


def test_an_encoder_agrees_with_itself_and_not_with_another() -> None:
    rng = np.random.default_rng(0)
    photos = [(name, rng.integers(0, 256, (48, 64, 3), np.uint8)) for name in ("one", "other")]
    suite = EncoderSuite.build(pooled(SPEC), StubSession(SPEC), 64, photos)
    right: list[Feed] = []

    def reference(values: np.ndarray) -> Feed:
        right.append(pooled(SPEC)(values))
        return right[-1]

    EncoderSuite.build(reference, StubSession(SPEC), 64, photos)
    answers = iter(right)
    every, steady = agreement(suite, lambda taken: next(answers), StubSession(SPEC))
    assert len(every) == sum(answer.above.shape[0] * 3 for one in suite.pictures for answer in one.answers)
    assert 0 < len(steady) <= len(every)
    assert every.min() == 1.0
    far = iter([{name: value * np.float32(9) for name, value in one.items()} for one in right])
    assert agreement(suite, lambda taken: next(far), StubSession(SPEC))[0].mean() < 0.9


def test_pictures_are_found_in_folders(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in files([tmp_path, tmp_path / "b.jpg"])] == ["a.PNG", "b.jpg", "b.jpg"]
