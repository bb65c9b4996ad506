"""A package opened by Core ML on this Mac: its functions, loaded when they are called, and the plans of those."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samx.errors import ArtifactError, SamxError
from samx.formats.coreml.functions import SINGLE_FUNCTION
from samx.formats.coreml.package import PackageFiles, unpacked
from samx.formats.coreml.program import Program
from samx.runtimes.coreml.compute_plan import package_plan
from samx.runtimes.coreml.mac import MULTIFUNCTION_MACOS, PLAN_MACOS, require_macos
from samx.runtimes.coreml.plan_report import ComputePlan

if TYPE_CHECKING:
    from coremltools.models import model as ct_model

INSTEAD = "'samx validate DIR' (device cpu) evaluates the saved program here."
Arrays = Mapping[str, NDArray[Any]]


def require_prediction(functions: Collection[str]) -> None:
    """Check that Core ML can run a package with these functions here, and say where.

    Raises: UnavailableError.
    """
    require_macos("a prediction by Core ML", PLAN_MACOS, INSTEAD)
    if set(functions) != {SINGLE_FUNCTION}:
        require_macos("a package of several functions", MULTIFUNCTION_MACOS, f"Export with --ios 16. {INSTEAD}")


class Predictor:
    """Call the functions of one package on given compute units."""

    def __init__(self, library: ModuleType, files: PackageFiles, program: Program, compute_units: str) -> None:
        self._library, self._files, self._program, self._units = library, files, program, compute_units
        self._models: dict[str, ct_model.MLModel] = {}
        self._plans: dict[str, ComputePlan] = {}

    @property
    def plans(self) -> Mapping[str, ComputePlan]:
        """Give the compute plan of every function that was called.

        Raises: UnavailableError when Core ML makes none.
        """
        for name in self._models.keys() - self._plans.keys():
            self._plans[name] = package_plan(self._files, name, self._units)
        return {name: self._plans[name] for name in self._models}

    def typed(self, function: str, feed: Arrays) -> dict[str, NDArray[Any]]:
        """Give arrays the types that the package declares for a function's inputs."""
        types = {tensor.name: tensor.array_type for tensor in self._program.inputs(function)}
        return {name: value.astype(types[name], copy=False) for name, value in feed.items()}

    def __call__(self, function: str, feed: Arrays) -> dict[str, NDArray[Any]]:
        """Predict with arrays of exactly a function's shapes.

        Raises: ArtifactError when Core ML does not load the function; SamxError when it does not run it.
        """
        model = self._loaded(function)
        try:
            found: Mapping[str, Any] = model.predict(self.typed(function, feed))
        except RuntimeError as cause:
            raise SamxError(
                f"Core ML does not run function {function}", found=cause, fix="Please report this."
            ) from cause
        return {name: np.asarray(value) for name, value in found.items()}

    def _loaded(self, function: str) -> ct_model.MLModel:
        if function not in self._models:
            self._models[function] = self._load(function)
        return self._models[function]

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
