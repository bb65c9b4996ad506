"""Measure samx's decoders beside other people's: same weights, same boxes, same machine, in turns.

make compare, or: python -m samx.commands.compare --threads 1 --prompts 1 --prompts 8 --markdown FILE
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import typer

from samx import console
from samx.artifacts.commit import write_file
from samx.artifacts.manifest import utc_now
from samx.benchmarks.agreement import OUTPUTS, join, output_error
from samx.benchmarks.boxes import box_feed, object_boxes
from samx.benchmarks.compare_table import markdown
from samx.benchmarks.environment import benchmark_environment
from samx.benchmarks.interleave import Candidate, Effort, Samples, measure
from samx.benchmarks.summary import Ratio, by_name, speedup, summarize
from samx.commands.compare_decoders import DECODERS, Call, Decoder, Setting
from samx.demo import demo_checkpoint
from samx.devices.cpu import usable_cpus
from samx.errors import ParityError, UsageError
from samx.exporters.encoder import PARITY_SCENES, demo_images
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


@dataclass(frozen=True)
class Group:
    """Hold what took turns: one family, one number of threads, one number of prompts."""

    family: str
    threads: int
    prompts: int
    baseline: str
    samples: tuple[Samples, ...]
    ratios: dict[str, Ratio]

    def to_json(self) -> dict[str, Any]:
        """Give raw samples, and what was made of them."""
        measured = [{**asdict(entry), "summary": asdict(summarize(entry))} for entry in self.samples]
        return {**asdict(self), "samples": measured}


@dataclass(frozen=True)
class Settings:
    """Say what to measure and for how long."""

    families: Sequence[str]
    threads: Sequence[int]
    prompts: Sequence[int]
    seconds: float
    compiled: bool


@dataclass(frozen=True)
class Comparison:
    """Hold the whole run."""

    created: str
    command: Sequence[str]
    environment: dict[str, str]
    versions: dict[str, str]
    errors: dict[str, dict[str, float]]  # by family, decoder: largest difference of a logit from the baseline's
    mask_iou: dict[str, dict[str, float]]  # by family, decoder with fewer bits: mean with the baseline's masks
    groups: tuple[Group, ...]

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain data."""
        return {"schema": SCHEMA, **asdict(self), "groups": [group.to_json() for group in self.groups]}


def compare(settings: Settings, progress: Progress) -> Comparison:
    """Open every decoder, see that all of them agree, and measure them in turns.

    Raises: ParityError when one computes something else, before anything is timed; MissingExtraError.
    """
    environment = benchmark_environment()
    groups: list[Group] = []
    errors: dict[str, dict[str, float]] = {}
    masks: dict[str, dict[str, float]] = {}
    for family in settings.families:
        for threads, calls, spec in _opened(family, settings, progress):
            progress(f"{family}, threads {threads}: comparing the outputs")
            rounded = {entry.name for entry in chosen(family, settings.compiled) if entry.rounded}
            errors[family] = agree({name: call for name, call in calls.items() if name not in rounded}, spec)
            masks[family] = agree_in_masks(calls, rounded)
            for prompts in settings.prompts:
                progress(f"{family}, threads {threads}: measuring, prompts a call {prompts}")
                groups.append(_group(family, threads, prompts, calls, spec, settings.seconds))
    command = ["python", "-m", "samx.commands.compare", *sys.argv[1:]]
    return Comparison(utc_now(), command, environment, versions(settings), errors, masks, tuple(groups))


def chosen(family: str, compiled: bool) -> list[Decoder]:
    """List a family's decoders, the baseline first."""
    return [entry for entry in DECODERS if family in entry.families and (compiled or not entry.compiled)]


def versions(settings: Settings) -> dict[str, str]:
    """Give the version of every library that took part."""
    entries = [entry for family in settings.families for entry in chosen(family, settings.compiled)]
    return {name: version(name) for name in sorted({name for entry in entries for name in entry.libraries})}


def _opened(family: str, settings: Settings, progress: Progress) -> Iterator[tuple[int, dict[str, Call], DecoderSpec]]:
    checkpoint = demo_checkpoint(family)
    loaded = load_checkpoint(checkpoint)
    image = demo_images(checkpoint, loaded.spec)[0]
    with tempfile.TemporaryDirectory(prefix="samx-compare-") as name:
        for threads in settings.threads:
            setting, calls = Setting(loaded, image, threads, Path(name)), {}
            for entry in chosen(family, settings.compiled):
                progress(f"{family}, threads {threads}: opening {entry.name}")
                calls[entry.name] = entry.open(setting)
            yield threads, calls, loaded.spec


def agree(calls: dict[str, Call], spec: DecoderSpec) -> dict[str, float]:
    """Compare every decoder with the first one; gives the largest difference of a logit.

    Raises: ParityError.
    """
    boxes = box_feed(spec, 0, AGREED_PROMPTS)["point_coords"]
    found = {name: join(call(boxes)) for name, call in calls.items()}
    expected = next(iter(found.values()))
    errors = {
        name: [output_error(name, *pair) for pair in zip(OUTPUTS, expected, outputs, strict=True)]
        for name, outputs in found.items()
    }
    return {name: logits for name, (logits, _) in errors.items()}


def agree_in_masks(calls: dict[str, Call], rounded: Collection[str]) -> dict[str, float]:
    """Compare the masks of some decoders with the first one's, on boxes round the picture's objects; gives mean IoU.

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


def _group(family: str, threads: int, prompts: int, calls: dict[str, Call], spec: DecoderSpec, seconds: float) -> Group:
    def boxes(number: int) -> Any:
        return box_feed(spec, number, prompts)["point_coords"]

    candidates = [Candidate(name, prompts, call, boxes) for name, call in calls.items()]
    samples = measure(candidates, Effort(seconds, least=LEAST_CALLS, wanted=LEAST_CALLS))
    named, baseline = by_name(samples), candidates[0].name
    ratios = {name: speedup(named[baseline], entry) for name, entry in named.items() if name != baseline}
    return Group(family, threads, prompts, baseline, tuple(samples), ratios)


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
    settings = Settings(families, counts, prompts or list(PROMPTS), seconds, compiled)
    with console.steps() as progress:
        found = compare(settings, progress)
    text = markdown(found.to_json())
    console.out.print(text, markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        write_file(json_file, (json.dumps(found.to_json(), indent=1) + "\n").encode())
    if table is not None:
        write_file(table, text.encode())


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    sys.exit(console.run(app, as_json=False))
