"""Running the decoder with Core ML, on a Mac."""

from __future__ import annotations

import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from samx.kits.runner.kit import RUNTIMES, UNAVAILABLE, Arrays, Json, Kit, KitError, library


class CoreML:
    """Let Core ML predict with the function for a prompt's number of points, package after package."""

    def __init__(self, kit: Kit, place: Json) -> None:
        macos = [int(number) for number in re.findall(r"\d+", platform.mac_ver()[0])]
        if platform.system() != "Darwin" or macos < place["macos"]:
            needs = ".".join(map(str, place["macos"]))
            raise KitError(UNAVAILABLE, f"this needs a Mac with macOS {needs} or newer; for a phone, see README.txt")
        self.ct, self.kit, self.place, self.bytes = library(place), kit, place, None
        self.units = self.ct.ComputeUnit[place["units"]]
        self.models: dict[tuple[str, str], Any] = {}
        self.image: Arrays = {}

    def set_image(self, image: Arrays) -> None:
        """Keep the image's tensors."""
        self.image = image

    def decode(self, prompts: Arrays) -> Arrays:
        """Give each package in turn what it takes of the image, the prompts and the packages before it."""
        function = self.place["functions"][str(prompts["point_labels"].shape[1])]
        values = {**self.image, **prompts, **_without_padding(prompts)}
        for step in self.place["steps"]:
            feed = {name: values[source].astype(kind) for name, (source, kind) in step["inputs"].items()}
            found = self._model(step["package"], function).predict(feed)
            values |= {target: np.asarray(found[name]) for name, target in step["outputs"].items()}
        return {name: values[name].astype(np.float32) for name in self.kit.says["tensors"]["outputs"]}

    def placement(self) -> tuple[Json, Json]:
        """Count operations by Core ML's plan; a decoder without the processor that was asked for ran on the CPU."""
        plans = {f"{package}:{function}": self._plan(package, function) for package, function in self.models}
        decoder, must, found = self.place["steps"][-1]["package"], self.place["must"], dict[str, int]()
        for name, plan in plans.items():
            taken = must is None or must in plan or not name.startswith(f"{decoder}:")
            where = self.place["device"] if taken else "cpu"
            found[where] = found.get(where, 0) + sum(plan.values())
        details = {"coremltools": self.ct.__version__, "macos": platform.mac_ver()[0], "planned": plans}
        return found, {**details, "counted": "operations of the compute plan"}

    def _model(self, package: str, function: str) -> Any:
        name = None if function == "main" else function  # before macOS 15 no name may be given
        if (package, function) not in self.models:
            path = str(self.kit.folder / package)
            made = self.ct.models.MLModel(path, compute_units=self.units, function_name=name)
            self.models[package, function] = made
        return self.models[package, function]

    def _plan(self, package: str, function: str) -> dict[str, int]:
        """Count a function's operations by planned processor; only the default function has a plan, so make it that."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            copy = Path(shutil.copytree(self.kit.folder / package, Path(folder, "model.mlpackage")))
            file = next(copy.rglob("*.mlmodel"))
            spec = self.ct.proto.Model_pb2.Model.FromString(file.read_bytes())
            if spec.description.functions:
                spec.description.defaultFunctionName = function
            file.write_bytes(spec.SerializeToString())
            compiled = self.ct.models.utils.compile_model(str(copy), str(Path(folder, "model.mlmodelc")))
            plan = self.ct.models.compute_plan.MLComputePlan.load_from_path(compiled, self.units)
            counts: dict[str, int] = {}
            for operation in _operations(plan.model_structure.program.functions[function].block):
                usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
                kind = "unplanned" if usage is None else type(usage.preferred_compute_device).__name__
                word = self.place["words"].get(kind, kind)
                counts[word] = counts.get(word, 0) + 1
            return counts


def _operations(block: Any) -> Iterator[Any]:
    """Give operations, those of inner blocks too; stored weights are none."""
    for operation in block.operations:
        name = operation.operator_name.split(".")[-1]
        if name != "const" and not name.startswith("constexpr_"):
            yield operation
        for inner in operation.blocks:
            yield from _operations(inner)


def _without_padding(prompts: Arrays) -> Arrays:
    """Leave out the padding row, for packages that add it themselves."""
    at = np.flatnonzero(prompts["point_labels"][0] == -1)[:1]
    return {"points": np.delete(prompts["point_coords"], at, 1), "labels": np.delete(prompts["point_labels"], at, 1)}


RUNTIMES["coreml"] = CoreML
