"""What is measured: one line a scenario, and the prompts that it asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from samx.benchmarks.interleave import Effort
from samx.errors import UsageError
from samx.models.session import Feed
from samx.models.spec import LABELS, DecoderSpec
from samx.processing.frames import Frame
from samx.processing.prompts import PromptBatch, Table, point_grid

MOST_POINTS = 7  # of the changing number; with padding eight, what an export takes unless it is told otherwise
REFINEMENTS = 4  # clicks on one object, each with the mask that the one before it gave
GRID = 32  # points per side. Source: Meta's SamAutomaticMaskGenerator
MIN_SIDE, MAX_SIDE = 1 / 64, 1 / 2  # of boxes, as a share of the picture

Kind = Literal["decode", "image", "refine", "cold", "memory"]


@dataclass(frozen=True)
class Asked:
    """Hold what a scenario's prompts are made from."""

    rng: np.random.Generator  # another one each round
    frame: Frame
    prompts: int
    turn: int  # of the scenario's cycle


@dataclass(frozen=True)
class Scenario:
    """Say what one call is, and how many of them are measured at least."""

    name: str
    meaning: str
    kind: Kind
    prompts: int
    make: Callable[[Asked], PromptBatch]
    cycle: int = 1  # rounds until the prompts have the same number of points again
    least: int = 10
    warm_up_calls: int = 3
    quick: bool = False
    post_processing: bool = False  # is measured too
    transfer: bool = False  # the same

    def effort(self, seconds: float) -> Effort:
        """Say how long to measure."""
        return Effort(seconds, max(self.least, self.cycle), warm_up_calls=self.warm_up_calls)

    def batch(self, frame: Frame, seed: int, number: int) -> PromptBatch:
        """Make a round's prompts, the same for every artifact and every run with the same seed."""
        rng = np.random.default_rng([seed, NAMES.index(self.name), number])
        return self.make(Asked(rng, frame, self.prompts, number % self.cycle))

    def tokens(self, spec: DecoderSpec, frame: Frame) -> tuple[int, ...]:
        """Count a prompt's points in each round of the cycle, box corners and padding too."""
        feeds = [self.batch(frame, 0, number).feed(spec, frame) for number in range(self.cycle)]
        return tuple(feed["point_labels"].shape[1] for feed in feeds)


def _points(asked: Asked, count: int) -> PromptBatch:
    labels = np.full((asked.prompts, count), float(LABELS["foreground"]))
    return PromptBatch(asked.rng.uniform(0, _extent(asked), (asked.prompts, count, 2)), labels)


def _boxes(asked: Asked) -> PromptBatch:
    sides = asked.rng.uniform(MIN_SIDE, MAX_SIDE, (asked.prompts, 2)) * _extent(asked)
    corners = asked.rng.uniform(0, 1, (asked.prompts, 2)) * (_extent(asked) - sides)
    nothing = np.zeros((asked.prompts, 0))
    return PromptBatch(np.zeros((asked.prompts, 0, 2)), nothing, np.hstack([corners, corners + sides]))


def _extent(asked: Asked) -> Table:
    return np.array([asked.frame.width_px, asked.frame.height_px], np.float64)


def _click(asked: Asked) -> PromptBatch:
    return _points(asked, 1)


def _one_more(asked: Asked) -> PromptBatch:
    return _points(asked, asked.turn + 1)


def _grid(asked: Asked) -> PromptBatch:
    return point_grid(GRID, asked.frame)


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("click", "one click on an image that is set", "decode", 1, _click, quick=True, post_processing=True,
             transfer=True),
    Scenario("box", "one box on an image that is set", "decode", 1, _boxes, quick=True),
    Scenario("image", "a new image, and one click on it", "image", 1, _click),
    Scenario("points", f"1 to {MOST_POINTS} points, another number in every call", "decode", 1, _one_more,
             cycle=MOST_POINTS, least=10 * MOST_POINTS),
    Scenario("refine", f"{REFINEMENTS} clicks on an object, each with the mask before it", "refine", 1, _one_more,
             cycle=REFINEMENTS, least=10 * REFINEMENTS),
    Scenario("batch8", "8 clicks a call", "decode", 8, _click, quick=True, post_processing=True, transfer=True),
    Scenario("batch64", "64 clicks a call", "decode", 64, _click, transfer=True),
    Scenario("batch256", "256 clicks a call", "decode", 256, _click, least=6, warm_up_calls=1),
    Scenario("everything", f"the automatic mode's grid of {GRID} x {GRID} clicks, one call", "decode", GRID**2, _grid,
             least=3, warm_up_calls=1),
    Scenario("cold", "a fresh process: import, load, first image and click; its files may be in the system's cache",
             "cold", 1, _click, quick=True),
    Scenario("memory", "most memory that a fresh process holds while it decodes 256 clicks a call, Python included",
             "memory", 256, _click, least=3),
)  # fmt: skip
NAMES = [scenario.name for scenario in SCENARIOS]
BY_NAME: Mapping[str, Scenario] = {scenario.name: scenario for scenario in SCENARIOS}


def chosen(names: tuple[str, ...] | None, quick: bool) -> tuple[Scenario, ...]:
    """Pick scenarios: those that are named, or the quick ones, or all.

    Raises: UsageError for a name that none has.
    """
    unknown = [name for name in names or () if name not in BY_NAME]
    if unknown:
        raise UsageError("unknown scenario", found=", ".join(unknown), expected=", ".join(NAMES))
    if names:
        return tuple(scenario for scenario in SCENARIOS if scenario.name in names)
    return tuple(scenario for scenario in SCENARIOS if scenario.quick or not quick)


@dataclass(frozen=True)
class Questions:
    """Hold what every artifact is asked: images by their features, and prompts from a seed."""

    spec: DecoderSpec
    images: tuple[Feed, ...]
    source: str  # of the images
    seed: int

    @property
    def frame(self) -> Frame:
        """Take pictures to be square and of the decoder's own size."""
        return Frame.of(self.spec, self.spec.image_size, self.spec.image_size)

    def batch(self, scenario: Scenario, number: int) -> PromptBatch:
        """Give a round's prompts."""
        return scenario.batch(self.frame, self.seed, number)

    def feed(self, scenario: Scenario, number: int) -> Feed:
        """Give a round's prompts as the decoder takes them."""
        return self.batch(scenario, number).feed(self.spec, self.frame)

    def tokens(self, scenario: Scenario) -> tuple[int, ...]:
        """Count a prompt's points in each round of a scenario's cycle, box corners and padding too."""
        return scenario.tokens(self.spec, self.frame)
