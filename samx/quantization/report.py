"""Int8Report: everything that is known about an INT8 export, as one JSON file of the artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samx.artifacts.commit import write_file
from samx.artifacts.strict_json import plain
from samx.errors import ParityError
from samx.quantization.search import Budget, Quantised, Row, worst
from samx.quantization.verdict import Verdict


@dataclass(frozen=True)
class Int8Report:
    """Record the search's table, the verdict on held-out prompts, and what INT8 gains here."""

    calibration: Mapping[str, Any]
    budget: Budget
    quantised: Quantised
    verdict: Verdict
    speed: tuple[Mapping[str, Any], ...]  # measured here; empty with a reason
    no_speed: str | None = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """List what each group costs alone."""
        return self.quantised.found.rows

    def enforce(self) -> None:
        """Refuse an export that is not good enough.

        Raises: ParityError naming the worst group and what to exclude.
        """
        failures = self.verdict.failures()
        if failures:
            raise ParityError(
                "INT8 is not good enough on held-out prompts", found="; ".join(failures[:2]),
                fix=remedy(self.quantised, self.budget), report=self.verdict.parity,
            )  # fmt: skip

    def sentences(self) -> list[str]:
        """Return what people should know."""
        found, metrics = self.quantised.found, self.verdict.parity.metrics
        return [
            f"INT8: mean mask IoU {metrics['mask_iou_mean']:.4f}, 5th percentile {metrics['mask_iou_p05']:.4f} on "
            f"{len(self.verdict.parity.cases)} held-out prompts ({self.verdict.parity.suite['image_source']})",
            f"Size: {found.judged.bytes / found.float_bytes:.0%} of the float32 graph; "
            f"integers for {', '.join(found.plan.integer) or 'nothing'}; "
            f"8-bit weights for {', '.join(found.plan.stored) or 'nothing'}",
            self.verdict.accuracy.sentence(),
            *(str(measured["sentence"]) for measured in self.speed),
            *([self.no_speed] if self.no_speed else []),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        body = {
            "format": "samx-int8-report",
            "schema_version": 1,
            "calibration": self.calibration,
            "budget": self.budget,
            "search": self.quantised.found,
            "arithmetic": self.quantised.arithmetic,
            "held_out": self.verdict,
            "speed": {"measured": self.speed, "reason": self.no_speed},
            "sentences": self.sentences(),
        }
        return {name: plain(value) for name, value in body.items()}

    def save(self, path: Path) -> None:
        """Write the report whole or not at all."""
        write_file(path, (json.dumps(self.to_json(), indent=2, allow_nan=False, default=str) + "\n").encode())


def remedy(quantised: Quantised, budget: Budget) -> str:
    """Return what to leave in floating point, as a sentence."""
    row = worst(quantised.found.plan, quantised.found.rows, budget)
    if row is None:
        return "Nothing was written."
    return (
        f"Nothing was written. '{row.group}' costs most ({row.mean_iou_lost:.4f} of mean IoU alone, {row.how}): "
        f"leave it in floating point with --exclude '{row.group}', or calibrate on more images."
    )
