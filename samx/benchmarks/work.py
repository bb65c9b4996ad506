"""What one timed call does, by the kind of scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samx.benchmarks.interleave import Candidate
from samx.benchmarks.scenarios import Questions, Scenario
from samx.decoders.session import Feed, FloatArray, Outputs, Session
from samx.frames import RULES
from samx.postprocess import best_indices, segment
from samx.prompts import Point, Prompt, PromptBatch
from samx.runtimes.base import CopiesOnly


@dataclass
class Refinement:
    """Feed each answer's best mask back as a prompt, with one more click; then begin with another object."""

    session: Session
    scenario: Scenario
    questions: Questions
    last: Outputs = field(default_factory=dict)

    def inputs(self, number: int) -> Feed:
        """Take the mask out of the last answer. Not timed."""
        step = number % self.scenario.cycle
        clicks = self.questions.batch(self.scenario, number - step + self.scenario.cycle - 1)
        points: list[Point] = [(float(x), float(y)) for x, y in clicks.points[0][: step + 1]]
        mask = self._mask() if step and self.last else None
        self.last = {}  # freed here, so that the call does not pay for it
        prompt = Prompt(points, [1] * len(points), mask=mask)
        return PromptBatch.of([prompt]).feed(self.questions.spec, self.questions.frame)

    def call(self, feed: Feed) -> None:
        """Decode, and keep the answer."""
        self.last = self.session.decode(feed)

    def _mask(self) -> FloatArray:
        spec = self.questions.spec
        limit = RULES[spec.family].mask_limit
        mask: FloatArray = self.last["low_res_masks"][0, best_indices(self.last, spec)[0]].clip(-limit, limit)
        return mask


def candidate(name: str, session: Session, scenario: Scenario, questions: Questions) -> Candidate:
    """Bind a scenario's steady calls to an opened artifact."""
    inputs, call = WORK[scenario.kind](session, scenario, questions)
    return Candidate(name, scenario.prompts, call, inputs)


def copying(name: str, session: Session, scenario: Scenario, questions: Questions) -> Candidate:
    """Bind the copies of a scenario's calls, without the work between them."""
    assert isinstance(session, CopiesOnly)  # asked before

    def call(feed: Feed) -> Outputs:
        with session.copies_only():
            return session.decode(feed)

    return Candidate(name, scenario.prompts, call, lambda number: questions.feed(scenario, number))


def finishing(name: str, session: Session, scenario: Scenario, questions: Questions) -> Candidate:
    """Bind the making of masks at the picture's size, from the answers to one round of a scenario."""
    outputs = {key: np.array(value) for key, value in session.decode(questions.feed(scenario, 0)).items()}

    def call(frame: Any) -> None:
        for _ in segment(outputs, frame, questions.spec):
            pass

    return Candidate(name, scenario.prompts, call, lambda _: questions.frame)


Bound = tuple[Callable[[int], Any], Callable[[Any], Any]]


def _decode(session: Session, scenario: Scenario, questions: Questions) -> Bound:
    return lambda number: questions.feed(scenario, number), session.decode


def _new_image(session: Session, scenario: Scenario, questions: Questions) -> Bound:
    images = questions.images

    def call(asked: tuple[Feed, Feed]) -> Outputs:
        session.set_image(asked[0])
        return session.decode(asked[1])

    return lambda number: (images[number % len(images)], questions.feed(scenario, number)), call


def _refine(session: Session, scenario: Scenario, questions: Questions) -> Bound:
    refinement = Refinement(session, scenario, questions)
    return refinement.inputs, refinement.call


WORK: Mapping[str, Callable[[Session, Scenario, Questions], Bound]] = {
    "decode": _decode,
    "image": _new_image,
    "refine": _refine,
    "cold": _decode,  # asked once here, to see whether the artifact takes such prompts; measured in a fresh process
    "memory": _decode,
}
