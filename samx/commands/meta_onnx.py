"""Measure samx's SAM 1 decoder beside Meta's own ONNX decoder: same weights, machine, threads and box prompts.

python -m samx.commands.meta_onnx --threads 1 --threads 2 --seconds 3 --json FILE
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from samx import console
from samx.artifacts.commit import write_file
from samx.artifacts.manifest import utc_now
from samx.benchmarks.agreement import check_agreement
from samx.benchmarks.bench_table import facts_table, group_table
from samx.benchmarks.contenders import meta
from samx.benchmarks.environment import benchmark_environment, busy
from samx.benchmarks.interleave import Effort, Samples, measure
from samx.benchmarks.summary import Ratio, counted, ratios, summarize
from samx.demo import demo_checkpoint
from samx.demo.model import demo_images, is_demo
from samx.errors import BenchmarkError, UsageError
from samx.exporters.onnx import OPSETS
from samx.models.checkpoint import LoadedDecoder, load_checkpoint
from samx.models.session import Feed
from samx.progress import Progress
from samx.validators.cases import synthetic_images

SCHEMA = "samx-benchmark-meta-onnx/1"
OPSET_CHOICES = {**{str(opset): (opset,) for opset in OPSETS}, "both": OPSETS}


def compare(
    checkpoint: Path, threads: Sequence[int], opsets: Sequence[int], seconds: float, grid: bool, progress: Progress
) -> dict[str, Any]:
    """Export both decoders, prove that they agree, measure them in turns, and return the report as plain data.

    Raises: MissingExtraError without segment-anything; ParityError when any two disagree, before anything is timed.
    """
    loaded = load_checkpoint(checkpoint)
    images, source = _images(checkpoint, loaded)
    agreement: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    report = {
        "schema": SCHEMA, "command": ["python", "-m", "samx.commands.meta_onnx", *sys.argv[1:]],
        "checkpoint": loaded.name, "checkpoint_sha256": loaded.sha256, "embeddings": source,
        "environment": benchmark_environment(), "created": utc_now(), "agreement": agreement, "results": results,
    }  # fmt: skip
    for opset, sessions in _opened(loaded, threads, opsets, progress):
        where = f"opset {opset}, {counted(sessions.threads, 'thread')}"
        progress(f"{where}: comparing the outputs")
        facts = {"opset": opset, "threads": sessions.threads}
        for i, image in enumerate(images):
            peer = meta.meta_call(sessions, image)
            for group in meta.groups(sessions, image, grid and i == 0):
                agreement += [{**facts, "image": i, **entry} for entry in check_agreement(group.candidates, peer)]
        for group in meta.groups(sessions, images[0], grid):
            progress(f"{where}: measuring {group.title}")
            samples = measure(group.candidates, group.effort or Effort(seconds))
            results.append({"title": group.title, **facts, **summary(samples, group.baseline)})
    return report


def _images(checkpoint: Path, loaded: LoadedDecoder) -> tuple[list[Feed], str]:
    if is_demo(checkpoint):
        return demo_images(checkpoint, loaded.spec), "demo scenes, demo encoder"
    return synthetic_images(loaded.spec), "synthetic"


def _opened(
    loaded: LoadedDecoder, threads: Sequence[int], opsets: Sequence[int], progress: Progress
) -> Iterator[tuple[int, meta.Sessions]]:
    """Export per opset and open per thread count; the files go when the last one was measured."""
    with tempfile.TemporaryDirectory(prefix="samx-benchmark-") as name:
        progress("Exporting Meta's decoder")
        files = meta.export_meta(loaded, Path(name))
        for opset in opsets:
            progress(f"Exporting samx's decoders, opset {opset}")
            exports = meta.export_samx(loaded, opset, Path(name) / str(opset))
            for count in threads:
                yield opset, meta.open_sessions(files, exports, count)


def summary(samples: Sequence[Samples], baseline: str) -> dict[str, Any]:
    """Return the raw samples of a group and what they say."""
    found = ratios(samples, baseline)
    return {
        "baseline": baseline,
        "samples": [{**asdict(entry), **asdict(summarize(entry))} for entry in samples],
        "ratios": {name: asdict(ratio) for name, ratio in found.items()},
        "verdicts": judge(meta.CLAIMS, found),
    }


def judge(claims: Mapping[str, float], found: Mapping[str, Ratio]) -> list[dict[str, Any]]:
    """Compare the claimed speed-ups of measured candidates with their ratios; NaN meets none."""
    return [
        {"candidate": name, "at_least": bound, "ratio": asdict(found[name]), "met": found[name].value >= bound}
        for name, bound in claims.items() if name in found
    ]  # fmt: skip


def show(report: Mapping[str, Any]) -> None:
    """Print the circumstances and the tables."""
    console.out.print(facts_table(report["environment"]))
    if busy(report["environment"]):
        console.out.print("[yellow]The machine was busy: these numbers are not for publication.[/]", highlight=False)
    worst = [max(entry[name] for entry in report["agreement"]) for name in ("logit_error", "iou_error")]
    console.out.print(
        f"outputs agree: logits within {worst[0]:.2g}, predicted IoU within {worst[1]:.2g} ({report['embeddings']})",
        highlight=False,
    )
    for group in report["results"]:
        where = f"opset {group['opset']}, threads: {group['threads']}"
        console.out.print(group_table(f"{group['title']}, {where}; times faster than: {group['baseline']}", group))


def enforce(results: Sequence[Mapping[str, Any]]) -> None:
    """Refuse results in which a claim is not met.

    Raises: BenchmarkError naming each.
    """
    missed = [
        f"{verdict['candidate']} {verdict['ratio']['value']:.2f} instead of {verdict['at_least']:.1f} "
        f"(opset {group['opset']}, {counted(group['threads'], 'thread')})"
        for group in results
        for verdict in group["verdicts"]
        if not verdict["met"]
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
    with console.steps() as progress:
        report = compare(
            checkpoint or demo_checkpoint("sam1"), threads or [1], OPSET_CHOICES[opset], seconds, grid, progress
        )
    show(report)
    if json_file is not None:
        write_file(json_file, (json.dumps(report, indent=1) + "\n").encode())
    if check:
        enforce(report["results"])


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(meta_onnx)
    sys.exit(console.run(app, as_json=False))
