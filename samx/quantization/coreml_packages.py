"""The float16 packages of an export, opened again: one function that every prompt fits into, to be asked and changed.

What is judged is the very function that would be written, in the evaluator. Empty slots change no bit of a result, so
the largest function stands for all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samx.errors import InputError
from samx.exporters.coreml.export import ONE_PROMPT
from samx.formats.coreml.contract import Arrays, contract_of
from samx.formats.coreml.functions import Functions
from samx.formats.coreml.library import open_coremltools
from samx.formats.coreml.package import PackageFiles, package_from_directory
from samx.formats.coreml.program import Program, load_program
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec
from samx.quantization.coreml_groups import Convolution, half_convolutions
from samx.quantization.coreml_rewrite import PURPOSE, Ranges
from samx.quantization.job import QuantisationJob
from samx.runtimes.base import Slots
from samx.runtimes.coreml.packages import OpenedPackages
from samx.runtimes.mil.runtime import MilRuntime, Packages

WHERE = "the float16 export"


@dataclass(frozen=True, eq=False)
class FloatPackages:
    """Hold an export's packages. All that may be quantised lies in the last, which takes the image."""

    spec: DecoderSpec
    options: Mapping[str, Any]
    files: Mapping[str, PackageFiles]
    programs: Mapping[str, Program]

    @classmethod
    def read(cls, job: QuantisationJob) -> FloatPackages:
        """Read what the exporter wrote.

        Raises: as load_program().
        """
        spec, options = job.export.spec, job.exported.options
        folders = [border.folder for border in contract_of(options, WHERE).borders(spec)]
        files = {folder: package_from_directory(job.directory / folder) for folder in folders}
        programs = {folder: load_program(package, f"{WHERE}/{folder}") for folder, package in files.items()}
        return cls(spec, options, files, programs)

    @property
    def folder(self) -> str:
        """Name the package that is quantised."""
        return list(self.files)[-1]

    @property
    def default(self) -> str:
        """Name the function of the usual size."""
        return str(self.options["default_function"])

    @property
    def largest(self) -> str:
        """Name the function that takes every prompt."""
        functions = Functions.of(self.options, WHERE)
        return functions.name(functions.sizes[-1])

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(package.size for package in self.files.values())

    @property
    def float32_bytes(self) -> int:
        """Bytes that the files would have with their float16 constants in float32."""
        return self.size + sum(_half_bytes(program.function(self.default)) for program in self.programs.values())

    def metadata(self) -> dict[str, str]:
        """Give what the package says about itself."""
        library = open_coremltools(PURPOSE)
        spec = library.proto.Model_pb2.Model.FromString(self.files[self.folder].model)
        return dict(spec.description.metadata.userDefined)

    def fresh(self) -> Program:
        """Read the program anew, to be changed."""
        return load_program(self.files[self.folder], f"{WHERE}/{self.folder}")

    def session(self, program: Program, packages: Packages | None = None) -> MilRuntime:
        """Open a changed program's largest function."""
        functions = Functions.of(self.options, WHERE)
        rows = functions.sizes[-1]
        opened = OpenedPackages(
            contract_of(self.options, WHERE), Functions({rows: self.largest}),
            Slots(ShapeRange(rows, rows, rows), ONE_PROMPT, (rows,)), self.files, {**self.programs, self.folder: program},
        )  # fmt: skip
        return MilRuntime(self.spec, opened, {}, packages=packages)

    def identity(self) -> dict[str, str]:
        """Hash every file."""
        return {
            f"{folder}/{name}": hashlib.sha256(data).hexdigest()
            for folder, package in self.files.items()
            for name, data in sorted(package.files.items())
        }


class Watched(Packages):
    """Call packages, and keep the largest magnitude that goes into some convolutions, over all calls."""

    def __init__(self, found: FloatPackages, there: Sequence[Convolution]) -> None:
        program = found.fresh()
        function = program.function(found.largest)
        weights = {conv.weight for conv in there}
        taken = {op.weight.name: op.x for op in half_convolutions(function) if op.weight.name in weights}
        self._tensors = {weight: str(var.name) for weight, var in taken.items()}
        others = {var.name: var for var in taken.values() if var not in function.outputs}
        function.set_outputs([*function.outputs, *others.values()])
        super().__init__({**found.programs, found.folder: program})
        self._largest: dict[str, float] = {}
        self._folder = found.folder

    def __call__(self, folder: str, function: str, feed: Arrays) -> Arrays:
        """Evaluate one function.

        Raises: InputError for a sample that makes something else than numbers of it.
        """
        found = super().__call__(folder, function, feed)
        if folder == self._folder:
            for name in dict.fromkeys(self._tensors.values()):
                self._largest[name] = max(self._largest.get(name, 0.0), _magnitude(found[name], name))
        return found

    @property
    def ranges(self) -> Ranges:
        """Give the largest magnitudes, by the convolutions' weights."""
        return {weight: self._largest[name] for weight, name in self._tensors.items()}


def _magnitude(value: Any, name: str) -> float:
    found = float(np.abs(value).max())
    if not np.isfinite(found):
        raise InputError(f"a calibration sample makes '{name}' not finite", fix="Calibrate again.")
    return found


def _half_bytes(function: Any) -> int:
    """Count the bytes of a function's float16 constants."""
    values = [op.outputs[0].val for op in function.operations if op.op_type == "const"]
    return sum(value.nbytes for value in values if getattr(value, "dtype", None) == np.float16)
