"""What Apple's own tools need of a Core ML artifact: whole packages, and a click for each in the types it declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.store import Artifact
from samx.formats.coreml.package import PackageFiles
from samx.models.session import Feed, FloatArray
from samx.runtimes.coreml.packages import open_packages

FOLDER = "inputs"
SEED = 0


@dataclass(frozen=True)
class Phone:
    """Hold a click's function, inputs by file name, and folders that no file of the artifact keeps alive."""

    function: str | None = None
    inputs: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    folders: tuple[str, ...] = ()


def phone(artifact: Artifact, image: Feed, click: Feed) -> Phone:
    """Make the inputs of each package. What another package would compute is drawn at random.

    Raises: MissingExtraError without coremltools; ArtifactError.
    """
    opened = open_packages(artifact)
    filled = opened.padding.padded(dict(click))
    function = opened.functions[filled["point_labels"].shape[1]]
    known = {**opened.contract.image(image), **filled, **_without_padding(filled, opened.contract.padding)}
    inputs: dict[str, dict[str, NDArray[Any]]] = {}
    for folder, program in opened.programs.items():
        made = {t.name: _value(known, t.name, t.shape).astype(t.array_type) for t in program.inputs(function)}
        inputs[f"{FOLDER}/{folder.removesuffix('.mlpackage')}.npz"] = made
    empty = tuple(f"{name}/{files.weights_folder}" for name, files in opened.files.items() if not _has_weights(files))
    return Phone(function, inputs, empty)


def _has_weights(files: PackageFiles) -> bool:
    """Tell whether the folder for weights, which Core ML asks for, holds a file."""
    return any(name.startswith(f"{files.weights_folder}/") for name in files.files)


def _value(known: Mapping[str, FloatArray], name: str, shape: tuple[int, ...]) -> FloatArray:
    drawn = np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)
    return known.get(name, drawn)


def _without_padding(prompts: Feed, padding: int) -> Feed:
    """Give the apps' own names to the rows that are left when the padding is taken out: it is a click's second."""
    if not padding:
        return {}
    coords, labels = prompts["point_coords"], prompts["point_labels"]
    return {"points": np.delete(coords, 1, axis=1), "labels": np.delete(labels, 1, axis=1)}
