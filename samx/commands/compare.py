"""Measure samx's decoders beside other people's: same weights, same boxes, same machine, in turns.

make compare, or: python -m samx.commands.compare --threads 1 --prompts 1 --prompts 8 --markdown FILE
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import typer

from samx import console
from samx.artifacts.commit import write_file
from samx.artifacts.manifest import utc_now
from samx.benchmarks.agreement import join, output_errors
from samx.benchmarks.bench_table import comparison_markdown
from samx.benchmarks.environment import benchmark_environment
from samx.benchmarks.interleave import Candidate, Effort, Samples, measure
from samx.benchmarks.scenarios import box_feed, object_boxes
from samx.benchmarks.summary import ratios, summarize
from samx.commands.compare_decoders import DECODERS, Call, Decoder, Setting
from samx.demo import demo_checkpoint
from samx.demo.model import PARITY_SCENES, demo_images
from samx.devices.cpu import usable_cpus
from samx.errors import ParityError, UsageError
from samx.models.checkpoint import load_checkpoint
from samx.models.session import FloatArray
from samx.models.spec import DecoderSpec
from samx.processing.images import check_free
from samx.progress import Progress
from samx.validators.metrics import mask_iou

SCHEMA = 2
PROMPTS = (1, 8, 64)
AGREED_PROMPTS = 2
LEAST_IOU = 0.98  # mean over all masks, of a decoder that computes with fewer bits
LEAST_CALLS = 7  # a ratio's interval needs six


def compare(
    families: Sequence[str], threads: Sequence[int], prompts: Sequence[int], seconds: float, compiled: bool,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Open every decoder, see that all of them agree, measure them in turns, and return the report as plain data.

    Raises: ParityError when one computes something else, before anything is timed; MissingExtraError.
    """
    groups: list[dict[str, Any]] = []
    errors: dict[str, dict[str, float]] = {}  # by family, decoder: largest difference of a logit from the baseline's
    masks: dict[str, dict[str, float]] = {}  # by family, decoder with fewer bits: mean IoU with the baseline's masks
    report = {
        "schema": SCHEMA, "created": utc_now(), "command": ["python", "-m", "samx.commands.compare", *sys.argv[1:]],
        "environment": benchmark_environment(), "versions": _versions(families, compiled), "errors": errors,
        "mask_iou": masks, "groups": groups,
    }  # fmt: skip
    for family in families:
        decoders = chosen(family, compiled)
        rounded = {entry.name for entry in decoders if entry.rounded}
        for count, calls, spec in _opened(family, threads, decoders, progress):
            progress(f"{family}, threads {count}: comparing the outputs")
            errors[family] = agree({name: call for name, call in calls.items() if name not in rounded}, spec)
            masks[family] = agree_in_masks(calls, rounded)
            for number in prompts:
                progress(f"{family}, threads {count}: measuring, prompts a call {number}")
                samples = _measure(number, calls, spec, seconds)
                groups.append({"family": family, "threads": count, "prompts": number, **summary(samples)})
    return report


def summary(samples: Sequence[Samples]) -> dict[str, Any]:
    """Return the raw samples of a group and what they say beside the first."""
    baseline = samples[0].name
    return {
        "baseline": baseline,
        "samples": [{**asdict(entry), "summary": asdict(summarize(entry))} for entry in samples],
        "ratios": {name: asdict(ratio) for name, ratio in ratios(samples, baseline).items()},
    }


def chosen(family: str, compiled: bool) -> list[Decoder]:
    """Return a family's decoders, the baseline first."""
    return [entry for entry in DECODERS if family in entry.families and (compiled or not entry.compiled)]


def _versions(families: Sequence[str], compiled: bool) -> dict[str, str]:
    """Return the version of every library that takes part."""
    libraries = {name for family in families for entry in chosen(family, compiled) for name in entry.libraries}
    return {name: version(name) for name in sorted(libraries)}


def _opened(
    family: str, threads: Sequence[int], decoders: Sequence[Decoder], progress: Progress
) -> Iterator[tuple[int, dict[str, Call], DecoderSpec]]:
    checkpoint = demo_checkpoint(family)
    loaded = load_checkpoint(checkpoint)
    image = demo_images(checkpoint, loaded.spec)[0]
    with tempfile.TemporaryDirectory(prefix="samx-compare-") as name:
        for count in threads:
            setting, calls = Setting(loaded, image, count, Path(name)), {}
            for entry in decoders:
                progress(f"{family}, threads {count}: opening {entry.name}")
                calls[entry.name] = entry.open(setting)
            yield count, calls, loaded.spec


def agree(calls: dict[str, Call], spec: DecoderSpec) -> dict[str, float]:
    """Compare every decoder with the first one; return the largest difference of a logit.

    Raises: ParityError.
    """
    boxes = box_feed(spec, 0, AGREED_PROMPTS)["point_coords"]
    found = {name: join(call(boxes)) for name, call in calls.items()}
    expected = next(iter(found.values()))
    return {name: output_errors(name, expected, outputs)[0] for name, outputs in found.items()}


def agree_in_masks(calls: dict[str, Call], rounded: Collection[str]) -> dict[str, float]:
    """Compare the masks of some decoders with the first one's, on boxes round the picture's objects; return mean IoU.

    Raises: ParityError.
    """
    if not rounded:
        return {}
    boxes = object_boxes(*PARITY_SCENES[0])
    expected, *_ = join(next(iter(calls.values()))(boxes))
    return {name: _mean_iou(name, join(calls[name](boxes))[0], expected) for name in calls if name in rounded}


def _mean_iou(name: str, found: FloatArray, expected: FloatArray) -> float:
    ours, theirs = ((logits > 0).reshape(*logits.shape[:2], -1) for logits in (found, expected))
    iou = float(mask_iou(ours, theirs).mean()) if np.isfinite(found).all() else 0.0
    if iou < LEAST_IOU:
        raise ParityError(f"{name}: masks differ from the peer's", found=f"mean IoU {iou:.4f}", expected=f"{LEAST_IOU}")
    return iou


def _measure(prompts: int, calls: dict[str, Call], spec: DecoderSpec, seconds: float) -> list[Samples]:
    def boxes(number: int) -> Any:
        return box_feed(spec, number, prompts)["point_coords"]

    candidates = [Candidate(name, prompts, call, boxes) for name, call in calls.items()]
    return measure(candidates, Effort(seconds, least=LEAST_CALLS, wanted=LEAST_CALLS))


def main(
    family: Annotated[Optional[list[str]], typer.Option(help="sam1, sam2; default both.")] = None,
    threads: Annotated[Optional[list[int]], typer.Option(help="Default: 1, and all.", min=1)] = None,
    prompts: Annotated[Optional[list[int]], typer.Option(help="A call; default 1, 8 and 64.", min=1)] = None,
    seconds: Annotated[float, typer.Option(help="Timed seconds a decoder, at least.", min=0)] = 3.0,
    compiled: Annotated[bool, typer.Option(help="Measure torch.compile too; it takes minutes to compile.")] = True,
    json_file: Annotated[Optional[Path], typer.Option("--json", help="Write raw samples and all facts here.")] = None,
    table: Annotated[Optional[Path], typer.Option("--markdown", help="Write the tables here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Measure samx's decoders beside other people's."""
    families = family or ["sam1", "sam2"]
    if unknown := set(families) - {"sam1", "sam2"}:
        raise UsageError("unknown family", found=", ".join(sorted(unknown)), expected="sam1 or sam2")
    for path in (json_file, table):
        if path is not None:
            check_free(path, force)
    counts = threads or sorted({1, usable_cpus()})
    with console.steps() as progress:
        found = compare(families, counts, prompts or PROMPTS, seconds, compiled, progress)
    text = comparison_markdown(found)
    console.out.print(text, markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        write_file(json_file, (json.dumps(found, indent=1) + "\n").encode())
    if table is not None:
        write_file(table, text.encode())


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    sys.exit(console.run(app, as_json=False))
