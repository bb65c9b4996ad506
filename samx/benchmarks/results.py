"""BenchReport: what was measured, of what, where and how it went, as JSON first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from samx.artifacts.commit import write_file
from samx.benchmarks.summary import Summary, describe
from samx.errors import ArtifactError

FORMAT = "samx-benchmark-report"
SCHEMA_VERSION = 1
# What can be timed of an artifact. All but 'steady' and 'post_processing' happen once per start.
PHASES: Mapping[str, str] = {
    "import": "import the runtime and its library, in a fresh process",
    "load": "verify the artifact's files and open it, in a fresh process",
    "first_call": "the first image and prompts of a fresh process",
    "steady": "calls after the warm-up",
    "transfer": "copy prompts to the device and outputs back, without the work between",
    "post_processing": "resize each prompt's best mask to the picture's size and threshold it",
}
Plain = Mapping[str, Any]
Reading = Mapping[str, Any]  # value, unit and reason; a value of None has a reason


@dataclass(frozen=True)
class DeviceRecord:
    """Say what was measured on, and how it fared meanwhile."""

    requested: str  # as --device names it
    environment: Mapping[str, str]  # system and libraries
    kinds: Mapping[str, Plain]  # telemetry by kind of device: name, facts, before, after; the last three are readings
    samples: tuple[Plain, ...]  # time_ns, on the clock of the results, and values by kind and name
    sampling: Plain  # interval_s, and the cost of one sample as a reading
    flags: tuple[str, ...]  # what makes the numbers doubtful: throttled, busy, lost; "information:" only explains


@dataclass(frozen=True)
class ParityRecord:
    """Say that a subject computes what PyTorch computes, on the device on which it was measured."""

    verdict: str  # always "passed": nothing else is measured
    level: str
    device: str
    runtime: str
    created: str
    source: str  # "stored" in the artifact by this machine, or "fresh"
    cases: int
    metrics: Mapping[str, float]  # the worst of each over all cases


@dataclass(frozen=True)
class SubjectRecord:
    """Say which artifact was measured."""

    name: str  # unique in the report
    target: str
    precision: str
    family: str
    masks: str
    mask_input: bool
    checkpoint: str
    checkpoint_sha256: str
    manifest_sha256: str  # which names the hash of every file
    bytes: int  # of the files that the runtime opens
    form: str | None
    options: Plain
    parity: ParityRecord
    placement: Plain | None  # runtime, requested, operations by device, details; None: nothing ran


@dataclass(frozen=True)
class Result:
    """Hold every timed call of one phase of one scenario, in order.

    Units: ns on the clock of the telemetry.
    """

    subject: str
    scenario: str
    phase: str
    prompts: int  # a call decodes; 0 where none is decoded
    points: tuple[int, ...]  # a prompt has, box corners and padding counted; call i has points[i % len(points)]
    warm_up_calls: int
    warm_up_ns: int
    start_ns: int
    end_ns: int
    samples_ns: tuple[int, ...]
    energy_mj: Reading  # a prompt
    peak_bytes: Reading | None  # resident in the process; None where the scenario does not ask

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

    def to_json(self) -> dict[str, Any]:
        """Give the raw samples and what was made of them."""
        derived = {"summary": asdict(self.summary), "prompts_per_second": self.prompts_per_second, "flags": self.flags}
        return {**asdict(self), **derived}


@dataclass(frozen=True)
class Comparison:
    """Say how many times faster than the baseline a candidate is, with a 95 % interval from resampled rounds."""

    scenario: str
    phase: str
    baseline: str
    candidate: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class NotMeasured:
    """Say what is missing and why; None stands for all scenarios or phases."""

    subject: str
    scenario: str | None
    phase: str | None
    reason: str


@dataclass(frozen=True)
class Need:
    """Say what a steady call of a scenario cannot do without, counted from the decoder's sizes and its form."""

    subject: str
    scenario: str
    multiply_adds: int  # of its products; the mean over the scenario's cycle
    bytes: int  # weights, what is kept of the image or the image, and masks, each once


@dataclass(frozen=True)
class Roofline:
    """Say what calls need, beside the best that this machine reaches."""

    threads: int | None
    multiply_adds_per_s: Reading  # a large float32 product
    bytes_per_s: Reading  # a large copy, read and written
    needs: tuple[Need, ...]

    def share(self, need: Need, median_ms: float) -> float | None:
        """Give the least time that this machine could take, as a share of a time that was measured."""
        peaks = [(need.multiply_adds, self.multiply_adds_per_s), (need.bytes, self.bytes_per_s)]
        known = [amount / reading["value"] for amount, reading in peaks if reading["value"]]
        return max(known) * 1e3 / median_ms if len(known) == len(peaks) else None


@dataclass(frozen=True)
class BenchReport:
    """Hold one run of `samx bench`."""

    created: str
    samx: str
    quick: bool
    partial: str | None  # why it ended before its end
    command: tuple[str, ...]  # that measures the same again
    threads: int | None
    seed: int
    seconds: float
    images: str  # where the image features come from
    clock: str
    clock_step_ns: int
    device: DeviceRecord
    subjects: tuple[SubjectRecord, ...]
    results: tuple[Result, ...]
    ratios: tuple[Comparison, ...]
    not_measured: tuple[NotMeasured, ...]
    flags: tuple[str, ...]  # what makes the whole report or a comparison in it doubtful
    roofline: Roofline | None = None  # a kit has none

    def find(self, subject: str, scenario: str, phase: str = "steady") -> Result | None:
        """Look a result up."""
        wanted = (subject, scenario, phase)
        return next((entry for entry in self.results if (entry.subject, entry.scenario, entry.phase) == wanted), None)

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain data."""
        results = [result.to_json() for result in self.results]
        return {"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(self), "results": results}

    def to_bytes(self) -> bytes:
        """Write the file's content."""
        return (json.dumps(self.to_json(), allow_nan=False) + "\n").encode()

    def save(self, path: Path) -> None:
        """Write the report whole or not at all."""
        write_file(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> BenchReport:
        """Read a report.

        Raises: ArtifactError when it cannot be read, or for anything that save() would not have written.
        """
        try:
            data = path.read_bytes()
        except OSError as cause:
            raise ArtifactError(f"cannot read the report '{path}'", found=cause.strerror) from cause
        return cls.from_bytes(data, f"report '{path}'")

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> BenchReport:
        """Read the file's content.

        Raises: ArtifactError for anything that to_bytes() would not have written, such as a summary that the samples
        deny.
        """
        from samx.benchmarks.reading import read_report

        return read_report(data, where)
