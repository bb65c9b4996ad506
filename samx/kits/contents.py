"""Everything that lies in a kit, by name."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import samx
from samx.artifacts.manifest import MANIFEST_NAME
from samx.artifacts.store import Artifact, manifest_bytes
from samx.benchmarks.scenarios import Workload
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
# Archives' bytes hang on their content alone: no times, no owners, names in order.
START = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
UNIX = 3
# What may be done with an entry, by the end of its name: folders, programs, everything else.
MODES: Mapping[str, int] = {"/": 0o040755, ".py": 0o100755, ".sh": 0o100755, "": 0o100644}


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


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Write an archive; a name that ends with '/' is a folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            archive.writestr(_entry(name), files[name])
    return buffer.getvalue()


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Write arrays as numpy.savez_compressed does."""
    return zipped({f"{name}.npy": _npy(value) for name, value in arrays.items()})


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, START)
    entry.create_system, entry.compress_type = UNIX, zipfile.ZIP_DEFLATED
    entry.external_attr = next(mode for ending, mode in MODES.items() if name.endswith(ending)) << 16
    return entry


def _npy(value: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(value), allow_pickle=False)
    return buffer.getvalue()
