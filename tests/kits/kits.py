"""Kits of toy decoders, unpacked, and devices that have little installed."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import subprocess
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from engine_toys import MODEL, SPEC, toy_masks, toy_onnx, toy_plan
from numpy.typing import NDArray

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, Evidence, Manifest
from samx.commands.bundle import FOLDER, bundle
from samx.formats.tensorrt.plan import DECODER
from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import DecoderSpec
from samx.validators.cases import Case
from samx.validators.child import SUITE_ROLE
from samx.validators.gate import run_gate
from samx.validators.metrics import bounds_for
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite

CHECKPOINT = CheckpointEntry("toy.pth", "sam1", "5" * 64, 3)
SUITE, REPORT = "parity_cases.npz", "parity_report.json"
GRAPH: Mapping[str, tuple[str, bytes]] = {MODEL: ("decoder", toy_onnx())}
# What ONNX Runtime is, with what it asks for, in a folder of packages.
ONNX_RUNTIME = ("numpy", "onnxruntime", "google", "flatbuffers", "packaging")


class Toy:
    """Compute what the toy graph computes, plus an error."""

    def __init__(self, error: float = 0.0, spec: DecoderSpec = SPEC) -> None:
        self.spec, self._error = spec, np.float32(error)
        self._image: NDArray[Any] = np.zeros(1, np.float32)

    def set_image(self, image: Feed) -> None:
        """Keep the image."""
        self._image = image["image_embeddings"]

    def decode(self, prompts: Feed) -> Outputs:
        """Add up coordinates, labels and the image's mean."""
        found = toy_masks(self._image, prompts["point_coords"], prompts["point_labels"])
        return {name: value + self._error for name, value in found.items()}

    def placement(self) -> Placement:
        """Say that NumPy did it."""
        return Placement("toy", "cpu", {"cpu": 1}, {})


def cases(most_points: int = 3, extent: float = 16) -> list[Case]:
    """Draw a few prompts: one, five, points alone and with padding."""
    random = np.random.default_rng(1)
    shapes = [(1, 1), (1, 2), (5, most_points)]
    return [
        Case(
            f"case_{n}x{points}", i % 2,
            {
                "point_coords": random.uniform(0, extent, (n, points, 2)).astype(np.float32),
                "point_labels": random.choice([-1, 0, 1], (n, points)).astype(np.float32),
            },
        )
        for i, (n, points) in enumerate(shapes)
    ]  # fmt: skip


def suite(extent: float = 16) -> ParitySuite:
    """Ask the toy itself, with points in a part of the frame."""
    return ParitySuite.build(Toy(), cases=cases(extent=extent))


def passed_report(asked: ParitySuite, precision: str = "fp32") -> ParityReport:
    """Judge a second toy."""
    return run_gate(Toy(), asked, bounds_for(precision), level="graph")


def artifact(
    path: Path, files: Mapping[str, tuple[str, bytes]] = GRAPH, target: str = "onnx",
    options: Mapping[str, Any] = {}, asked: ParitySuite | None = None, report: ParityReport | None = None,
    evidence: Mapping[str, Any] | None = {}, precision: str = "fp32",
) -> Path:  # fmt: skip
    """Write an artifact with parity evidence, as an export does. `evidence` changes the entry; None leaves it out."""
    asked = asked or suite()
    report = report or passed_report(asked, precision)
    entry = Evidence("graph", REPORT, report.passed, "onnxruntime", "cpu", report.created)
    shown = () if evidence is None else (replace(entry, **evidence),)
    with staging(path, overwrite=False) as directory:
        for name, (_, data) in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(data)
        asked.save(directory / SUITE)
        report.save(directory / REPORT)
        roles = {name: role for name, (role, _) in files.items()} | {SUITE: SUITE_ROLE, REPORT: "parity_report"}
        seal(directory, Manifest(target, precision, SPEC, CHECKPOINT, options, evidence=shown), roles)
    return path


def engine_artifact(path: Path, target: str) -> Path:
    """Write an artifact that an engine is built from."""
    plan = toy_plan(target)
    files = {MODEL: ("decoder", toy_onnx()), DECODER.plan_file: (DECODER.plan_role, plan.to_bytes())}
    return artifact(path, files, target, {"slots": True, "points": [1, 2, 3], "prompts": [1, 2, 4]})


def kit_of(path: Path) -> Path:
    """Bundle an artifact and unpack the kit beside it."""
    zipped = path.with_suffix(".zip")
    bundle(path, zipped)
    with zipfile.ZipFile(io.BytesIO(zipped.read_bytes())) as archive:
        archive.extractall(path.with_suffix(".kit"))
    return path.with_suffix(".kit") / FOLDER


def copied(kit: Path, to: Path) -> Path:
    """Copy a kit, to be damaged."""
    return Path(shutil.copytree(kit, to / "kit"))


@cache
def bare_python(*libraries: str) -> str:
    """Make an environment that has these libraries of this one, with what they ask for, and nothing else."""
    folder = Path(tempfile.mkdtemp(prefix="samx-bare-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for found in {found for name in libraries for found in Path(sysconfig.get_path("purelib")).glob(f"{name}*")}:
        (site / found.name).symlink_to(found)
    return str(next(folder.glob("bin/python")))


def on_device(
    kit: Path, *arguments: str, libraries: tuple[str, ...] = ONNX_RUNTIME, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a kit's samx.pyz, as a device does that has these libraries alone."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [bare_python(*libraries), "samx.pyz", *arguments], cwd=kit, capture_output=True, text=True, check=False,
        timeout=240, env={**kept, "COLUMNS": "200", **variables}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
