"""Artifacts that are whole and proven, of a model that is none, and a session that stands in for its runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, Evidence, Manifest
from samx.extras import require
from samx.models.session import Feed, Outputs, Placement, Session
from samx.models.spec import DecoderSpec, sam1_spec
from samx.validators.gate import run_gate
from samx.validators.metrics import BOUNDS
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite

SMALL = sam1_spec(image_size=128)
ROLES = {"decoder.onnx": "decoder", "parity_cases.npz": "parity_cases", "parity_report.json": "parity_report"}
CREATED = "2026-01-01T00:00:00+00:00"


class ConeSession:
    """Draw a cone around each prompt's mean point; `shift` makes it wrong."""

    def __init__(self, spec: DecoderSpec, shift: float = 0.0) -> None:
        self.spec, self.shift = spec, shift

    def set_image(self, image: Feed) -> None:
        pass

    def decode(self, prompts: Feed) -> Outputs:
        n, size, masks = len(prompts["point_coords"]), self.spec.mask_size, self.spec.masks_out
        padded = np.pad(prompts["point_coords"], ((0, 0), (0, 1), (0, 0)))
        centre = padded.mean(axis=1)[:, None, None, None] / self.spec.image_size * size
        y, x = np.mgrid[:size, :size]
        distance = np.hypot(x - centre[..., 0], y - centre[..., 1]) * 40 / size
        radius = np.arange(3, 3 + masks)[None, :, None, None] + self.shift
        return {
            "low_res_masks": (radius - distance).astype(np.float32),
            "iou_predictions": np.tile(np.linspace(0.5, 0.9, masks, dtype=np.float32), (n, 1)),
        }

    def placement(self) -> Placement:
        library = require("onnxruntime", "onnxruntime", "a test")
        return Placement("onnxruntime", "cpu", {"cpu": 1}, {"onnxruntime": library.__version__})


def zeros(spec: DecoderSpec, value: float = 0.0) -> Feed:
    """Make an image of one value."""
    return {t.name: np.full(tuple(int(d) for d in t.shape), value, np.float32) for t in spec.image_inputs}


def toy_suite(spec: DecoderSpec = SMALL) -> ParitySuite:
    return ParitySuite.build(ConeSession(spec))


def toy_parity(spec: DecoderSpec = SMALL, *, shift: float = 0.0) -> ParityReport:
    """Run the real gate: passed, or failed where the candidate is shifted."""
    return run_gate(ConeSession(spec, shift), toy_suite(spec), BOUNDS["fp32"], level="graph", device="cpu")


def toy_artifact(
    path: Path, spec: DecoderSpec = SMALL, *, report: ParityReport | None = None, checkpoint: str = "toy",
    evidence: bool = True,
) -> Path:  # fmt: skip
    """Write an artifact that this machine proved right, or with the report that is given."""
    report = report or toy_parity(spec)
    shown = (Evidence("graph", "parity_report.json", report.passed, "onnxruntime", "cpu", CREATED),)
    with staging(path, overwrite=False) as directory:
        (directory / "decoder.onnx").write_bytes(b"no model")
        toy_suite(spec).save(directory / "parity_cases.npz")
        report.save(directory / "parity_report.json")
        entry = CheckpointEntry(checkpoint, "toy", checkpoint[0].encode().hex()[0] * 64, 3)
        manifest = Manifest("onnx", "fp32", spec, entry, {"form": "absorbed"}, evidence=shown if evidence else ())
        seal(directory, manifest, ROLES)
    return path


def opener(session: Session, before: Callable[[], Any] = lambda: None) -> Callable[..., Session]:
    """Stand in for a runtime's open_artifact()."""

    def open_artifact(artifact: Any, device: str = "cpu", threads: int | None = None) -> Session:
        before()
        return session

    return open_artifact
