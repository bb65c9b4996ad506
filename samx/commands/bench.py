"""Measure artifacts on this machine: how fast, on what, and with which proof that they are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path

import samx
from samx.artifacts.manifest import utc_now
from samx.artifacts.store import Artifact
from samx.benchmarks import contenders
from samx.benchmarks.environment import benchmark_environment
from samx.benchmarks.harness import Harness
from samx.benchmarks.interleave import CLOCK_NAME, Clock, Samples, now_ns, step_ns
from samx.benchmarks.results import BenchReport, Comparison, DeviceRecord, NotMeasured, Result, Roofline
from samx.benchmarks.roofline import rooflines
from samx.benchmarks.scenarios import Workload, chosen
from samx.benchmarks.subjects import Subject, comparability_flags, open_contenders, open_subjects
from samx.benchmarks.summary import RATIO_SAMPLES, speedup
from samx.demo import demo_checkpoint
from samx.devices.monitor import Monitor, adapters
from samx.errors import BenchmarkError, ParityError, UsageError
from samx.extras import require_export
from samx.processing.images import check_free, read_embedding
from samx.progress import Progress, silent
from samx.validators.child import SUITE_ROLE
from samx.validators.suite import ParitySuite

QUICK_SECONDS = 1.0
COARSE = 0.01  # share of a median that one step of the clock may be
# Post-processing is the same code for every artifact.
COMPARED = ("import", "load", "first_call", "steady", "transfer")


@dataclass(frozen=True)
class BenchRequest:
    """What to measure, where and for how long."""

    paths: Sequence[Path]
    device: str = "cpu"
    threads: int | None = None
    scenarios: Sequence[str] | None = None  # None: all, or the quick ones
    quick: bool = False
    seconds: float = 3.0  # timed, of each artifact in each scenario
    seed: int = 0
    output: Path | None = None
    overwrite: bool = False
    embeddings: Sequence[Path] = ()  # none: the images of the first artifact's parity suite
    against: Sequence[str] = ()  # words that contenders.chosen() reads
    checkpoint: Path | None = None  # that the first artifact was made from; None: a demo model's

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises: UsageError.
        """
        for what, found, fits, expected in (
            ("artifacts to measure", len(self.paths), len(self.paths) > 0, "at least one directory"),
            ("threads", self.threads, self.threads is None or self.threads >= 1, "at least 1"),
            ("seconds", self.seconds, isfinite(self.seconds) and self.seconds > 0, "more than 0"),
            ("seed", self.seed, self.seed >= 0, "0 or more"),
        ):
            if not fits:
                raise UsageError(f"{what} cannot be", found=found, expected=expected)

    @property
    def timed_seconds(self) -> float:
        """Return how long each artifact is measured in each scenario."""
        return min(self.seconds, QUICK_SECONDS) if self.quick else self.seconds

    def command(self) -> tuple[str, ...]:
        """Return the command line that measures the same again."""
        options: dict[str, object] = {"--device": self.device, "--threads": self.threads, "--seed": self.seed}
        options |= {} if self.quick else {"--seconds": f"{self.seconds:g}"}
        pairs = [(name, value) for name, value in options.items() if value is not None]
        pairs += [("--scenario", name) for name in self.scenarios or ()]
        pairs += [("--embedding", path) for path in self.embeddings]
        pairs += [("--against", words) for words in self.against]
        pairs += [] if self.checkpoint is None else [("--checkpoint", self.checkpoint)]
        flags = ["--quick"] if self.quick else []
        return ("samx", "bench", *map(str, self.paths), *flags, *(str(part) for pair in pairs for part in pair))


def bench(request: BenchRequest, progress: Progress = silent, clock: Clock = now_ns) -> BenchReport:
    """Measure artifacts, and contenders beside them, in turns, and write the report where one was asked for.

    An interruption or a lost device ends the measurement, not this call: the report holds what there is, and its
    `partial` says why (require_complete() makes an error of that). A contender that cannot be opened, or computes
    something else, is named in the report and not timed.
    Raises: UsageError, WriteError before anything is done; ParityError for an artifact that does not compute what
    PyTorch computes on this device; ArtifactError, ImageError, UnavailableError, MissingExtraError.
    """
    if request.output is not None:
        check_free(request.output, request.overwrite)
    scenarios, asked = chosen(tuple(request.scenarios or ()), request.quick), contenders.chosen(request.against)
    with Monitor(adapters(request.device), clock=clock) as monitor:
        progress("Opening the artifacts, and checking their parity on this device")
        subjects = open_subjects(request.paths, request.device, request.threads)
        first = subjects[0]
        artifact = _artifact(first)
        suite = ParitySuite.load(artifact.read(artifact.file_with_role(SUITE_ROLE)), f"{artifact.path}: parity suite")
        workload = _workload(request, first, suite)
        missing: list[NotMeasured] = []
        if asked:
            setting = _setting(request, artifact)
            progress(f"Opening {', '.join(entry.title for entry in asked)}, and checking that they agree")
            found, missing = open_contenders(asked, setting, suite, [subject.name for subject in subjects])
            subjects += found
        run = Harness(
            subjects, workload, request.device, request.threads, request.timed_seconds, request.quick, clock,
            monitor.energy_mj, progress, not_measured=missing,
        )  # fmt: skip
        run.run(scenarios)
    progress("Measuring what this machine reaches at best")
    lines = rooflines(subjects, workload, run.results, request.device, request.threads)
    report = summarised(request, run, device_record(request.device, monitor), lines)
    if request.output is not None:
        report.save(request.output)
    return report


def require_complete(report: BenchReport) -> None:
    """Refuse a report that ended before its end, or with a contender that computes something else.

    Raises: BenchmarkError naming why; ParityError.
    """
    if report.partial is not None:
        raise BenchmarkError(
            "the measurement is not complete", found=report.partial,
            fix=f"What was measured is kept and marked: {len(report.results)} results.",
        )  # fmt: skip
    if wrong := [entry for entry in report.not_measured if entry.wrong]:
        raise ParityError(
            f"{', '.join(entry.subject for entry in wrong)} was not measured: it computes something else",
            found=wrong[0].reason, fix="The other results stand.",
        )  # fmt: skip


def _artifact(subject: Subject) -> Artifact:
    assert subject.artifact is not None  # contenders come after artifacts
    return subject.artifact


def _setting(request: BenchRequest, artifact: Artifact) -> contenders.Setting:
    """Find the checkpoint that the first artifact was made from, for contenders to be filled with.

    Raises: UsageError for another one, or where it has to be named; CheckpointError; MissingExtraError.
    """
    require_export("measuring against other decoders")
    from samx.models.checkpoint import load_checkpoint

    entry, spec = artifact.manifest.checkpoint, artifact.manifest.spec
    path = request.checkpoint or demo_checkpoint(spec.family)
    loaded = load_checkpoint(path, image_size=spec.image_size)
    if loaded.sha256 != entry.sha256:
        raise UsageError(
            f"{artifact.path} was made from another checkpoint, and all have to decode with the same weights",
            found=f"'{path}', SHA-256 {loaded.sha256[:16]}", expected=f"{entry.name}, SHA-256 {entry.sha256[:16]}",
            fix="Name its file with --checkpoint.",
        )  # fmt: skip
    return contenders.Setting(path, replace(loaded, spec=spec), request.device, request.threads)


def _workload(request: BenchRequest, first: Subject, suite: ParitySuite) -> Workload:
    """Take the images that every subject is asked about."""
    spec = first.session.spec
    if request.embeddings:
        images = tuple(read_embedding(path, spec) for path in request.embeddings)
        return Workload(
            spec, images, f"embeddings: {', '.join(path.name for path in request.embeddings)}", request.seed
        )
    return Workload(spec, suite.images, f"parity suite of {first.name}: {suite.image_source}", request.seed)


def summarised(
    request: BenchRequest, run: Harness, device: DeviceRecord, lines: tuple[Roofline, ...] = ()
) -> BenchReport:  # fmt: skip
    """Return the report of what a harness has measured so far."""
    step = step_ns(run.clock)
    ratios, too_few = comparisons(run.results, [subject.name for subject in run.subjects])
    return BenchReport(
        created=utc_now(),
        samx=samx.__version__,
        quick=request.quick,
        partial=run.partial,
        command=request.command(),
        threads=request.threads,
        seed=request.seed,
        seconds=request.timed_seconds,
        images=run.workload.source,
        clock=CLOCK_NAME,
        clock_step_ns=step,
        device=device,
        subjects=tuple(subject.record(run.placements.get(subject.name)) for subject in run.subjects),
        results=tuple(run.results),
        ratios=tuple(ratios),
        not_measured=tuple(run.not_measured),
        flags=(*run.flags, *comparability_flags(run.subjects), *too_few, *_doubtful(run, step)),
        rooflines=lines,
    )


def device_record(requested: str, monitor: Monitor) -> DeviceRecord:
    """Return what was measured on, and how it fared."""
    found = monitor.to_json()
    return DeviceRecord(
        requested, benchmark_environment(), found["devices"], tuple(found["samples"]), found["sampling"],
        tuple(found["flags"]),
    )  # fmt: skip


def _doubtful(run: Harness, step: int) -> list[str]:
    elsewhere = {name: found for name, found in run.placements.items() if not found.honoured}
    coarse = [r for r in run.results if step > COARSE * r.summary.median_ms * 1e6]
    return [
        *(f"{name} was asked to run on {found.requested}, and ran {dict(found.operations)} operations by device"
          for name, found in elsewhere.items()),
        *(f"the clock is too coarse for {r.scenario} of {r.subject}: steps of {step} ns" for r in coarse),
    ]  # fmt: skip


def comparisons(results: Sequence[Result], names: Sequence[str]) -> tuple[list[Comparison], list[str]]:
    """Compare every artifact with the first, and say where there were too few rounds for an interval."""
    baseline, ratios, too_few = names[0], [], []
    first = {(entry.scenario, entry.phase): entry for entry in results if entry.subject == baseline}
    for entry in results:
        base = first.get((entry.scenario, entry.phase))
        if base is None or entry.subject == baseline or entry.phase not in COMPARED:
            continue
        if min(len(base.samples_ns), len(entry.samples_ns)) >= RATIO_SAMPLES:
            pair = (Samples(one.subject, max(one.prompts, 1), one.samples_ns) for one in (base, entry))
            ratio = asdict(speedup(*pair))
            ratios.append(Comparison(entry.scenario, entry.phase, baseline, entry.subject, **ratio))
        else:
            too_few.append(
                f"too few rounds to compare {entry.subject} in {entry.scenario}, {entry.phase}: "
                f"{len(entry.samples_ns)} of at least {RATIO_SAMPLES}"
            )
    return ratios, too_few
