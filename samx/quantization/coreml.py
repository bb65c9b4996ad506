"""Quantise the Core ML packages that an exporter wrote in float16, as far as the budget lets it.

What is judged is the very function that would be written, in the evaluator. Padded points change no bit of a result, so
the largest function stands for all.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samx.errors import InputError
from samx.exporters.coreml import ONE_PROMPT
from samx.exporters.coreml.convert import rewrite_package
from samx.exporters.coreml.export import write_lint
from samx.formats.coreml.contract import Arrays, contract_of, functions_of
from samx.formats.coreml.package import PackageFiles, package_from_directory
from samx.formats.coreml.program import Program, load_program, parse_model
from samx.models.shape_range import ShapeRange
from samx.quantization.coreml_groups import Convolution, convolutions, half_convolutions, whole_plan
from samx.quantization.coreml_rewrite import PURPOSE, Ranges, arithmetic, rewrite
from samx.quantization.search import Found, Judged, Plan, QuantisationJob, Quantised, Task, search
from samx.quantization.verdict import judged, masks
from samx.runtimes.base import Padding
from samx.runtimes.coreml.packages import OpenedPackages
from samx.runtimes.mil.runtime import MilRuntime
from samx.runtimes.torch import reference_session
from samx.validators.cases import Case

WHERE = "the float16 export"
JUDGED_EVERY = 2  # of the prompts that calibrate; others, held out, judge the result


def quantise(job: QuantisationJob) -> Quantised:
    """Quantise for the Neural Engine: integer convolutions where image tokens go through, 8-bit weights elsewhere.

    Raises: UsageError for groups to exclude that there are not; InputError for calibration that is of no use; as
    search().
    """
    packages = FloatPackages.read(job)
    plan = whole_plan(packages.there, job.excluded)
    trial = Trial(packages, plan)
    found = search(trial.task(), plan, job.budget, job.notebook, job.progress)
    job.progress("Writing the INT8 package")
    program = packages.write(found.plan, trial.ranges)
    notes = write_lint(job.directory, {**packages.programs, packages.folder: program}, packages.default)
    share = {"function": packages.default, **arithmetic(program.function(packages.default))}
    return Quantised(replace(job.exported, notes=notes), packages.weighed(found), share)


@dataclass(frozen=True, eq=False)
class FloatPackages:
    """Collect an export's packages. All that may be quantised lies in the last, which takes the image."""

    job: QuantisationJob
    files: Mapping[str, PackageFiles]
    programs: Mapping[str, Program]
    there: tuple[Convolution, ...]  # that may be quantised

    @classmethod
    def read(cls, job: QuantisationJob) -> FloatPackages:
        """Read what the exporter wrote.

        Raises: as load_program().
        """
        options = job.exported.options
        signatures = contract_of(options, WHERE).signatures(job.export.spec)
        files = {one.folder: package_from_directory(job.directory / one.folder) for one in signatures}
        programs = {name: load_program(package, f"{WHERE}/{name}") for name, package in files.items()}
        there = convolutions(programs[signatures[-1].folder].function(options["default_function"]))
        return cls(job, files, programs, tuple(there))

    @property
    def folder(self) -> str:
        """The package that is quantised."""
        return list(self.files)[-1]

    @property
    def default(self) -> str:
        """The function of the usual size."""
        return str(self.job.exported.options["default_function"])

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


class Trial:
    """Judge plans on the prompts that calibrate."""

    def __init__(self, packages: FloatPackages, plan: Plan) -> None:
        """Collect the ranges of what a plan has in integers, and ask the reference.

        Raises: InputError for calibration that is of no use.
        """
        job, prompts = packages.job, _prompts(packages.job)
        there = [conv for conv in packages.there if conv.group in plan.integer]
        self.packages, self.cases = packages, prompts[::JUDGED_EVERY]
        self.ranges = watched_ranges(packages, there, prompts) if there else {}
        job.progress("Asking the PyTorch reference about calibration prompts")
        reference = reference_session(job.export.loaded, job.export.spec)
        self.expected = tuple(masks(reference, job.calibration.images, self.cases))

    def judge(self, plan: Plan) -> Judged:
        """Compare a plan's masks with the reference's, in the function that would be written."""
        packages, program = self.packages, self.packages.fresh()
        rewrite({packages.largest: program.function(packages.largest)}, packages.there, plan, self.ranges)
        session = MilRuntime(packages.job.export.spec, packages.opened(program), {})
        saved = sum(conv.bytes_saved for conv in packages.there if conv.group in (*plan.integer, *plan.stored))
        found = masks(session, packages.job.calibration.images, self.cases)
        return judged(found, self.expected, packages.size - saved)

    def task(self) -> Task:
        """Describe the search."""
        job, counts = self.packages.job, Counter[str]()
        for conv in self.packages.there:
            counts[conv.group] += conv.multiply_adds
        identity = {
            "files": _hashes(self.packages.files), "calibration": job.calibration.sha256,
            "prompts": f"every {JUDGED_EVERY}nd", "tools": dict(job.exported.tools),
        }  # fmt: skip
        return Task(self.judge, self.packages.float32_bytes, dict(counts), identity)


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
                self._largest[name] = max(self._largest.get(name, 0.0), _magnitude(found[name], name))
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


def _magnitude(value: Any, name: str) -> float:
    found = float(np.abs(value).max())
    if not np.isfinite(found):
        raise InputError(f"a calibration sample makes '{name}' not finite", fix="Calibrate again.")
    return found


def _half_bytes(function: Any) -> int:
    """Count the bytes of a function's float16 constants."""
    values = [op.outputs[0].val for op in function.operations if op.op_type == "const"]
    return sum(value.nbytes for value in values if getattr(value, "dtype", None) == np.float16)


def _hashes(files: Mapping[str, PackageFiles]) -> dict[str, str]:
    return {
        f"{folder}/{name}": hashlib.sha256(data).hexdigest()
        for folder, package in files.items()
        for name, data in sorted(package.files.items())
    }
