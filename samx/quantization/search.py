"""Sensitivity: what INT8 costs each group of products in mask IoU, and which groups can be had for a budget.

Each group is judged alone, then all together; while the budget is missed, the group that cost most alone gives way:
from integer products to weights in 8 bits, from those to float. Nothing is drawn at random, so a search repeats itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samx.artifacts.commit import write_file
from samx.artifacts.strict_json import Count, Document, parse, plain, take
from samx.errors import ArtifactError, ParityError
from samx.progress import Progress, silent
from samx.quantization.calibration import CalibrationSet

if TYPE_CHECKING:
    from samx.exporters.base import Exported, ExportJob

LOW_PERCENTILE = 5
INTEGER_PRODUCTS, STORED_WEIGHTS = "integer", "stored"
FORMAT = 2


@dataclass(frozen=True)
class Plan:
    """Name the groups whose products are integer, and those whose weights are kept in 8 bits."""

    integer: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()

    def without(self, group: str) -> Plan:
        """Let a group give way by one step."""
        integer, stored = (tuple(one for one in part if one != group) for part in (self.integer, self.stored))
        return Plan(integer, (*stored, group) if group in self.integer else stored)


@dataclass(frozen=True)
class Budget:
    """Bound what INT8 may cost: the least mean and 5th percentile of mask IoU, the largest share of float's bytes."""

    mean_iou: float = 0.98
    p05_iou: float = 0.95
    size_share: float = 0.45

    def spent(self, mean: float, p05: float) -> float:
        """Return the largest share of an allowed loss that was lost; more than 1 misses the budget."""
        losses = (1 - mean, self.mean_iou), (1 - p05, self.p05_iou)
        return max(loss / max(1 - least, 1e-9) for loss, least in losses)


@dataclass(frozen=True)
class Judged:
    """Record what a plan's masks and files came to."""

    mean_iou: float
    p05_iou: float
    bytes: Count

    @classmethod
    def of(cls, mask_iou: Sequence[float], size: int) -> Judged:
        """Sum up the IoU of every mask."""
        return cls(float(np.mean(mask_iou)), float(np.percentile(mask_iou, LOW_PERCENTILE)), size)


@dataclass(frozen=True)
class Row:
    """Record what a group costs alone, and what it gains, against files in which no group is quantised."""

    group: str
    how: str  # INTEGER_PRODUCTS or STORED_WEIGHTS
    mean_iou_lost: float
    p05_iou_lost: float
    bytes_saved: int
    multiply_adds: int  # integer ones, in a call of the calibration's usual size


@dataclass(frozen=True)
class Found(Document):
    """Record the plan that meets the budget, what it came to, and the table that led to it."""

    plan: Plan
    judged: Judged
    float_bytes: int
    rows: tuple[Row, ...]
    gave_way: tuple[str, ...]  # in order; a group that gave way twice stands here twice


@dataclass(frozen=True)
class Task:
    """Describe what is searched: how a plan is judged, and everything that a judgement depends on."""

    judge: Callable[[Plan], Judged]  # of an empty plan too; against the float32 reference
    float_bytes: int  # of the files, all their numbers in float32
    multiply_adds: Mapping[str, int]  # of each group, if it were integer
    identity: Mapping[str, Any]  # hashes of files and calibration, the prompts that judge, libraries

    def key(self) -> str:
        """Identify what judgements can be taken over from."""
        facts = {"format": FORMAT, "identity": self.identity}
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


class SearchCache:
    """Keep judgements in a file as soon as they are known; another task's or a damaged file is begun anew."""

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key = path, key
        self.known: dict[str, Judged] = {} if path is None else _read(path, key)

    def judge(self, plan: Plan, judge: Callable[[Plan], Judged]) -> Judged:
        """Look a plan up, or judge it and write that down."""
        name = json.dumps([sorted(plan.integer), sorted(plan.stored)])
        if name not in self.known:
            self.known[name] = judge(plan)
            if self.path is not None:
                body = {"key": self.key, "judged": plain(self.known)}
                write_file(self.path, json.dumps(body, indent=1).encode())
        return self.known[name]


def search(
    task: Task, plan: Plan, budget: Budget, cache_file: Path | None = None, progress: Progress = silent
) -> Found:
    """Judge each of a plan's groups alone, then let the worst give way until the budget is met.

    Raises: ParityError when it cannot be: says the best that was found, and the group that costs most.
    """
    cache = SearchCache(cache_file, task.key())
    alone = [Plan(integer=(group,)) for group in plan.integer]
    alone += [Plan(stored=(group,)) for group in dict.fromkeys((*plan.integer, *plan.stored))]
    base = cache.judge(Plan(), task.judge)
    rows = []
    for number, one in enumerate(alone):
        progress(f"Judging {(one.integer or one.stored)[0]}, {_how(one)}", number, len(alone))
        rows.append(_row(task, one, cache.judge(one, task.judge), base))
    return _greedy(task, plan, budget, cache, tuple(rows), progress)


def _greedy(
    task: Task, plan: Plan, budget: Budget, cache: SearchCache, rows: tuple[Row, ...], progress: Progress
) -> Found:
    gave_way: list[str] = []
    best: tuple[float, Judged] | None = None
    while plan.integer or plan.stored:
        progress(f"Judging {len(plan.integer) + len(plan.stored)} groups together", len(rows), len(rows))
        judged = cache.judge(plan, task.judge)
        if judged.bytes > budget.size_share * task.float_bytes:
            break  # groups that give way make it larger still
        spent = budget.spent(judged.mean_iou, judged.p05_iou)
        if spent <= 1:
            return Found(plan, judged, task.float_bytes, rows, tuple(gave_way))
        best = (spent, judged) if best is None or spent < best[0] else best
        costliest = worst(plan, rows, budget)
        assert costliest is not None  # every group of a plan has a row
        gave_way.append(costliest.group)
        plan = plan.without(costliest.group)
    raise _missed(best[1] if best else None, budget, rows)


def _missed(best: Judged | None, budget: Budget, rows: Sequence[Row]) -> ParityError:
    found = "no file small enough"
    if best is not None:
        found = f"at best mean IoU {best.mean_iou:.4f}, 5th percentile {best.p05_iou:.4f}"
    costliest = max(rows, key=lambda row: _cost(row, budget), default=None)
    if costliest is not None:
        found += f"; '{costliest.group}' costs most, alone {costliest.mean_iou_lost:.4f} of mean IoU ({costliest.how})"
    return ParityError(
        "INT8 cannot meet the budget", found=found,
        expected=f"mean {budget.mean_iou:g}, 5th percentile {budget.p05_iou:g} in {budget.size_share:.0%} of the bytes",
        fix="Allow more, leave that group in float with --exclude, or export in float.",
    )  # fmt: skip


def worst(plan: Plan, rows: Sequence[Row], budget: Budget) -> Row | None:
    """Find the costliest group of a plan, as it is quantised there; of equals, the one that gains least."""
    using = {**dict.fromkeys(plan.stored, STORED_WEIGHTS), **dict.fromkeys(plan.integer, INTEGER_PRODUCTS)}
    there = [row for row in rows if using.get(row.group) == row.how]
    return max(
        there, key=lambda row: (_cost(row, budget), -row.multiply_adds, -row.bytes_saved, row.group), default=None
    )


def _cost(row: Row, budget: Budget) -> float:
    return budget.spent(1 - row.mean_iou_lost, 1 - row.p05_iou_lost)


def _row(task: Task, plan: Plan, judged: Judged, base: Judged) -> Row:
    group = (plan.integer or plan.stored)[0]
    count = task.multiply_adds.get(group, 0) if plan.integer else 0
    lost = base.mean_iou - judged.mean_iou, base.p05_iou - judged.p05_iou
    return Row(group, _how(plan), *lost, base.bytes - judged.bytes, count)


def _how(plan: Plan) -> str:
    return INTEGER_PRODUCTS if plan.integer else STORED_WEIGHTS


def _read(path: Path, key: str) -> dict[str, Judged]:
    shape = {"key": str, "judged": Mapping[str, Judged]}
    try:
        found = take(shape, parse(path.read_bytes(), "search cache"), "search cache")
    except (OSError, ArtifactError):
        return {}
    return found["judged"] if found["key"] == key else {}


@dataclass(frozen=True, eq=False)
class QuantisationJob:
    """Bring together the export in floating point, what calibrates it, and what INT8 may cost."""

    export: ExportJob
    exported: Exported
    directory: Path  # holds what the exporter wrote
    calibration: CalibrationSet
    budget: Budget
    excluded: tuple[str, ...] = ()  # groups that the user leaves in floating point
    notebook: Path | None = None  # where the search remembers what it judged
    progress: Progress = silent


@dataclass(frozen=True)
class Quantised:
    """Say what stands in the directory now, and how its groups of products were chosen."""

    exported: Exported
    found: Found
    arithmetic: dict[str, Any]  # what runs in integers, as far as this machine can tell
