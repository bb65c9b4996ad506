"""Find out which operations float16 hurts: each group alone in half precision, and each group alone spared it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samx.demo import demo_checkpoint
from samx.errors import ParityError
from samx.extras import require
from samx.models.session import Session
from samx.progress import Progress, silent
from samx.validators.gate import run_gate
from samx.validators.metrics import bounds_for
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite

if TYPE_CHECKING:
    from samx.models.checkpoint import LoadedDecoder

PRECISION = "fp16"
ERRORS = ("mask_iou_mean", "mask_iou_case", "logit_error", "iou_prediction_error")
MOST_PROMPTS = 8  # of a case; larger ones repeat the same and would take minutes a group


def bisect(
    checkpoint: Path | None = None,
    family: str = "sam1",
    progress: Progress = silent,
    only: Collection[str] | None = None,
    decoder: str | None = None,
) -> dict[str, Any]:
    """Measure every group of operations (or `only` some) against PyTorch in float32, rounding after every operation.

    Raises: CheckpointError; MissingExtraError.
    """
    for library in ("torch", "safetensors"):
        require(library, "export", "bisection")
    from samx.models.checkpoint import load_checkpoint
    from samx.models.fast.precision import KEEP_FP32

    path = checkpoint or demo_checkpoint(family)
    loaded = load_checkpoint(path, decoder=decoder)
    progress("Asking the PyTorch reference")
    suite = _suite(loaded, path)
    groups = _groups(loaded)

    @cache
    def error(islands: frozenset[str]) -> dict[str, Any]:
        return _worst(run_gate(_half(loaded, islands), suite, bounds_for(PRECISION), level="graph"))

    rows = []
    asked = [group for group in groups if only is None or group in only]
    for i, group in enumerate(asked):
        progress(f"{group} ({i + 1} of {len(asked)})")
        alone, spared = error(frozenset(groups) - {group}), error(frozenset(KEEP_FP32) | {group})
        rows.append({"group": group, "alone": alone, "spared": spared})
    return {
        "checkpoint": loaded.name, "islands": sorted(KEEP_FP32), "everything": error(frozenset()),
        "exported": error(frozenset(KEEP_FP32)), "rows": rows,
    }  # fmt: skip


def _worst(report: ParityReport) -> dict[str, Any]:
    """Return what an arrangement of precisions costs, over all cases.

    Raises: ParityError when nothing could be compared.
    """
    if not report.metrics:
        raise ParityError(report.summary(), fix="Please report this.", report=report)
    worst = report.worst()
    return {**{name: worst[name][0] for name in ERRORS}, "passed": report.passed}


def _suite(loaded: LoadedDecoder, path: Path) -> ParitySuite:
    from samx.demo.model import demo_images, is_demo
    from samx.runtimes.torch import reference_session
    from samx.validators.cases import COUNTED, default_frames, parity_cases, synthetic_images

    spec = loaded.spec
    images = demo_images(path, spec) if is_demo(path) else synthetic_images(spec)
    cases = parity_cases(spec, frames=default_frames(spec, len(images)))
    few: Sequence[Any] = [
        case
        for case in cases
        if len(case.prompts["point_labels"]) <= MOST_PROMPTS and not case.name.startswith(COUNTED)
    ]
    return ParitySuite.build(reference_session(loaded, spec), images, few, "demo scenes" if is_demo(path) else None)


def _groups(loaded: LoadedDecoder) -> list[str]:
    from samx.models.checkpoint import build_reference
    from samx.models.fast.decoder import FastDecoder
    from samx.models.fast.precision import groups_of

    return groups_of(FastDecoder(build_reference(loaded)))


def _half(loaded: LoadedDecoder, islands: Collection[str]) -> Session:
    """Make the decoder as the exporter for engines makes it: with padded points."""
    from samx.models.checkpoint import build_reference
    from samx.models.fast.decoder import FastDecoder
    from samx.models.fast.precision import set_precision
    from samx.runtimes.torch import TorchRuntime

    return TorchRuntime(set_precision(FastDecoder(build_reference(loaded), padded_points=True), islands))
