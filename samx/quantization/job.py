"""What a target's quantiser is asked for, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samx.progress import Progress, silent
from samx.quantization.calibration import CalibrationSet
from samx.quantization.search import Budget, Found

if TYPE_CHECKING:
    from samx.exporters.base import Exported, ExportJob


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
