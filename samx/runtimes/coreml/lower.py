"""Let a Mac compile an artifact's packages: evidence `lowered`, and where Core ML means to run each operation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from samx.artifacts.commit import write_file
from samx.artifacts.manifest import Evidence, Lowered, Manifest, utc_now
from samx.artifacts.store import Artifact
from samx.formats.coreml.contract import contract_of
from samx.formats.coreml.functions import Functions
from samx.formats.coreml.package import read_package
from samx.runtimes.coreml.compute_plan import ComputePlan, package_plan
from samx.runtimes.coreml.mac import require_prediction

PLAN_FILE, PLAN_ROLE = "compute_plan.json", "compute_plan"
UNITS = "CPU_AND_NE"  # of coremltools' ComputeUnit: what the packages are made for

Progress = Callable[[str], None]


def lower(directory: Path, manifest: Manifest, progress: Progress = lambda _: None) -> Lowered:
    """Compile every function of every package and write down the compute plans; the manifest lists what is there.

    Raises: UnavailableError off a Mac; ArtifactError for what Core ML does not take; WriteError.
    """
    require_prediction(tuple(Functions.of(manifest.options, str(directory)).by_rows.values()))
    plans = list(_plans(Artifact(directory, manifest), progress))
    report = {
        "format": "samx-compute-plan", "schema_version": 1, "level": "lowered",
        "residency": {f"{folder}/{plan.function}": plan.residency()["operations"] for folder, plan in plans},
        "plans": [{"package": folder, **plan.to_json()} for folder, plan in plans],
    }  # fmt: skip
    write_file(directory / PLAN_FILE, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    machine = plans[-1][1].machine
    device = f"{machine['chip']}, macOS {machine['macos']}"
    evidence = Evidence("lowered", PLAN_FILE, True, "Core ML compiler", device, utc_now())
    return Lowered({PLAN_FILE: PLAN_ROLE}, evidence, {"coremltools": machine["coremltools"], "macos": machine["macos"]})


def _plans(artifact: Artifact, progress: Progress) -> Iterator[tuple[str, ComputePlan]]:
    options, where = artifact.manifest.options, str(artifact.path)
    for signature in contract_of(options, where).signatures(artifact.manifest.spec):
        files = read_package(artifact, signature.folder)
        for function in Functions.of(options, where).by_rows.values():
            progress(f"Compiling {signature.folder}, {function}")
            yield signature.folder, package_plan(files, function, UNITS)
