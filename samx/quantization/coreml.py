"""Quantise the Core ML packages that an exporter wrote in float16, as far as the budget lets it.

What is judged is the very function that would be written, in the evaluator. Padded points change no bit of a result, so
the largest function stands for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from samx.errors import InputError
from samx.exporters.coreml import ONE_PROMPT
from samx.exporters.coreml.convert import rewrite_package
from samx.exporters.coreml.export import write_lint
from samx.formats.coreml.contract import Arrays, contract_of, functions_of
from samx.formats.coreml.package import package_from_directory
from samx.formats.coreml.program import Program, load_program, parse_model
from samx.models.session import Session
from samx.models.shape_range import ShapeRange
from samx.quantization.calibration import magnitude
from samx.quantization.coreml_rewrite import (
    PURPOSE,
    Convolution,
    arithmetic,
    convolutions,
    half_convolutions,
    rewrite,
    whole_plan,
)
from samx.quantization.search import (
    DecoderTrial,
    Found,
    Plan,
    QuantisationJob,
    Quantised,
    Ranges,
    masks,
    search,
)
from samx.runtimes.base import Padding
from samx.runtimes.coreml.packages import OpenedPackages
from samx.runtimes.mil.runtime import MilRuntime
from samx.validators.cases import Case

WHERE = "the float16 export"


def quantise(job: QuantisationJob) -> Quantised:
    """Quantise for the Neural Engine: integer convolutions where image tokens go through, 8-bit weights elsewhere.

    Raises: UsageError for groups to exclude that there are not; InputError for calibration that is of no use; as
    search().
    """
    packages = FloatPackages(job)
    plan = whole_plan(packages.there, job.excluded)
    trial = CoreMLTrial(packages, plan)
    found = search(trial, plan, job.budget, job.cache_file, job.progress)
    job.progress("Writing the INT8 package")
    program = packages.write(found.plan, trial.ranges)
    notes = write_lint(job.directory, {**packages.programs, packages.folder: program}, packages.default)
    share = {"function": packages.default, **arithmetic(program.function(packages.default))}
    return Quantised(replace(job.exported, notes=notes), packages.weighed(found), share)


class FloatPackages:
    """Collect an export's packages. All that may be quantised lies in the last, which takes the image."""

    def __init__(self, job: QuantisationJob) -> None:
        """Read what the exporter wrote.

        Raises: as load_program().
        """
        options = job.exported.options
        folders = [one.folder for one in contract_of(options, WHERE).signatures(job.export.spec)]
        self.job, self.folder, self.default = job, folders[-1], str(options["default_function"])
        self.files = {folder: package_from_directory(job.directory / folder) for folder in folders}
        self.programs = {name: load_program(package, f"{WHERE}/{name}") for name, package in self.files.items()}
        self.there = convolutions(self.programs[self.folder].function(self.default))  # that may be quantised

    @property
    def largest(self) -> str:
        """The function that takes every prompt."""
        return list(functions_of(self.job.exported.options, WHERE).values())[-1]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(package.size for package in self.files.values())

    @property
    def float32_bytes(self) -> int:
        """Bytes that the files would have with their float16 constants in float32."""
        return self.size + sum(_half_bytes(program.function(self.default)) for program in self.programs.values())

    @property
    def metadata(self) -> dict[str, str]:
        """What the package says about itself."""
        return dict(parse_model(self.files[self.folder].model, PURPOSE).description.metadata.userDefined)

    def fresh(self) -> Program:
        """Read the program anew, to be changed."""
        return load_program(self.files[self.folder], f"{WHERE}/{self.folder}")

    def opened(self, program: Program) -> OpenedPackages:
        """Open a changed program's largest function."""
        rows = max(functions_of(self.job.exported.options, WHERE))
        return OpenedPackages(
            contract_of(self.job.exported.options, WHERE), {rows: self.largest},
            Padding(ShapeRange(rows, rows, rows), ONE_PROMPT, (rows,)), self.files,
            {**self.programs, self.folder: program},
        )  # fmt: skip

    def write(self, plan: Plan, ranges: Ranges) -> Program:
        """Write the package of all functions in the place of the float16 one, and read it back."""
        program, path = self.fresh(), self.job.directory / self.folder
        rewrite(program.functions, self.there, plan, ranges)
        ios = int(self.job.exported.options["ios"])
        rewrite_package(program.functions, self.default, path, ios=ios, metadata=self.metadata)
        return load_program(package_from_directory(path), self.folder)

    def weighed(self, found: Found) -> Found:
        """Put the size of what was written in the place of what the search reckoned."""
        written = package_from_directory(self.job.directory / self.folder).size
        size = self.size - self.files[self.folder].size + written
        return replace(found, judged=replace(found.judged, bytes=size))


class CoreMLTrial(DecoderTrial):
    """Judge plans in the function that would be written."""

    def __init__(self, packages: FloatPackages, plan: Plan) -> None:
        """Collect the ranges of what a plan has in integers, and ask the reference.

        Raises: InputError for calibration that is of no use.
        """
        job, prompts = packages.job, _prompts(packages.job)
        there = [conv for conv in packages.there if conv.group in plan.integer]
        self.packages, self.ranges = packages, watched_ranges(packages, there, prompts) if there else {}
        super().__init__(job, prompts)
        self.float_bytes = packages.float32_bytes
        for conv in packages.there:
            self.multiply_adds[conv.group] += conv.multiply_adds

    def open(self, plan: Plan) -> tuple[Session, int]:
        """Return a session of a plan's largest function, and the bytes of all files."""
        packages, program = self.packages, self.packages.fresh()
        rewrite({packages.largest: program.function(packages.largest)}, packages.there, plan, self.ranges)
        saved = sum(conv.bytes_saved for conv in packages.there if conv.group in (*plan.integer, *plan.stored))
        return MilRuntime(self.job.export.spec, packages.opened(program), {}), packages.size - saved


class Watched(MilRuntime):
    """Evaluate, and keep the largest magnitude that goes into some convolutions, over all calls."""

    def __init__(self, packages: FloatPackages, there: Sequence[Convolution]) -> None:
        program = packages.fresh()
        function = program.function(packages.largest)
        weights = {conv.weight for conv in there}
        taken = {op.weight.name: op.x for op in half_convolutions(function) if op.weight.name in weights}
        others = {var.name: var for var in taken.values() if var not in function.outputs}
        function.set_outputs([*function.outputs, *others.values()])
        super().__init__(packages.job.export.spec, packages.opened(program), {})
        self._folder, self._tensors = packages.folder, {weight: str(var.name) for weight, var in taken.items()}
        self._largest: dict[str, float] = {}

    def call(self, folder: str, function: str, feed: Arrays) -> Arrays:
        """Evaluate one function.

        Raises: InputError for a sample that makes something else than numbers of it.
        """
        found = super().call(folder, function, feed)
        if folder == self._folder:
            for name in dict.fromkeys(self._tensors.values()):
                self._largest[name] = max(self._largest.get(name, 0.0), magnitude(found[name], name))
        return found

    @property
    def ranges(self) -> Ranges:
        """The largest magnitudes, by the convolutions' weights."""
        return {weight: self._largest[name] for weight, name in self._tensors.items()}


def watched_ranges(packages: FloatPackages, there: Sequence[Convolution], cases: Sequence[Case]) -> Ranges:
    """Ask calibration prompts, and keep the largest magnitudes that go into convolutions.

    Raises: InputError for a prompt that makes something else than numbers.
    """
    watched = Watched(packages, there)
    for number, _ in enumerate(masks(watched, packages.job.calibration.images, cases), 1):
        packages.job.progress("Collecting the ranges of activations", number, len(cases))
    return watched.ranges


def _prompts(job: QuantisationJob) -> list[Case]:
    most = job.exported.most_points
    found = job.calibration.cases(job.export.spec, most)
    if not found:
        fix = "Choose larger --points."
        raise InputError(
            "no calibration prompt fits this export", expected=f"prompts of {most} points or fewer", fix=fix
        )
    return found


def _half_bytes(function: Any) -> int:
    """Count the bytes of a function's float16 constants."""
    values = [op.outputs[0].val for op in function.operations if op.op_type == "const"]
    return sum(value.nbytes for value in values if getattr(value, "dtype", None) == np.float16)
