"""Measure samx's SAM 1 decoder beside Meta's own ONNX decoder: same weights, machine, threads and box prompts.

python -m samx.commands.meta_onnx --threads 1 --threads 2 --seconds 3 --json FILE
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from samx import console
from samx.artifacts.commit import write_file
from samx.artifacts.manifest import utc_now
from samx.benchmarks.agreement import Agreement, check_agreement
from samx.benchmarks.claims import Verdict, judge
from samx.benchmarks.contenders.meta import export_meta
from samx.benchmarks.contenders.meta_candidates import (
    CLAIMS,
    Group,
    Sessions,
    export_samx,
    groups,
    meta_call,
    open_sessions,
)
from samx.benchmarks.environment import benchmark_environment, busy
from samx.benchmarks.interleave import Effort, Samples, measure
from samx.benchmarks.summary import Ratio, by_name, speedup, summarize
from samx.benchmarks.table import environment_table, group_table
from samx.demo import demo_checkpoint
from samx.errors import BenchmarkError, UsageError
from samx.exporters.base import OPSETS
from samx.exporters.encoder import demo_images, is_demo
from samx.models.checkpoint import LoadedDecoder, load_checkpoint
from samx.models.session import Feed
from samx.validators.synthetic import synthetic_images

SCHEMA = "samx-benchmark-meta-onnx/1"
OPSET_CHOICES = {**{str(opset): (opset,) for opset in OPSETS}, "both": OPSETS}


@dataclass(frozen=True)
class GroupResult:
    """Hold one group's samples and what they say."""

    title: str
    opset: int
    threads: int
    baseline: str
    samples: list[Samples]
    ratios: dict[str, Ratio]
    verdicts: list[Verdict]

    def to_json(self) -> dict[str, Any]:
        """Give the raw samples first, then what was made of them."""
        measured = [{**asdict(entry), **asdict(summarize(entry))} for entry in self.samples]
        claims = [{**asdict(verdict), "met": verdict.met} for verdict in self.verdicts]
        return {**asdict(self), "samples": measured, "verdicts": claims}


@dataclass
class Report:
    """Collect what was measured, on what and how."""

    command: list[str]
    checkpoint: str
    checkpoint_sha256: str
    embeddings: str
    environment: dict[str, str]
    created: str = field(default_factory=utc_now)
    agreement: list[dict[str, Any]] = field(default_factory=list)
    results: list[GroupResult] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain data."""
        plain = {name: value for name, value in vars(self).items() if name != "results"}
        return {"schema": SCHEMA, **plain, "results": [result.to_json() for result in self.results]}


@dataclass(frozen=True)
class Settings:
    """Say what to measure and for how long."""

    threads: Sequence[int]
    opsets: Sequence[int]
    seconds: float
    checkpoint: Path
    grid: bool = False


Progress = Callable[[str], None]


def compare(settings: Settings, progress: Progress) -> Report:
    """Export both decoders, prove that they agree, and measure them in turns.

    Raises: MissingExtraError without segment-anything; ParityError when any two disagree, before anything is timed.
    """
    loaded = load_checkpoint(settings.checkpoint)
    images, source = _images(settings.checkpoint, loaded)
    command = ["python", "-m", "samx.commands.meta_onnx", *sys.argv[1:]]
    report = Report(command, loaded.name, loaded.sha256, source, benchmark_environment())
    for opset, sessions, threads in _opened(settings, loaded, progress):
        where = f"opset {opset}, {threads} thread{'s' if threads > 1 else ''}"
        progress(f"{where}: comparing the outputs")
        report.agreement += [
            {"opset": opset, "threads": threads, "image": i, **asdict(entry)}
            for i, image in enumerate(images)
            for entry in agree(sessions, image, settings.grid and i == 0)
        ]
        for group in groups(sessions, images[0], settings.grid):
            progress(f"{where}: measuring {group.title}")
            report.results.append(_measure(group, opset, threads, settings.seconds))
    return report


def _images(checkpoint: Path, loaded: LoadedDecoder) -> tuple[list[Feed], str]:
    if is_demo(checkpoint):
        return demo_images(checkpoint, loaded.spec), "demo scenes, demo encoder"
    return synthetic_images(loaded.spec), "synthetic"


def _opened(settings: Settings, loaded: LoadedDecoder, progress: Progress) -> Iterator[tuple[int, Sessions, int]]:
    """Export per opset and open per thread count; the files go when the last one was measured."""
    with tempfile.TemporaryDirectory(prefix="samx-benchmark-") as name:
        progress("Exporting Meta's decoder")
        meta = export_meta(loaded, Path(name))
        for opset in settings.opsets:
            progress(f"Exporting samx's decoders, opset {opset}")
            exports = export_samx(loaded, opset, Path(name) / str(opset))
            for threads in settings.threads:
                yield opset, open_sessions(meta, exports, threads), threads


def agree(sessions: Sessions, image: Feed, grid: bool = False) -> list[Agreement]:
    """Check every candidate on one image, through the very calls that will be timed."""
    peer = meta_call(sessions, image)
    return [entry for group in groups(sessions, image, grid) for entry in check_agreement(group.candidates, peer)]


def _measure(group: Group, opset: int, threads: int, seconds: float) -> GroupResult:
    samples = measure(group.candidates, group.effort or Effort(seconds))
    named = by_name(samples)
    ratios = {name: speedup(named[group.baseline], entry) for name, entry in named.items() if name != group.baseline}
    return GroupResult(group.title, opset, threads, group.baseline, samples, ratios, judge(CLAIMS, ratios))


def show(report: Report) -> None:
    """Print the circumstances and the tables."""
    console.out.print(environment_table(report.environment))
    if busy(report.environment):
        console.out.print("[yellow]The machine was busy: these numbers are not for publication.[/]", highlight=False)
    worst = [max(entry[name] for entry in report.agreement) for name in ("logit_error", "iou_error")]
    console.out.print(
        f"outputs agree: logits within {worst[0]:.2g}, predicted IoU within {worst[1]:.2g} ({report.embeddings})",
        highlight=False,
    )
    for result in report.results:
        title = f"{result.title}, opset {result.opset}, threads: {result.threads}; times faster than: {result.baseline}"
        console.out.print(group_table(title, result.samples, result.ratios, result.verdicts))


def enforce(results: Sequence[GroupResult]) -> None:
    """Refuse results in which a claim is not met.

    Raises: BenchmarkError naming each.
    """
    missed = [
        f"{verdict.candidate} {verdict.ratio.value:.2f} instead of {verdict.at_least:.1f} "
        f"(opset {result.opset}, {result.threads} threads)"
        for result in results
        for verdict in result.verdicts
        if not verdict.met
    ]
    if missed:
        raise BenchmarkError(
            "claimed speed was not reached", found="; ".join(missed), fix="Measure on a quiet machine."
        )


def meta_onnx(
    threads: Annotated[Optional[list[int]], typer.Option(help="May be given several times; default 1.", min=1)] = None,
    seconds: Annotated[float, typer.Option(help="Timed seconds per decoder.", min=0)] = 3.0,
    opset: Annotated[str, typer.Option(help=" or ".join(OPSET_CHOICES))] = "both",
    checkpoint: Annotated[Optional[Path], typer.Option(help="SAM 1 weights (default: the demo model).")] = None,
    json_file: Annotated[Optional[Path], typer.Option("--json", help="Write raw samples and all facts here.")] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="Measure everything mode's 1024 points too; takes minutes.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 4 when a claimed speed-up is not met.")] = False,
) -> None:
    """Measure samx's SAM 1 decoder beside Meta's own ONNX decoder."""
    if opset not in OPSET_CHOICES:
        raise UsageError("opset is not offered", found=opset, expected=" or ".join(OPSET_CHOICES))
    settings = Settings(threads or [1], OPSET_CHOICES[opset], seconds, checkpoint or demo_checkpoint("sam1"), grid)
    with console.steps() as progress:
        report = compare(settings, progress)
    show(report)
    if json_file is not None:
        write_file(json_file, (json.dumps(report.to_json(), indent=1) + "\n").encode())
    if check:
        enforce(report.results)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(meta_onnx)
    sys.exit(console.run(app, as_json=False))
