"""Run a Core ML artifact with Core ML, on a Mac: on the compute units that were asked for, or not at all."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, SamxError, UnavailableError
from samx.formats.coreml.contract import Arrays, functions_of
from samx.formats.coreml.package import SINGLE_FUNCTION, PackageFiles, unpacked
from samx.formats.coreml.program import open_coremltools
from samx.models.session import Feed, Placement
from samx.models.spec import DecoderSpec
from samx.runtimes.base import check_device, refuse_threads
from samx.runtimes.coreml.compute_plan import (
    CPU,
    DEVICES,
    ENGINE,
    GPU,
    ComputePlan,
    device_word,
    is_mac,
    machine_facts,
    package_plan,
    require_prediction,
)
from samx.runtimes.coreml.packages import OpenedPackages, PackagesRuntime, open_encoder_package, open_packages

if TYPE_CHECKING:
    from coremltools.models import model as ct_model

PURPOSE = "running a Core ML package"
DEFAULT_DEVICE, FALLBACK = "cpu+ane", "cpu"
# Which processors Core ML may use, in coremltools' words, and which of them must take part.
UNITS: Mapping[str, str] = {
    DEFAULT_DEVICE: "CPU_AND_NE", "cpu+gpu": "CPU_AND_GPU", "all": "ALL", "coreml-cpu": "CPU_ONLY",
}  # fmt: skip
MUST: Mapping[str, str] = {DEFAULT_DEVICE: ENGINE, "cpu+gpu": GPU, "coreml-cpu": CPU}


def open_artifact(artifact: Artifact, device: str = DEFAULT_DEVICE, threads: int | None = None) -> CoreMLRuntime:
    """Open a verified artifact.

    Raises: UnavailableError on anything but a Mac that has the device and a macOS that runs the package;
    MissingExtraError; ArtifactError for a package that is no decoder of the artifact's spec; UsageError.
    """
    check_device(device, UNITS, "Core ML has no such compute units")
    refuse_threads(threads, "Core ML takes no number of threads")
    require_prediction(functions_of(artifact.manifest.options, str(artifact.path)).values())
    library = open_coremltools(PURPOSE)
    _require_device(device)
    return CoreMLRuntime(artifact.manifest.spec, open_packages(artifact), library, device)


def open_encoder(
    artifact: Artifact, device: str = DEFAULT_DEVICE, threads: int | None = None
) -> Callable[[Mapping[str, NDArray[Any]]], Feed]:
    """Open an artifact's own image encoder: a function from its inputs by name to its outputs by name.

    Raises: as open_artifact().
    """
    check_device(device, UNITS, "Core ML has no such compute units")
    refuse_threads(threads, "Core ML takes no number of threads")
    require_prediction([SINGLE_FUNCTION])
    library = open_coremltools(PURPOSE)
    _require_device(device)
    opened = open_encoder_package(artifact)
    predictor = Predictor(library, opened.files, UNITS[device])

    def encode(inputs: Mapping[str, NDArray[Any]]) -> Feed:
        feed: dict[str, Any] = dict(opened.feed(inputs))
        if opened.takes_image:
            feed["picture"] = Image.fromarray(feed["picture"][0].transpose(1, 2, 0).astype(np.uint8))
        return {name: value.astype(np.float32) for name, value in predictor(SINGLE_FUNCTION, feed).items()}

    return encode


def devices() -> list[str]:
    """Name the compute units that this Mac has; none elsewhere.

    Raises: MissingExtraError; UnavailableError when coremltools is too old.
    """
    if not is_mac():
        return []
    library = open_coremltools(PURPOSE)
    try:
        found = library.models.compute_device.MLComputeDevice.get_all_compute_devices()
    except (RuntimeError, AttributeError):  # a macOS, or a build of coremltools, that cannot tell also cannot run
        return []
    words = {device_word(device) for device in found}
    return [device for device in UNITS if MUST.get(device) in (None, *words)]


class CoreMLRuntime(PackagesRuntime):
    """Fill prompts up to the next function's rows and let Core ML predict."""

    def __init__(self, spec: DecoderSpec, opened: OpenedPackages, library: ModuleType, device: str) -> None:
        super().__init__(spec, opened)
        self._device, self._machine = device, machine_facts(library)
        self._predictors = {folder: Predictor(library, files, UNITS[device]) for folder, files in opened.files.items()}

    @property
    def plans(self) -> Mapping[str, ComputePlan]:
        """Core ML's plan of every function that ran, by package and function.

        Raises: UnavailableError when it makes none.
        """
        pairs = ((folder, predictor.plans) for folder, predictor in self._predictors.items())
        return {f"{folder}/{name}": plan for folder, plans in pairs for name, plan in plans.items()}

    def placement(self) -> Placement:
        """Count the operations of the functions that ran, by Core ML's plan.

        A decoder that leaves out the processor that was asked for counts as run on the CPU.
        """
        plans, must, decoder = self.plans, MUST.get(self._device), self._opened.image_place[0]
        operations: Counter[str] = Counter()
        for name, plan in plans.items():  # a prompt encoder of its own is small, and welcome to run anywhere
            taken = must is None or plan.dispatch[must] or not name.startswith(f"{decoder}/")
            operations[self._device if taken else FALLBACK] += plan.total
        details = {
            **self._machine,
            "compute_units": UNITS[self._device],
            "functions": list(plans),
            "planned": {device: sum(plan.dispatch[device] for plan in plans.values()) for device in DEVICES},
            "residency": {name: plan.residency for name, plan in plans.items()},
            "counted": "operations of the compute plan",
        }
        return Placement("coreml", self._device, dict(operations), details)

    def call(self, folder: str, function: str, feed: Arrays) -> Arrays:
        """Let Core ML predict.

        Raises: ArtifactError when Core ML does not load the function; SamxError when it does not run it.
        """
        return self._predictors[folder](function, feed)


class Predictor:
    """Call the functions of one package on given compute units; each is loaded when it is called."""

    def __init__(self, library: ModuleType, files: PackageFiles, compute_units: str) -> None:
        self._library, self._files, self._units = library, files, compute_units
        self._models: dict[str, ct_model.MLModel] = {}
        self._plans: dict[str, ComputePlan] = {}

    @property
    def plans(self) -> Mapping[str, ComputePlan]:
        """The compute plan of every function that was called.

        Raises: UnavailableError when Core ML makes none.
        """
        for name in self._models.keys() - self._plans.keys():
            self._plans[name] = package_plan(self._files, name, self._units)
        return {name: self._plans[name] for name in self._models}

    def __call__(self, function: str, feed: Arrays) -> Arrays:
        """Predict with arrays of exactly a function's shapes and types.

        Raises: ArtifactError when Core ML does not load the function; SamxError when it does not run it.
        """
        if function not in self._models:
            self._models[function] = self._load(function)
        try:
            found: Mapping[str, Any] = self._models[function].predict(feed)
        except RuntimeError as cause:
            raise SamxError(
                f"Core ML does not run function {function}", found=cause, fix="Please report this."
            ) from cause
        return {name: np.asarray(value) for name, value in found.items()}

    def _load(self, function: str) -> ct_model.MLModel:
        name = None if function == SINGLE_FUNCTION else function  # before macOS 15 no name may be given
        units = self._library.ComputeUnit[self._units]
        with warnings.catch_warnings(record=True) as said, unpacked(self._files) as path:
            warnings.simplefilter("always")
            model: ct_model.MLModel = self._library.models.MLModel(str(path), compute_units=units, function_name=name)
        try:
            model.get_compiled_model_path()
        except Exception as cause:  # coremltools has no class for it, and only warned before
            reasons = [" ".join(str(warning.message).split()) for warning in said]
            raise ArtifactError(
                f"Core ML does not load function {function}", found="; ".join(reasons) or cause,
                fix="Export it again, or update macOS.",
            ) from cause  # fmt: skip
        return model


def _require_device(device: str) -> None:
    found = devices()
    if device not in found:
        raise UnavailableError(
            f"this Mac has no '{device}'", found=", ".join(found) or "no device", fix="Choose another --device."
        )
