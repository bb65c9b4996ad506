"""Run a Core ML artifact with Core ML, on a Mac: on the compute units that were asked for, or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from samx.artifacts.store import Artifact
from samx.errors import UnavailableError, UsageError
from samx.formats.coreml.contract import Arrays
from samx.formats.coreml.functions import Functions
from samx.formats.coreml.library import open_coremltools
from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import DecoderSpec
from samx.runtimes.base import DEFAULT_CHUNK, Runtime
from samx.runtimes.coreml.compute_plan import device_word
from samx.runtimes.coreml.mac import is_mac, machine_facts
from samx.runtimes.coreml.packages import OpenedPackages, open_packages
from samx.runtimes.coreml.plan_report import CPU, DEVICES, ENGINE, GPU, ComputePlan
from samx.runtimes.coreml.predictor import Predictor, require_prediction

PURPOSE = "running a Core ML package"
DEFAULT_DEVICE, FALLBACK = "cpu+ane", "cpu"


@dataclass(frozen=True)
class Units:
    """Say which processors Core ML may use, and which of them must take part."""

    name: str  # coremltools' own
    must: str | None = None


UNITS: Mapping[str, Units] = {
    DEFAULT_DEVICE: Units("CPU_AND_NE", ENGINE),
    "cpu+gpu": Units("CPU_AND_GPU", GPU),
    "all": Units("ALL"),
    "coreml-cpu": Units("CPU_ONLY", CPU),
}


def open_artifact(
    artifact: Artifact, device: str = DEFAULT_DEVICE, threads: int | None = None, chunk: int = DEFAULT_CHUNK
) -> CoreMLRuntime:
    """Open a verified artifact.

    Raises: UnavailableError on anything but a Mac that has the device and a macOS that runs the package;
    MissingExtraError; ArtifactError for a package that is no decoder of the artifact's spec; UsageError.
    """
    if device not in UNITS:
        raise UnavailableError("Core ML has no such compute units", found=f"'{device}'", expected=" or ".join(UNITS))
    if threads is not None:
        raise UsageError("Core ML takes no number of threads", found=f"--threads {threads}", fix="Leave it out.")
    functions = Functions.of(artifact.manifest.options, str(artifact.path))
    require_prediction(tuple(functions.by_rows.values()))
    library = open_coremltools(PURPOSE)
    _require_device(device)
    opened = open_packages(artifact)
    predictors = {
        folder: Predictor(library, files, opened.programs[folder], UNITS[device].name)
        for folder, files in opened.files.items()
    }
    return CoreMLRuntime(artifact.manifest.spec, opened, predictors, device, machine_facts(library), chunk)


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
    return [device for device, units in UNITS.items() if units.must is None or units.must in words]


class CoreMLRuntime(Runtime):
    """Fill prompts up to the next function's rows and let Core ML predict."""

    def __init__(
        self, spec: DecoderSpec, opened: OpenedPackages, predictors: Mapping[str, Predictor], device: str,
        machine: Mapping[str, str], chunk: int = DEFAULT_CHUNK,
    ) -> None:  # fmt: skip
        super().__init__(spec, chunk, opened.padded)
        self._opened, self._predictors = opened, predictors
        self._device, self._machine = device, machine
        self._image: Arrays = {}

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
        plans, must, decoder = self.plans, UNITS[self._device].must, self._opened.image_place[0]
        operations: Counter[str] = Counter()
        for name, plan in plans.items():  # a prompt encoder of its own is small, and welcome to run anywhere
            taken = must is None or plan.dispatch[must] or not name.startswith(f"{decoder}/")
            operations[self._device if taken else FALLBACK] += plan.total
        details = {
            **self._machine,
            "compute_units": UNITS[self._device].name,
            "functions": list(plans),
            "planned": {device: sum(plan.dispatch[device] for plan in plans.values()) for device in DEVICES},
            "residency": {name: asdict(plan.residency()) for name, plan in plans.items()},
            "counted": "operations of the compute plan",
        }
        return Placement("coreml", self._device, dict(operations), details)

    def _set_image(self, image: Feed) -> None:
        folder, function = self._opened.image_place
        self._image = self._predictors[folder].typed(function, self._opened.contract.image(image))

    def _decode(self, prompts: Feed) -> Outputs:
        function = self._opened.functions.name(prompts["point_labels"].shape[1])
        found = self._opened.contract.decode(self._predict, function, self._image, prompts)
        return {tensor.name: found[tensor.name].astype(np.float32) for tensor in self.spec.outputs}

    def _predict(self, folder: str, function: str, feed: Arrays) -> Arrays:
        return self._predictors[folder](function, feed)


def _require_device(device: str) -> None:
    found = devices()
    if device not in found:
        raise UnavailableError(
            f"this Mac has no '{device}'", found=", ".join(found) or "no device", fix="Choose another --device."
        )
