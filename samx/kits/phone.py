"""What Apple's own tools need of a Core ML artifact: whole packages, and a click for each in the types it declares."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.store import Artifact
from samx.benchmarks.scenarios import BY_NAME, Workload
from samx.formats.coreml.package import SINGLE_FUNCTION, PackageFiles
from samx.kits.contents import filled
from samx.kits.pyz import zipped
from samx.models.session import Feed, FloatArray
from samx.runtimes.coreml.packages import OpenedPackages, open_packages
from samx.validators.child import SUITE_ROLE
from samx.validators.suite import ParitySuite

INPUTS, PACKAGE = "inputs", ".mlpackage"
SEED = 0

Arrays = Mapping[str, NDArray[Any]]


def phone(artifact: Artifact, home: str) -> tuple[dict[str, bytes], dict[str, str]]:
    """Make the files that a phone needs beside the artifact, in the folder `home`, and the words of README.txt on them.

    Raises: MissingExtraError without coremltools; ArtifactError.
    """
    opened = open_packages(artifact)
    suite = ParitySuite.load(artifact.read(artifact.file_with_role(SUITE_ROLE)), f"{artifact.path}: parity suite")
    click = Workload(suite.spec, suite.images, suite.image_source, SEED).feed(BY_NAME["click"], 0)
    function, feeds = _clicks(opened, suite.images[0], click)
    inputs = {f"{INPUTS}/{name.removesuffix(PACKAGE)}.npz": _npz(feed) for name, feed in feeds.items()}
    # Core ML asks for the folder of weights, which no file of the artifact keeps alive where there are none.
    empty = [f"{home}/{name}/{of.weights_folder}/" for name, of in opened.files.items() if not _has_weights(of)]
    calls = [filled("phone_call", {"package": name, "stem": name.removesuffix(PACKAGE)}) for name in feeds]
    named = None if function == SINGLE_FUNCTION else function  # before macOS 15 no name may be given
    words = {"package": list(feeds)[-1], "function": repr(named), "calls": "".join(calls)}
    return {**inputs, **dict.fromkeys(empty, b"")}, words


def _clicks(opened: OpenedPackages, image: Feed, click: Feed) -> tuple[str, dict[str, Arrays]]:
    """Return the function that decodes a click, and each package's inputs: what another computes is drawn at random."""
    padded = opened.padding.padded(dict(click))
    function = opened.functions[padded["point_labels"].shape[1]]
    known = {**opened.contract.image(image), **padded, **_without_padding(padded, opened.contract.padding)}
    feeds: dict[str, Arrays] = {
        folder: {t.name: _value(known, t.name, t.shape).astype(t.array_type) for t in program.inputs(function)}
        for folder, program in opened.programs.items()
    }
    return function, feeds


def _has_weights(files: PackageFiles) -> bool:
    """Return whether the folder for weights holds a file."""
    return any(name.startswith(f"{files.weights_folder}/") for name in files.files)


def _value(known: Mapping[str, FloatArray], name: str, shape: tuple[int, ...]) -> FloatArray:
    drawn = np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)
    return known.get(name, drawn)


def _without_padding(prompts: Feed, padding: int) -> Feed:
    """Name the rows that are left without the padding, a click's second, as the apps do."""
    if not padding:
        return {}
    coords, labels = prompts["point_coords"], prompts["point_labels"]
    return {"points": np.delete(coords, 1, axis=1), "labels": np.delete(labels, 1, axis=1)}


def _npz(arrays: Arrays) -> bytes:
    """Write arrays as numpy.savez_compressed does, without a time."""
    return zipped({f"{name}.npy": _npy(value) for name, value in arrays.items()})


def _npy(value: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(value), allow_pickle=False)
    return buffer.getvalue()
