"""AccuracyReport: what was measured of every object, the means, and the verdict; JSON first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import samx
from samx.artifacts.manifest import utc_now
from samx.artifacts.strict_json import Count, Document, Positive, Time
from samx.evaluation.labels import told

if TYPE_CHECKING:
    from rich.table import Table

FORMAT, SCHEMA_VERSION = "samx-accuracy", 1
METRICS = ("iou", "dice", "boundary_iou")
# A point of a hundred: more than float16 costs, and what people take for a difference between two models.
MOST_DROP = 0.01
# Of the two sides' masks with each other, what INT8 is held to; colours in the wrong order gave 0.87 on masks that were
# as good, because neither side's labels hang on colours.
LEAST_AGREEMENT = 0.98
DIFFERS = (
    "But its masks are others than PyTorch's (mean IoU {:.4f} with them): 'samx validate' tells whether it is right."
)
# Below so many px. Source: COCO's evaluation, 32 and 96 px a side.
SIZES: Mapping[str, float] = {"small": 32**2, "medium": 96**2, "large": float("inf")}
Group = dict[str, Any]
MOST_CLASSES = 12  # that are listed for people, those that lost most


@dataclass(frozen=True)
class Answer:
    """Record how good a mask is, and what the model itself thought of it.

    oracle_iou: the best of all masks of the prompt; iou is of the one with the highest predicted IoU.
    """

    iou: float
    dice: float
    boundary_iou: float
    oracle_iou: float
    predicted_iou: float


@dataclass(frozen=True)
class ObjectRow:
    """Record one object, and the answers of both sides.

    agreement: IoU of the two sides' masks with each other.
    """

    picture: str
    object: str
    category: str
    area_px: Positive
    agreement: float
    pytorch: Answer
    artifact: Answer

    @property
    def drop(self) -> float:
        """Return how much IoU the artifact lost."""
        return self.pytorch.iou - self.artifact.iou

    @property
    def size(self) -> str:
        """Return COCO's word for its size."""
        return next(name for name, below in SIZES.items() if self.area_px < below)


@dataclass(frozen=True)
class AccuracyReport(Document):
    """Keep a measurement. A drop is what the artifact lost against PyTorch; below 0, it gained."""

    HEADER = {"format": FORMAT, "schema_version": SCHEMA_VERSION}
    DERIVED = ("passed", "overall", "by_size", "by_category")
    ROUNDING = 1e-9

    artifact: Mapping[str, Any]  # path, target, precision, checkpoint and its hash, device, whose encoder ran
    labels: Mapping[str, Any]  # kind, source, pictures
    prompt: str
    seed: int
    max_drop: float
    left_out: Mapping[str, Count]  # why: how many
    objects: tuple[ObjectRow, ...]
    samx: str = samx.__version__
    created: Time = field(default_factory=utc_now)

    @property
    def overall(self) -> Group:
        """Return the means over all objects."""
        return grouped(self.objects)

    @property
    def by_size(self) -> dict[str, Group]:
        """Return the means of each size that there is."""
        return _by(self.objects, lambda row: row.size, list(SIZES))

    @property
    def by_category(self) -> dict[str, Group]:
        """Return the means of each class, by name."""
        return _by(self.objects, lambda row: row.category, sorted({row.category for row in self.objects}))

    @property
    def passed(self) -> bool:
        """Whether there are objects, and no metric's mean fell by more than max_drop. NaN does not pass."""
        return bool(self.objects) and all(drop <= self.max_drop for drop in self.overall["drop"].values())

    @property
    def verdict(self) -> str:
        """Return the outcome as a sentence."""
        drops = self.overall["drop"]
        worst = max(drops, key=lambda name: drops[name])
        words = f"mean {NAMES[worst]} fell by {drops[worst]:.4f}" if drops[worst] > 0 else "no mean fell"
        return f"{'passed' if self.passed else 'FAILED'}: {words}; at most {self.max_drop:g} may be lost"

    @property
    def differs(self) -> str:
        """Say so where an artifact is as good as PyTorch, and draws other masks all the same; else nothing."""
        agreement = self.overall["agreement"]
        return DIFFERS.format(agreement) if self.passed and agreement < LEAST_AGREEMENT else ""

    def summary(self) -> str:
        """Return the verdict, a doubt about it, and what was left out, as sentences."""
        left_out = told(Counter(self.left_out))
        sentences = [f"{self.verdict}.", self.differs, f"Left out: {left_out}." if left_out else ""]
        return " ".join(filter(None, sentences))


NAMES: Mapping[str, str] = {"iou": "IoU", "dice": "Dice", "boundary_iou": "boundary IoU", "oracle_iou": "oracle IoU"}


def grouped(rows: Sequence[ObjectRow]) -> Group:
    """Return the means of some objects: of each side, and what was lost between them."""
    sides = {side: _means([getattr(row, side) for row in rows]) for side in ("pytorch", "artifact")}
    drop = {name: sides["pytorch"][name] - sides["artifact"][name] for name in METRICS}
    agreement = float(np.mean([row.agreement for row in rows])) if rows else 0.0
    return {"objects": len(rows), **sides, "drop": drop, "agreement": agreement}


def _means(answers: Sequence[Answer]) -> dict[str, float]:
    names = (*METRICS, "oracle_iou")
    table = np.array([[asdict(answer)[name] for name in names] for answer in answers]).reshape(-1, len(names))
    return dict(zip(names, table.mean(axis=0).tolist(), strict=True)) if len(table) else dict.fromkeys(names, 0.0)


def _by(rows: Sequence[ObjectRow], key: Callable[[ObjectRow], str], names: Sequence[str]) -> dict[str, Group]:
    sorted_in = {name: [row for row in rows if key(row) == name] for name in names}
    return {name: grouped(found) for name, found in sorted_in.items() if found}


def to_tables(report: AccuracyReport) -> Iterator[Table]:
    """Draw the means for people: of all objects and of each size, then of the classes that lost most."""
    pictures, count = report.labels["pictures"], len(report.objects)
    title = f"{report.artifact['name']}: {count} objects, {pictures} pictures, {report.prompt}; PyTorch / artifact"
    yield _table(title, {"all": report.overall, **report.by_size})
    classes = sorted(report.by_category.items(), key=lambda item: -item[1]["drop"]["iou"])
    if len(classes) > 1:
        more = f", {MOST_CLASSES} of {len(classes)}" if len(classes) > MOST_CLASSES else ""
        yield _table(f"By class, most lost first{more}", dict(classes[:MOST_CLASSES]))


def _table(title: str, groups: Mapping[str, Group]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", title=escape(title))
    for head in ("objects", *(NAMES[metric] for metric in METRICS)):
        table.add_column(head, justify="right")
    for name, group in groups.items():
        cells = (f"{group['pytorch'][metric]:.4f} / {group['artifact'][metric]:.4f}" for metric in METRICS)
        table.add_row(escape(name), str(group["objects"]), *cells)
    return table
