"""BenchReport: what was measured, of what, where and how it went, as JSON first; and it is read back strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isclose, isfinite
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from samx.artifacts.commit import write_file
from samx.artifacts.strict_json import Count, Document, Positive, refusal, shaped, take
from samx.benchmarks.summary import Summary, describe
from samx.errors import ArtifactError
from samx.files import REPORT_CAP_BYTES, read_file

FORMAT = "samx-benchmark-report"
SCHEMA_VERSION = 2
# What can be timed of an artifact. All but 'steady' and 'post_processing' happen once per start.
PHASES: Mapping[str, str] = {
    "import": "import the runtime and its library, in a fresh process",
    "load": "verify the artifact's files and open it, in a fresh process",
    "first_call": "the first image and prompts of a fresh process",
    "steady": "calls after the warm-up",
    "transfer": "copy prompts to the device and outputs back, without the work between",
    "resize": "resize a picture of 12 megapixels for the image encoder",
    "encode": "the image encoder alone",
    "decode": "the decoder: its image part, and one click",
    "post_processing": "resize each prompt's best mask to the picture's size and threshold it",
}
DECODER = "decoder"
WITH_ENCODER: Mapping[str, str] = {"encode": "in encode the image encoder alone", "photo": "in photo both"}
FIX = "Measure again with 'samx bench'."
SAME = 1e-9  # derived numbers are computed from the same samples, so only the last digit may differ
Plain = Mapping[str, Any]
Scalar = str | int | float | bool


def _check_reading(value: Plain, where: str) -> None:
    """Refuse a value that has a reason to be missing, and one that is missing without a reason."""
    found = take({"value": Any, "unit": str | None, "reason": str | None}, value, where)
    is_plain = found["value"] is None or isinstance(found["value"], Scalar)
    if not is_plain or (found["value"] is None) is (found["reason"] is None):
        raise refusal(f"{where} is no reading", expected="a value, or null and the reason", fix=FIX)


Reading = Annotated[Mapping[str, Any], _check_reading]  # value, unit and reason; a value of None has a reason
Readings = Mapping[str, Reading]
KIND = {"name": str, "facts": Readings, "before": Readings, "after": Readings}
SAMPLE = {"time_ns": Count, "readings": Mapping[str, Mapping[str, Scalar]]}


@dataclass(frozen=True)
class DeviceRecord:
    """Describe what was measured on, and how it fared meanwhile."""

    requested: str  # as --device names it
    environment: Mapping[str, str]  # system and libraries
    kinds: Mapping[str, Annotated[Plain, shaped(KIND)]]  # telemetry by kind of device
    samples: tuple[Annotated[Plain, shaped(SAMPLE)], ...]  # times on the clock of the results; values by kind and name
    sampling: Annotated[Plain, shaped({"interval_s": float, "cost": Reading})]  # the cost is that of one sample
    flags: tuple[str, ...]  # what makes the numbers doubtful: throttled, busy, lost; "information:" only explains


@dataclass(frozen=True)
class ParityRecord(Document):
    """Record that a subject computes what PyTorch computes, on the device on which it was measured."""

    verdict: str  # always "passed": nothing else is measured
    level: str
    device: str
    runtime: str
    created: str
    source: str  # "stored" in the artifact by this machine, or "fresh"
    cases: Count
    metrics: Mapping[str, float]  # the worst of each over all cases

    def check(self, where: str) -> None:
        """Refuse what did not pass."""
        if self.verdict != "passed" or not self.cases or not self.metrics:
            fix = "Speed without parity says nothing. Export again."
            raise refusal(f"{where} did not pass", self.verdict, "passed, of one case or more", fix)


@dataclass(frozen=True)
class SubjectRecord:
    """Name the artifact that was measured, or the contender beside it."""

    name: str  # unique in the report
    target: str
    precision: str
    family: str
    masks: str
    mask_input: bool
    checkpoint: str
    checkpoint_sha256: str
    manifest_sha256: str | None  # which names the hash of every file; None: a contender, which is no artifact
    bytes: Count  # of the files that the runtime opens, or of a contender's weights
    form: str | None
    options: Plain
    parity: ParityRecord
    placement: Plain | None  # runtime, requested, operations by device, details; None: nothing ran


@dataclass(frozen=True)
class Result(Document):
    """List every timed call of one phase of one scenario, in order.

    Units: ns on the clock of the telemetry.
    """

    DERIVED = ("summary", "prompts_per_second", "flags")
    ROUNDING = SAME

    subject: str
    scenario: str
    phase: str
    prompts: Count  # a call decodes; 0 where none is decoded
    points: tuple[Count, ...]  # a prompt has, box corners and padding counted; call i has points[i % len(points)]
    warm_up_calls: Count
    warm_up_ns: Count
    start_ns: Count
    end_ns: Count
    samples_ns: tuple[Positive, ...]
    energy_mj: Reading  # a prompt
    peak_bytes: Reading | None  # resident in the process; None where the scenario does not ask

    def check(self, where: str) -> None:
        """Refuse a result of nothing."""
        if not self.samples_ns or self.phase not in PHASES:
            raise refusal(f"{where} has no samples, or an unknown phase", self.phase, fix=FIX)

    @cached_property
    def summary(self) -> Summary:
        """What the samples say; the time of a call, not of a prompt."""
        return describe([sample / 1e6 for sample in self.samples_ns], max(len(self.points), 1))

    @property
    def prompts_per_second(self) -> float | None:
        """Throughput over all calls; None where nothing is decoded."""
        return self.prompts * len(self.samples_ns) / sum(self.samples_ns) * 1e9 if self.prompts else None

    @property
    def flags(self) -> list[str]:
        """What makes the result doubtful."""
        found = {"noisy": self.summary.noisy, "unstable": self.summary.unstable}
        return [name for name, is_set in found.items() if is_set]


@dataclass(frozen=True)
class Comparison:
    """Record how many times faster than the baseline a candidate is, with a 95 % interval from resampled rounds."""

    scenario: str
    phase: str
    baseline: str
    candidate: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class NotMeasured:
    """Record what is missing and why; None stands for all scenarios or phases."""

    subject: str
    scenario: str | None
    phase: str | None
    reason: str
    wrong: bool = False  # it computes something else


@dataclass(frozen=True)
class Need:
    """Count what a steady call of a scenario cannot do without, from the decoder's sizes and its form."""

    subject: str
    scenario: str
    multiply_adds: Count  # of its products; the mean over the scenario's cycle
    bytes: Count  # weights, what is kept of the image or the image, and masks, each once


@dataclass(frozen=True)
class Roofline:
    """Record what calls need, beside the best that this machine reaches."""

    threads: Count | None
    multiply_adds_per_s: Reading  # a large product
    bytes_per_s: Reading  # a large copy, read and written
    needs: tuple[Need, ...]
    precision: str = "fp32"  # of the product

    def share(self, need: Need, median_ms: float) -> float | None:
        """Return the least time that this machine could take, as a share of a time that was measured."""
        peaks = [(need.multiply_adds, self.multiply_adds_per_s), (need.bytes, self.bytes_per_s)]
        known = [amount / reading["value"] for amount, reading in peaks if reading["value"]]
        return max(known) * 1e3 / median_ms if len(known) == len(peaks) else None


@dataclass(frozen=True)
class BenchReport(Document):
    """Record one run of `samx bench`."""

    HEADER = {"format": FORMAT, "schema_version": SCHEMA_VERSION}
    INDENT = None

    created: str
    samx: str
    quick: bool
    partial: str | None  # why it ended before its end
    command: tuple[str, ...]  # that measures the same again
    threads: Count | None
    seed: Count
    seconds: float
    images: str  # where the image features come from
    clock: str
    clock_step_ns: Count
    device: DeviceRecord
    subjects: tuple[SubjectRecord, ...]
    results: tuple[Result, ...]
    ratios: tuple[Comparison, ...]
    not_measured: tuple[NotMeasured, ...]
    flags: tuple[str, ...]  # what makes the whole report or a comparison in it doubtful
    rooflines: tuple[Roofline, ...] = ()  # a kit has none
    contains: str = DECODER  # what a figure contains, but for those with an image encoder

    @property
    def figures(self) -> str:
        """Say what a figure contains."""
        others = {result.scenario for result in self.results} & set(WITH_ENCODER)
        return f"{self.contains} only" + (
            f"; {', '.join(WITH_ENCODER[one] for one in sorted(others))}" if others else ""
        )

    def find(self, subject: str, scenario: str, phase: str = "steady") -> Result | None:
        """Look a result up."""
        wanted = (subject, scenario, phase)
        return next((entry for entry in self.results if (entry.subject, entry.scenario, entry.phase) == wanted), None)

    def save(self, path: Path) -> None:
        """Write the report whole or not at all."""
        write_file(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> BenchReport:
        """Read a report.

        Raises: ArtifactError when it cannot be read, or for anything that save() would not have written.
        """
        data = read_file(path, REPORT_CAP_BYTES, f"report '{path}'", ArtifactError)
        return cls.from_bytes(data, f"report '{path}'")

    def check(self, where: str) -> None:
        """Refuse results of no subject, what comes twice, and ratios that the samples deny."""
        subjects = [subject.name for subject in self.subjects]
        results = [(result.subject, result.scenario, result.phase) for result in self.results]
        named = {result.subject for result in self.results} | {
            need.subject for line in self.rooflines for need in line.needs
        }
        named |= {entry.subject for entry in self.not_measured if entry.scenario or entry.phase}  # others did not open
        if len(set(subjects)) != len(subjects) or len(set(results)) != len(results):
            raise refusal(f"{where} has a subject or a result twice", fix=FIX)
        if unknown := sorted(named - set(subjects)):
            raise refusal(f"{where} has results of a subject that it does not describe", unknown[0], fix=FIX)
        if not self.subjects or (not self.results and self.partial is None):
            raise refusal(f"{where} holds no result, and does not say why", fix=FIX)
        for ratio in self.ratios:
            self._check_ratio(ratio, where)

    def _check_ratio(self, ratio: Comparison, where: str) -> None:
        pair = [self.find(name, ratio.scenario, ratio.phase) for name in (ratio.baseline, ratio.candidate)]
        medians = [median(entry.samples_ns) / max(entry.prompts, 1) for entry in pair if entry is not None]
        true = medians[0] / medians[1] if len(medians) == 2 else None
        is_interval = 0 < ratio.low <= ratio.high and isfinite(ratio.high)
        if true is None or not isclose(ratio.value, true, rel_tol=SAME, abs_tol=SAME) or not is_interval:
            what = f"{where}: the samples deny the ratio of '{ratio.candidate}' in '{ratio.scenario}'"
            raise refusal(what, f"{ratio.value}", "two results" if true is None else f"{true:.6g}", FIX)
