"""Everything that lies in a kit, by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import samx
from samx.artifacts.manifest import MANIFEST_NAME
from samx.artifacts.store import Artifact, manifest_bytes
from samx.benchmarks.scenarios import Workload
from samx.kits.archive import npz
from samx.kits.blank import blank_report
from samx.kits.phone import Phone, phone
from samx.kits.places import FOLDER, Place
from samx.kits.program import program
from samx.kits.questions import (
    SCENARIOS,
    SEED,
    latency_rules,
    parity_arrays,
    parity_rules,
    prompt_arrays,
)
from samx.kits.readme import readme
from samx.models.spec import DecoderSpec
from samx.validators.child import SUITE_ROLE
from samx.validators.suite import ParitySuite

FORMAT, SCHEMA_VERSION = "samx-kit", 1
KIT, KIT_HASH, RUNNER, README = "kit.json", "kit.json.sha256", "run.py", "README.txt"
PARITY, PROMPTS = "parity.npz", "prompts.npz"
COREML = "coreml"  # whose packages a phone runs too


def contents(artifact: Artifact, devices: Mapping[str, Place]) -> dict[str, bytes]:
    """Make every file of a kit that runs on these devices; a name that ends with '/' is a folder.

    Raises: ArtifactError; MissingExtraError where reading the artifact needs a library.
    """
    name, manifest = artifact.path.resolve().name, artifact.manifest
    suite = ParitySuite.load(artifact.read(artifact.file_with_role(SUITE_ROLE)), f"{artifact.path}: parity suite")
    questions = Workload(manifest.spec, suite.images, f"parity suite of {name}: {suite.image_source}", SEED)
    apple = _phone(artifact, questions)
    files = {
        **{f"{FOLDER}/{file}": artifact.read(file) for file in manifest.files},
        f"{FOLDER}/{MANIFEST_NAME}": manifest_bytes(artifact.path),
        PARITY: npz(parity_arrays(suite)),
        PROMPTS: npz(prompt_arrays(questions)),
        **{name: npz(feed) for name, feed in apple.inputs.items()},
        RUNNER: program({place["runtime"] for place in devices.values()}).encode(),
        README: readme(name, manifest, len(suite.cases), devices, apple.function).encode(),
    }
    says = {
        "format": FORMAT, "schema_version": SCHEMA_VERSION, "name": name, "samx": samx.__version__,
        "tools": dict(manifest.tools), "devices": dict(devices), "tensors": _tensors(manifest.spec),
        "parity": parity_rules(manifest, suite), "latency": latency_rules(),
        "report": blank_report(name, artifact, questions),
    }  # fmt: skip
    return {**files, **_described(says, files), **{f"{FOLDER}/{name}/": b"" for name in apple.folders}}


def _described(says: dict[str, Any], files: dict[str, bytes]) -> dict[str, bytes]:
    """Write kit.json with the hash of every other file, and its own beside it."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    text = (json.dumps({**says, "files": hashes}, indent=1, allow_nan=False) + "\n").encode()
    return {KIT: text, KIT_HASH: f"{hashlib.sha256(text).hexdigest()}  {KIT}\n".encode()}


def _phone(artifact: Artifact, questions: Workload) -> Phone:
    if artifact.manifest.target != COREML:
        return Phone()
    return phone(artifact, questions.images[0], questions.feed(SCENARIOS[0], 0))


def _tensors(spec: DecoderSpec) -> dict[str, dict[str, list[int | str]]]:
    borders = {"prompts": spec.prompt_inputs, "outputs": spec.outputs}
    return {name: {tensor.name: list(tensor.shape) for tensor in tensors} for name, tensors in borders.items()}
