"""Sensitivity: what INT8 costs each group of products in mask IoU, and which groups can be had for a budget.

Each group is judged alone, then all together; while the budget is missed, the group that cost most alone gives way:
from integer products to weights in 8 bits, from those to float. Nothing is drawn at random, so a search repeats itself.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samx.artifacts.commit import write_file
from samx.artifacts.strict_json import Count, Document, parse, plain, take
from samx.errors import ArtifactError, ParityError, UsageError
from samx.files import REPORT_CAP_BYTES, read_file
from samx.models.session import Feed, Session
from samx.progress import Progress, silent
from samx.quantization.calibration import CalibrationSet
from samx.validators.cases import Case
from samx.validators.metrics import BoolArray, mask_iou

if TYPE_CHECKING:
    from samx.exporters.base import Exported, ExportJob

LOW_PERCENTILE = 5
INTEGER_PRODUCTS, STORED_WEIGHTS = "integer", "stored"
FORMAT = 2
JUDGED_EVERY = 2  # of the prompts that calibrate; others, held out, judge the result
Ranges = Mapping[str, float]  # largest magnitudes, by the name of the tensor or of the weight that it meets


@dataclass(frozen=True)
class Plan:
    """Name the groups whose products are integer, and those whose weights are kept in 8 bits."""

    integer: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()

    @classmethod
    def of(cls, groups: Iterable[str], integer: Collection[str]) -> Plan:
        """Take integer products where these groups have them, and 8-bit weights elsewhere."""
        found = tuple(groups)
        stored = tuple(group for group in found if group not in integer)
        return cls(tuple(group for group in found if group in integer), stored)

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

    def met(self, judged: Judged) -> bool:
        """Return whether masks lose no more than is allowed."""
        return self.spent(judged.mean_iou, judged.p05_iou) <= 1


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


@dataclass(frozen=True, eq=False)
class QuantisationJob:
    """Bring together the export in floating point, what calibrates it, and what INT8 may cost."""

    export: ExportJob
    exported: Exported
    directory: Path  # holds what the exporter wrote
    calibration: CalibrationSet
    budget: Budget
    excluded: tuple[str, ...] = ()  # groups that the user leaves in floating point
    cache_file: Path | None = None  # of what the search judged
    progress: Progress = silent


@dataclass(frozen=True)
class Quantised:
    """Say what stands in the directory now, and how its groups of products were chosen."""

    exported: Exported
    found: Found
    arithmetic: dict[str, Any]  # what runs in integers, as far as this machine can tell


class Trial:
    """Judge plans by how their masks agree with PyTorch's."""

    float_bytes: int  # of the files, all their numbers in float32
    multiply_adds: Counter[str]  # of each group, if it were integer
    identity: Mapping[str, Any]  # everything that a judgement depends on

    def judge(self, plan: Plan) -> Judged:
        """Compare a plan's masks with the reference's."""
        raise NotImplementedError

    def key(self) -> str:
        """Identify what judgements can be taken over from."""
        facts = {"format": FORMAT, "identity": self.identity}
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


class DecoderTrial(Trial):
    """Judge a decoder's plans on some of the prompts that calibrate."""

    def __init__(self, job: QuantisationJob, cases: Sequence[Case], **libraries: str) -> None:
        """Ask the reference. What derives from this sets `float_bytes`, and counts `multiply_adds`."""
        from samx.runtimes.torch import reference_session

        self.job, self.cases = job, cases[::JUDGED_EVERY]
        self.multiply_adds = Counter()
        files = {name: hashlib.sha256((job.directory / name).read_bytes()).hexdigest() for name in job.exported.files}
        self.identity = {
            "files": files, "calibration": job.calibration.sha256, "prompts": f"every {JUDGED_EVERY}nd",
            "target": job.export.target, "libraries": {**job.exported.tools, **libraries},
        }  # fmt: skip
        job.progress("Asking the PyTorch reference about calibration prompts")
        reference = reference_session(job.export.loaded, job.export.spec)
        self.expected = list(masks(reference, job.calibration.images, self.cases))

    def open(self, plan: Plan) -> tuple[Session, int]:
        """Return a session of a plan's files, and their bytes."""
        raise NotImplementedError

    def judge(self, plan: Plan) -> Judged:
        """Compare a plan's masks with the reference's."""
        session, size = self.open(plan)
        pairs = zip(masks(session, self.job.calibration.images, self.cases), self.expected, strict=True)
        return Judged.of([float(iou) for ours, theirs in pairs for iou in mask_iou(ours, theirs).ravel()], size)


class SearchCache:
    """Keep judgements in a file as soon as they are known; another search's or a damaged file is begun anew."""

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
    trial: Trial, plan: Plan, budget: Budget, cache_file: Path | None = None, progress: Progress = silent
) -> Found:
    """Judge each of a plan's groups alone, then let the worst give way until the budget is met.

    Raises: ParityError when it cannot be: says the best that was found, and the group that costs most.
    """
    cache = SearchCache(cache_file, trial.key())
    alone = [Plan(integer=(group,)) for group in plan.integer]
    alone += [Plan(stored=(group,)) for group in dict.fromkeys((*plan.integer, *plan.stored))]
    return _greedy(trial, plan, budget, cache, _rows(trial, alone, cache, progress), progress)


def search_halving(
    trial: Trial, plan: Plan, budget: Budget, cache_file: Path | None = None, progress: Progress = silent
) -> Found:
    """Judge a plan's integer groups together; where that misses the budget, find how few of the costliest give way.

    Each judgement may take minutes: with n groups there are n + log2(n), and one where nothing has to give way. What is
    found misses the budget where the cheapest group alone does.
    """
    cache = SearchCache(cache_file, trial.key())
    progress(f"Judging {len(plan.integer)} groups together")
    judged = cache.judge(plan, trial.judge)
    if budget.met(judged):
        return Found(plan, judged, trial.float_bytes, (), ())
    rows = _rows(trial, [Plan(integer=(group,)) for group in plan.integer], cache, progress)
    costliest = [row.group for row in sorted(rows, key=lambda row: _cost(row, budget), reverse=True)]
    fewest, most = 1, len(costliest) - 1
    while fewest < most:
        middle = (fewest + most) // 2
        progress(f"Judging with {middle} of {len(costliest)} groups in float")
        met = budget.met(cache.judge(_in_float(plan, costliest[:middle]), trial.judge))
        fewest, most = (fewest, middle) if met else (middle + 1, most)
    gave_way = tuple(costliest[:fewest])
    found = _in_float(plan, gave_way)
    return Found(found, cache.judge(found, trial.judge), trial.float_bytes, rows, gave_way)


def _in_float(plan: Plan, groups: Collection[str]) -> Plan:
    return Plan(integer=tuple(group for group in plan.integer if group not in groups))


def _rows(trial: Trial, alone: Sequence[Plan], cache: SearchCache, progress: Progress) -> tuple[Row, ...]:
    """Judge each group alone, against nothing in eight bits."""
    base = cache.judge(Plan(), trial.judge)
    rows = []
    for number, one in enumerate(alone):
        progress(f"Judging {(one.integer or one.stored)[0]}, {_how(one)}", number, len(alone))
        rows.append(_row(trial, one, cache.judge(one, trial.judge), base))
    return tuple(rows)


def _greedy(
    trial: Trial, plan: Plan, budget: Budget, cache: SearchCache, rows: tuple[Row, ...], progress: Progress
) -> Found:
    gave_way: list[str] = []
    best: tuple[float, Judged] | None = None
    while plan.integer or plan.stored:
        progress(f"Judging {len(plan.integer) + len(plan.stored)} groups together", len(rows), len(rows))
        judged = cache.judge(plan, trial.judge)
        if judged.bytes > budget.size_share * trial.float_bytes:
            break  # groups that give way make it larger still
        spent = budget.spent(judged.mean_iou, judged.p05_iou)
        if spent <= 1:
            return Found(plan, judged, trial.float_bytes, rows, tuple(gave_way))
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


def _row(trial: Trial, plan: Plan, judged: Judged, base: Judged) -> Row:
    group = (plan.integer or plan.stored)[0]
    count = trial.multiply_adds[group] if plan.integer else 0
    lost = base.mean_iou - judged.mean_iou, base.p05_iou - judged.p05_iou
    return Row(group, _how(plan), *lost, base.bytes - judged.bytes, count)


def _how(plan: Plan) -> str:
    return INTEGER_PRODUCTS if plan.integer else STORED_WEIGHTS


def _read(path: Path, key: str) -> dict[str, Judged]:
    shape = {"key": str, "judged": Mapping[str, Judged]}
    try:
        data = read_file(path, REPORT_CAP_BYTES, "search cache", ArtifactError)
        found = take(shape, parse(data, "search cache"), "search cache")
    except ArtifactError:
        return {}
    return found["judged"] if found["key"] == key else {}


def masks(session: Session, images: Sequence[Feed], cases: Sequence[Case]) -> Iterator[BoolArray]:
    """Decode cases, image by image. Shapes: -> (N, M, H*W) each, in the order of their images."""
    held: int | None = None
    for case in sorted(cases, key=lambda case: case.image):
        if case.image != held:
            session.set_image(images[case.image])
            held = case.image
        logits = session.decode(case.prompts)["low_res_masks"]
        yield (logits > session.spec.mask_threshold).reshape(*logits.shape[:2], -1)


def check_groups(groups: Collection[str], known: Collection[str]) -> None:
    """Refuse groups that nothing can be done with.

    Raises: UsageError.
    """
    unknown = sorted(set(groups).difference(known))
    if unknown:
        raise UsageError("unknown group of products", found=", ".join(unknown), expected=" or ".join(known))
