"""What is measured: one line a scenario, the prompts of each round, and what one timed call of each kind does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from samx.benchmarks.interleave import Candidate, Effort
from samx.errors import UsageError
from samx.models.session import Feed, Outputs, Session
from samx.models.spec import LABELS, DecoderSpec
from samx.processing.frames import Frame
from samx.processing.postprocess import best_indices, segment
from samx.processing.prompts import Point, Prompt, PromptBatch, Table, point_grid
from samx.runtimes.base import CopiesOnly

MOST_POINTS = 7  # of the changing number; with padding eight, what an export takes unless it is told otherwise
REFINEMENTS = 4  # clicks on one object, each with the mask that the one before it gave
GRID = 32  # points per side. Source: Meta's SamAutomaticMaskGenerator
MIN_SIDE, MAX_SIDE = 1 / 64, 1 / 2  # of boxes, as a share of the picture

Kind = Literal["decode", "image", "refine", "cold", "memory", "encode", "photo"]
Make = Callable[[np.random.Generator, Frame, int, int], PromptBatch]  # of frame, prompts, turn of the cycle


@dataclass(frozen=True)
class Scenario:
    """What one call is, and how many of them are measured at least."""

    name: str
    meaning: str
    kind: Kind
    prompts: int
    make: Make
    cycle: int = 1  # rounds until the prompts have the same number of points again
    least: int = 10
    warm_up_calls: int = 3
    quick: bool = False
    post_processing: bool = False  # is measured too
    transfer: bool = False  # the same

    def effort(self, seconds: float) -> Effort:
        """Return how long to measure."""
        return Effort(seconds, max(self.least, self.cycle), warm_up_calls=self.warm_up_calls)


class OnDevice:
    """A session whose prompts and answers can stay where it computes, and with `resident` do."""

    resident = False

    def prepare(self, prompts: Feed) -> Any:
        """Bring prompts to the device."""
        raise NotImplementedError

    def run(self, prepared: Any) -> Any:
        """Decode prompts that are on the device; what comes out stays there."""
        raise NotImplementedError


def _extent(frame: Frame) -> Table:
    return np.array([frame.width_px, frame.height_px], np.float64)


def _clicks(rng: np.random.Generator, frame: Frame, prompts: int, turn: int) -> PromptBatch:
    """Draw one point a prompt, and one more with every turn."""
    labels = np.full((prompts, turn + 1), float(LABELS["foreground"]))
    return PromptBatch(rng.uniform(0, _extent(frame), (prompts, turn + 1, 2)), labels)


def _boxes(rng: np.random.Generator, frame: Frame, prompts: int, turn: int) -> PromptBatch:
    sides = rng.uniform(MIN_SIDE, MAX_SIDE, (prompts, 2)) * _extent(frame)
    corners = rng.uniform(0, 1, (prompts, 2)) * (_extent(frame) - sides)
    nothing = np.zeros((prompts, 0))
    return PromptBatch(np.zeros((prompts, 0, 2)), nothing, np.hstack([corners, corners + sides]))


def _grid(rng: np.random.Generator, frame: Frame, prompts: int, turn: int) -> PromptBatch:
    return point_grid(GRID, frame)


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("click", "one click on an image that is set", "decode", 1, _clicks, quick=True, post_processing=True,
             transfer=True),
    Scenario("box", "one box on an image that is set", "decode", 1, _boxes, quick=True),
    Scenario("image", "a new image, and one click on it", "image", 1, _clicks),
    Scenario("points", f"1 to {MOST_POINTS} points, another number in every call", "decode", 1, _clicks,
             cycle=MOST_POINTS, least=10 * MOST_POINTS),
    Scenario("refine", f"{REFINEMENTS} clicks on an object, each with the mask before it", "refine", 1, _clicks,
             cycle=REFINEMENTS, least=10 * REFINEMENTS),
    Scenario("batch8", "8 clicks a call", "decode", 8, _clicks, quick=True, post_processing=True, transfer=True),
    Scenario("batch64", "64 clicks a call", "decode", 64, _clicks, transfer=True),
    Scenario("batch256", "256 clicks a call", "decode", 256, _clicks, least=6, warm_up_calls=1),
    Scenario("everything", f"the automatic mode's grid of {GRID} x {GRID} clicks, one call", "decode", GRID**2, _grid,
             least=3, warm_up_calls=1),
    Scenario("cold", "a fresh process: import, load, first image and click; its files may be in the system's cache",
             "cold", 1, _clicks, quick=True),
    Scenario("memory", "most memory that a fresh process holds while it decodes 256 clicks a call, Python included",
             "memory", 256, _clicks, least=3),
    Scenario("encode", "one picture through the image encoder, resized before", "encode", 1, _clicks, least=3,
             warm_up_calls=1),
    Scenario("photo", "a picture of 12 megapixels in memory, to one click's mask of its size: encoder and decoder",
             "photo", 1, _clicks, least=3, warm_up_calls=1),
)  # fmt: skip
NAMES = [scenario.name for scenario in SCENARIOS]
BY_NAME: Mapping[str, Scenario] = {scenario.name: scenario for scenario in SCENARIOS}


def chosen(names: tuple[str, ...] | None, quick: bool) -> tuple[Scenario, ...]:
    """Return the scenarios that are named, or the quick ones, or all.

    Raises: UsageError for a name that none has.
    """
    unknown = [name for name in names or () if name not in BY_NAME]
    if unknown:
        raise UsageError("unknown scenario", found=", ".join(unknown), expected=", ".join(NAMES))
    if names:
        return tuple(scenario for scenario in SCENARIOS if scenario.name in names)
    return tuple(scenario for scenario in SCENARIOS if scenario.quick or not quick)


@dataclass(frozen=True)
class Workload:
    """What every artifact is asked: images by their features, and prompts from a seed."""

    spec: DecoderSpec
    images: tuple[Feed, ...]
    source: str  # of the images
    seed: int

    @property
    def frame(self) -> Frame:
        """Return the frame of pictures that are square and of the decoder's own size."""
        return Frame.of(self.spec, self.spec.image_size, self.spec.image_size)

    def batch(self, scenario: Scenario, number: int) -> PromptBatch:
        """Return a round's prompts, the same for every artifact and every run with the same seed."""
        rng = np.random.default_rng([self.seed, NAMES.index(scenario.name), number])
        return scenario.make(rng, self.frame, scenario.prompts, number % scenario.cycle)

    def feed(self, scenario: Scenario, number: int) -> Feed:
        """Return a round's prompts as the decoder takes them."""
        return self.batch(scenario, number).feed(self.spec, self.frame)

    def tokens(self, scenario: Scenario) -> tuple[int, ...]:
        """Count a prompt's points in each round of a scenario's cycle, box corners and padding too."""
        return tuple(self.feed(scenario, number)["point_labels"].shape[1] for number in range(scenario.cycle))


def candidate(name: str, session: Session, scenario: Scenario, workload: Workload) -> Candidate:
    """Bind a scenario's steady calls to an opened artifact."""
    if scenario.kind == "refine":
        return _refining(name, session, scenario, workload)
    if scenario.kind != "image":
        return _decoding(name, session, scenario, workload)
    images = workload.images

    def call(asked: tuple[Feed, Feed]) -> Outputs:
        session.set_image(asked[0])
        return session.decode(asked[1])

    return Candidate(
        name, scenario.prompts, call, lambda number: (images[number % len(images)], workload.feed(scenario, number))
    )


def _decoding(name: str, session: Session, scenario: Scenario, workload: Workload) -> Candidate:
    if isinstance(session, OnDevice) and session.resident:
        prepare = session.prepare
        return Candidate(name, scenario.prompts, session.run, lambda number: prepare(workload.feed(scenario, number)))
    return Candidate(name, scenario.prompts, session.decode, lambda number: workload.feed(scenario, number))


def _refining(name: str, session: Session, scenario: Scenario, workload: Workload) -> Candidate:
    """Feed each answer's best mask back as a prompt, with one more click; then begin with another object."""
    last: Outputs = {}
    spec, limit = workload.spec, workload.spec.rules.mask_limit

    def inputs(number: int) -> Feed:
        step = number % scenario.cycle
        clicks = workload.batch(scenario, number - step + scenario.cycle - 1)
        points: list[Point] = [(float(x), float(y)) for x, y in clicks.points[0][: step + 1]]
        mask = last["low_res_masks"][0, best_indices(last, spec)[0]].clip(-limit, limit) if step and last else None
        last.clear()  # freed here, so that the call does not pay for it
        return PromptBatch.of([Prompt(points, [1] * len(points), mask=mask)]).feed(workload.spec, workload.frame)

    return Candidate(name, scenario.prompts, lambda feed: last.update(session.decode(feed)), inputs)


def copying(name: str, session: Session, scenario: Scenario, workload: Workload) -> Candidate:
    """Bind the copies of a scenario's calls, without the work between them."""
    assert isinstance(session, CopiesOnly)  # asked before

    def call(feed: Feed) -> Outputs:
        with session.copies_only():
            return session.decode(feed)

    return Candidate(name, scenario.prompts, call, lambda number: workload.feed(scenario, number))


def finishing(name: str, session: Session, scenario: Scenario, workload: Workload) -> Candidate:
    """Bind the making of masks at the picture's size, from the answers to one round of a scenario."""
    outputs = {key: np.array(value) for key, value in session.decode(workload.feed(scenario, 0)).items()}

    def call(frame: Any) -> None:
        for _ in segment(outputs, frame, workload.spec):
            pass

    return Candidate(name, scenario.prompts, call, lambda _: workload.frame)
