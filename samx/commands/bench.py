"""Measure artifacts on this machine: how fast, on what, and with which proof that they are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

import samx
from samx.artifacts.manifest import utc_now
from samx.artifacts.store import Artifact
from samx.benchmarks import contenders
from samx.benchmarks.harness import Harness
from samx.benchmarks.interleave import CLOCK_NAME, Clock, Samples, now_ns, step_ns
from samx.benchmarks.results import BenchReport, Comparison, DeviceRecord, NotMeasured, Result, Roofline
from samx.benchmarks.roofline import rooflines
from samx.benchmarks.scenarios import Workload, chosen
from samx.benchmarks.subjects import Subject, comparability_flags, open_contenders, open_subjects
from samx.benchmarks.summary import RATIO_SAMPLES, speedup
from samx.demo import demo_checkpoint
from samx.devices import cpu
from samx.devices.monitor import Monitor, adapters
from samx.errors import BenchmarkError, ParityError, UsageError
from samx.extras import require_export
from samx.processing.embeddings import read_embedding
from samx.processing.images import check_free
from samx.progress import Progress, silent
from samx.validators.child import SUITE_ROLE
from samx.validators.report import environment
from samx.validators.suite import ParitySuite

QUICK_SECONDS = 1.0
LIBRARIES = ("onnxruntime", "torch", "onnx", "segment-anything", "samexporter", "sam2", "transformers")
COARSE = 0.01  # share of a median that one step of the clock may be
# Post-processing is the same code for every artifact.
COMPARED = ("import", "load", "first_call", "steady", "transfer")


def bench(
    paths: Sequence[Path],
    device: str = "cpu",
    threads: int | None = None,
    *,
    scenarios: Sequence[str] = (),
    quick: bool = False,
    seconds: float = 3.0,
    seed: int = 0,
    embeddings: Sequence[Path] = (),
    against: Sequence[str] = (),
    checkpoint: Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    clock: Clock = now_ns,
) -> BenchReport:
    """Measure artifacts, and contenders beside them, in turns, and write the report where one was asked for.

    No scenarios: all, or the quick ones; no embeddings: the images of the first artifact's parity suite; no checkpoint:
    a demo model's. Each artifact is timed for `seconds` in each scenario, with `quick` for one second at most.
    An interruption or a lost device ends the measurement, not this call: the report holds what there is, and its
    `partial` says why (require_complete() makes an error of that). A contender that cannot be opened, or computes
    something else, is named in the report and not timed.
    Raises: UsageError, WriteError before anything is done; ParityError for an artifact that does not compute what
    PyTorch computes on this device; ArtifactError, ImageError, UnavailableError, MissingExtraError.
    """
    _check(paths, threads, seconds, seed)
    if output is not None:
        check_free(output, overwrite)
    wanted, asked = chosen(tuple(scenarios), quick), contenders.chosen(against)
    again = command_line(paths, quick, {
        "--device": device, "--threads": threads, "--seed": seed, "--seconds": None if quick else f"{seconds:g}",
        "--scenario": scenarios, "--embedding": embeddings, "--against": against, "--checkpoint": checkpoint,
    })  # fmt: skip
    with Monitor(adapters(device), clock=clock) as monitor:
        progress("Opening the artifacts, and checking their parity on this device")
        subjects = open_subjects(paths, device, threads)
        artifact = subjects[0].artifact
        assert artifact is not None  # contenders come after artifacts
        suite = ParitySuite.load(artifact.read(artifact.file_with_role(SUITE_ROLE)), f"{artifact.path}: parity suite")
        workload = _workload(subjects[0], suite, embeddings, seed)
        missing: list[NotMeasured] = []
        if asked:
            setting = _setting(artifact, checkpoint, device, threads)
            progress(f"Opening {', '.join(entry.title for entry in asked)}, and checking that they agree")
            found, missing = open_contenders(asked, setting, suite, [subject.name for subject in subjects])
            subjects += found
        run = Harness(
            subjects, workload, device, threads, min(seconds, QUICK_SECONDS) if quick else seconds, quick, clock,
            monitor.energy_mj, progress, not_measured=missing,
        )  # fmt: skip
        run.run(wanted)
    progress("Measuring what this machine reaches at best")
    lines = rooflines(subjects, workload, run.results, device, threads)
    report = summarised(run, device_record(device, monitor), again, lines)
    if output is not None:
        report.save(output)
    return report


def _check(paths: Sequence[Path], threads: int | None, seconds: float, seed: int) -> None:
    for what, found, fits, expected in (
        ("artifacts to measure", len(paths), len(paths) > 0, "at least one directory"),
        ("threads", threads, threads is None or threads >= 1, "at least 1"),
        ("seconds", seconds, isfinite(seconds) and seconds > 0, "more than 0"),
        ("seed", seed, seed >= 0, "0 or more"),
    ):
        if not fits:
            raise UsageError(f"{what} cannot be", found=found, expected=expected)


def command_line(paths: Sequence[Path], quick: bool, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the command line that measures the same again; options of None are left out, lists repeated."""
    each = [(name, value if isinstance(value, (list, tuple)) else [value]) for name, value in options.items()]
    pairs = [(name, str(one)) for name, values in each for one in values if one is not None]
    return ("samx", "bench", *map(str, paths), *(["--quick"] if quick else []), *chain.from_iterable(pairs))


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


def _setting(artifact: Artifact, path: Path | None, device: str, threads: int | None) -> contenders.Setting:
    """Find the checkpoint that the first artifact was made from, for contenders to be filled with.

    Raises: UsageError for another one, or where it has to be named; CheckpointError; MissingExtraError.
    """
    require_export("measuring against other decoders")
    from samx.models.checkpoint import load_checkpoint

    entry, spec = artifact.manifest.checkpoint, artifact.manifest.spec
    if spec.object_pointer:
        raise UsageError(
            f"{artifact.path} returns object pointers, which the others do not", found="--object-pointer",
            fix="Measure an export without them beside the others.",
        )  # fmt: skip
    path = path or demo_checkpoint(spec.family)
    loaded = load_checkpoint(path, image_size=spec.image_size, decoder=artifact.manifest.options.get("decoder"))
    if loaded.sha256 != entry.sha256:
        raise UsageError(
            f"{artifact.path} was made from another checkpoint, and all have to decode with the same weights",
            found=f"'{path}', SHA-256 {loaded.sha256[:16]}", expected=f"{entry.name}, SHA-256 {entry.sha256[:16]}",
            fix="Name its file with --checkpoint.",
        )  # fmt: skip
    return contenders.Setting(path, replace(loaded, spec=spec), device, threads)


def _workload(first: Subject, suite: ParitySuite, embeddings: Sequence[Path], seed: int) -> Workload:
    """Take the images that every subject is asked about."""
    spec = first.session.spec
    if embeddings:
        images = tuple(read_embedding(path, spec) for path in embeddings)
        return Workload(spec, images, f"embeddings: {', '.join(path.name for path in embeddings)}", seed)
    return Workload(spec, suite.images, f"parity suite of {first.name}: {suite.image_source}", seed)


def summarised(
    run: Harness, device: DeviceRecord, command: tuple[str, ...] = (), lines: tuple[Roofline, ...] = ()
) -> BenchReport:
    """Return the report of what a harness has measured so far."""
    step = step_ns(run.clock)
    ratios, too_few = comparisons(run.results, [subject.name for subject in run.subjects])
    return BenchReport(
        created=utc_now(),
        samx=samx.__version__,
        quick=run.quick,
        partial=run.partial,
        command=command,
        threads=run.threads,
        seed=run.workload.seed,
        seconds=run.seconds,
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


def benchmark_environment(more: Sequence[str] = ()) -> dict[str, str]:
    """Describe this machine and its libraries, in words; telemetry tells what its devices are, and how they fare."""
    versions = {library: _version(library) for library in (*LIBRARIES, *more)}
    return {**environment(), "cpus_usable": str(cpu.usable_cpus()), **versions}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


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
