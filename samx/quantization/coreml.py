"""Quantise the Core ML packages that an exporter wrote in float16, as far as the budget lets it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from samx.errors import InputError
from samx.exporters.coreml.convert import rewrite_package
from samx.exporters.coreml.export import write_lint
from samx.formats.coreml.package import package_from_directory
from samx.formats.coreml.program import Program, load_program
from samx.quantization.coreml_groups import Convolution, convolutions, whole_plan
from samx.quantization.coreml_packages import FloatPackages, Watched
from samx.quantization.coreml_rewrite import Ranges, arithmetic, rewrite
from samx.quantization.job import QuantisationJob, Quantised
from samx.quantization.judging import judged, masks
from samx.quantization.search import Found, Judged, Plan, Task, search
from samx.runtimes.torch import reference_session
from samx.validators.cases import Case
from samx.validators.metrics import BoolArray

JUDGED_EVERY = 2  # of the prompts that calibrate; others, held out, judge the result


def quantise(job: QuantisationJob) -> Quantised:
    """Quantise for the Neural Engine: integer convolutions where image cells go through, 8-bit weights elsewhere.

    Raises: UsageError for groups to exclude that there are not; InputError for calibration that is of no use; as
    search().
    """
    packages = FloatPackages.read(job)
    there = convolutions(packages.programs[packages.folder].function(packages.default))
    plan = whole_plan(there, job.excluded)
    desk = Desk.of(job, packages, there, plan)
    found = search(desk.task(), plan, job.budget, job.notebook, job.progress)
    job.progress("Writing the INT8 package")
    program = desk.write(found.plan)
    notes = write_lint(job.directory, {**packages.programs, packages.folder: program}, packages.default)
    return Quantised(replace(job.exported, notes=notes), desk.weighed(found), desk.arithmetic(program))


@dataclass(frozen=True, eq=False)
class Desk:
    """Hold what plans are made from and judged with."""

    job: QuantisationJob
    packages: FloatPackages
    there: tuple[Convolution, ...]
    ranges: Ranges
    cases: tuple[Case, ...]
    expected: tuple[BoolArray, ...]  # of each case, what the reference masks

    @classmethod
    def of(cls, job: QuantisationJob, packages: FloatPackages, there: list[Convolution], plan: Plan) -> Desk:
        """Collect the ranges of what a plan has in integers, and ask the reference."""
        every = _prompts(job)
        ranges = _ranges(job, packages, [conv for conv in there if conv.group in plan.integer], every)
        cases = tuple(every[::JUDGED_EVERY])
        job.progress("Asking the PyTorch reference about calibration prompts")
        reference = reference_session(job.export.loaded, job.export.spec)
        expected = tuple(masks(reference, job.calibration.images, cases))
        return cls(job, packages, tuple(there), ranges, cases, expected)

    def judge(self, plan: Plan) -> Judged:
        """Compare a plan's masks with the reference's, in the function that would be written."""
        program, name = self.packages.fresh(), self.packages.largest
        rewrite({name: program.function(name)}, self.there, plan, self.ranges)
        found = masks(self.packages.session(program), self.job.calibration.images, self.cases)
        return judged(found, self.expected, self.packages.size - self._saved(plan))

    def write(self, plan: Plan) -> Program:
        """Write the package of all functions in the place of the float16 one, and read it back."""
        program, path = self.packages.fresh(), self.job.directory / self.packages.folder
        rewrite(program.functions, self.there, plan, self.ranges)
        rewrite_package(
            program.functions, self.packages.default, path, ios=self.job.exported.options["ios"],
            metadata=self.packages.metadata(),
        )  # fmt: skip
        return load_program(package_from_directory(path), self.packages.folder)

    def task(self) -> Task:
        """Describe the search."""
        identity = {
            "files": self.packages.identity(), "calibration": self.job.calibration.sha256,
            "prompts": f"every {JUDGED_EVERY}nd", "tools": dict(self.job.exported.tools),
        }  # fmt: skip
        return Task(self.judge, self.packages.float32_bytes, self._multiply_adds(), identity)

    def weighed(self, found: Found) -> Found:
        """Put the size of what was written in the place of what the search reckoned."""
        size = self.packages.size - self.packages.files[self.packages.folder].size
        size += package_from_directory(self.job.directory / self.packages.folder).size
        return replace(found, judged=replace(found.judged, bytes=size))

    def arithmetic(self, program: Program) -> dict[str, Any]:
        """Say how much of the usual function's work may be done in integers."""
        return {"function": self.packages.default, **arithmetic(program.function(self.packages.default))}

    def _saved(self, plan: Plan) -> int:
        smaller = {*plan.integer, *plan.stored}
        return sum(conv.bytes_saved for conv in self.there if conv.group in smaller)

    def _multiply_adds(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for conv in self.there:
            counts[conv.group] += conv.multiply_adds
        return dict(counts)


def _prompts(job: QuantisationJob) -> list[Case]:
    most = job.exported.most_points
    found = job.calibration.cases(job.export.spec, most)
    if not found:
        fix = "Choose larger --points."
        raise InputError(
            "no calibration prompt fits this export", expected=f"prompts of {most} points or fewer", fix=fix
        )
    return found


def _ranges(job: QuantisationJob, packages: FloatPackages, there: list[Convolution], cases: list[Case]) -> Ranges:
    """Ask every calibration prompt, and keep the largest magnitudes."""
    if not there:
        return {}
    watched = Watched(packages, there)
    session = packages.session(packages.programs[packages.folder], watched)
    for number, _ in enumerate(masks(session, job.calibration.images, cases), 1):
        job.progress("Collecting the ranges of activations", number, len(cases))
    return watched.ranges
