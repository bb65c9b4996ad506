"""Calls that are drawn anew in every run of the gate, from prompts whose answers are known.

Prompts do not see each other: a prompt's answer is the same alone and among any others. So the reference is asked about
each prompt once, and the gate may ask about any number of them, in any order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from samx.models.session import Session
from samx.validators.cases import CLICKS, ONE_POINT, POOL, Case
from samx.validators.metrics import Expected, Row, joined
from samx.validators.suite import ParitySuite

# Numbers of prompts a call, from and to: one of each pair in each run, but of MORE in some runs, in FEW's place. Beyond
# the last, nothing is asked. The large ones cost most of the time, so their least is drawn most often: whatever is
# wrong beyond a number shows there.
FEW, SOME, MORE, MANY = (4, 8), (9, 15), (16, 64), (65, 130)
MORE_SHARE = 0.25
SKEW = 16


@dataclass(frozen=True)
class Question:
    """Name a call with its right answer."""

    case: Case
    expected: Expected
    prompts: tuple[Row | None, ...]  # as CaseMetrics has them


@dataclass(frozen=True)
class Drawn:
    """Say what a run draws: the seed, how many calls one session is asked at least, and how to open another one."""

    seed: int
    calls: int = 0
    another: Callable[[], Session] | None = None  # with another number of threads
    sizes: tuple[int, ...] = ()  # numbers of prompts a call that every run asks


def planned(suite: ParitySuite) -> list[Question]:
    """Return the suite's cases as they are."""
    return [
        Question(case, expected, _counted(suite, [(i, row) for row in range(_prompts(case))]))
        for i, (case, expected) in enumerate(zip(suite.cases, suite.expected, strict=True))
    ]


def draw(suite: ParitySuite, rng: np.random.Generator, sizes: Sequence[int] = ()) -> list[Question]:
    """Return a run's calls in drawn order; every prompt of the suite is in one of them.

    The prompts of cases of POOL or more are asked among others, in calls of drawn sizes and of these.
    """
    single = [question for question in planned(suite) if _prompts(question.case) < POOL]
    pools = _pools(suite)
    large = [rows for rows in pools if any(_prompts(suite.cases[case]) >= POOL for case, _ in rows)]
    asked_for = [((large or pools)[0], count) for count in sizes]
    calls = [_call(suite, rows, count, rng) for rows, count in (*_sizes(pools, large, rng), *asked_for)]
    asked = [*single, *calls]
    return [asked[i] for i in rng.permutation(len(asked))]


def deal(suite: ParitySuite, questions: Sequence[Question], rng: np.random.Generator) -> list[list[Question]]:
    """Share calls out between two sessions: every second one of one prompt to the other, and one of three prompts.

    The prompt that is asked on two images stays with one session: what is kept by prompts shows only there.
    """
    single = [one for one in questions if _prompts(one.case) == 1 and not one.case.name.startswith(ONE_POINT)]
    theirs = single[1::2]
    names = {question.case.name for question in theirs}
    mine = [question for question in questions if question.case.name not in names]
    return [mine, [renamed(one) for one in [*theirs, _call(suite, _pools(suite)[0], 3, rng)]]]


def renamed(question: Question) -> Question:
    """Return a call under a name of its own, for the second session."""
    return replace(question, case=replace(question.case, name=f"{question.case.name}, other threads"))


def _prompts(case: Case) -> int:
    return len(case.prompts["point_labels"])


def _pools(suite: ParitySuite) -> list[list[Row]]:
    """Return the prompts of each image and number of tokens, the largest pool first."""
    pools: defaultdict[tuple[int, int], list[Row]] = defaultdict(list)
    for i, case in enumerate(suite.cases):
        prompts, points = case.prompts["point_labels"].shape
        pools[case.image, points] += [(i, row) for row in range(prompts)]
    return sorted(pools.values(), key=len, reverse=True)


def _sizes(
    pools: Sequence[list[Row]], large: Sequence[list[Row]], rng: np.random.Generator
) -> list[tuple[list[Row], int]]:
    """Choose pools and how many prompts to ask of each: of the large ones at least all."""
    first, *others = large or pools[:1]
    asked = [(first, max(len(first), _count(MANY, rng)))]
    asked += [(rows, max(len(rows), _count(SOME, rng))) for rows in others or pools[:1]]
    several = [rows for rows in pools if len(rows) > 1] or pools[:1]
    counts = [3, _count(MORE if rng.random() < MORE_SHARE else FEW, rng)]
    return asked + [(several[int(rng.integers(len(several)))], count) for count in counts]


def _count(bounds: tuple[int, int], rng: np.random.Generator) -> int:
    least, most = bounds
    if least < MORE[0]:
        return int(rng.integers(least, most + 1))
    return int(least * ((most + 1) / least) ** rng.random() ** SKEW)


def _call(suite: ParitySuite, rows: Sequence[Row], count: int, rng: np.random.Generator) -> Question:
    """Ask so many prompts of a pool in one call: each of them before any comes again, in drawn order."""
    turns = [rng.permutation(len(rows)) for _ in range(-(-count // len(rows)))]
    picked = [rows[i] for i in rng.permutation(np.concatenate(turns)[:count])]
    prompts = [{name: value[row] for name, value in suite.cases[case].prompts.items()} for case, row in picked]
    image, tokens = suite.cases[rows[0][0]].image, len(prompts[0]["point_labels"])
    together = {name: np.stack([one[name] for one in prompts]) for name in prompts[0]}
    name = f"{count}_prompts_of_{tokens}_tokens_on_image_{image}"
    expected = joined([suite.expected[case].rows([row]) for case, row in picked])
    return Question(Case(name, image, together), expected, _counted(suite, picked))


def _counted(suite: ParitySuite, rows: Sequence[Row]) -> tuple[Row | None, ...]:
    """Leave out the clicks at random: some give masks of four pixels, which would rule the mean; each one is judged."""
    return tuple(None if suite.cases[row[0]].name == CLICKS else row for row in rows)
