"""What each steady call needs, beside what this machine reaches at best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from statistics import fmean

from samx.artifacts.manifest import Manifest
from samx.benchmarks.operations import FLOAT_BYTES, FORMS, count
from samx.benchmarks.peaks import Peaks, peaks
from samx.benchmarks.results import Need, Reading, Result, Roofline
from samx.benchmarks.scenarios import BY_NAME, Questions
from samx.benchmarks.subjects import Subject
from samx.devices.reading import Reading as Found
from samx.devices.reading import unread
from samx.errors import SamxError

KINDS = ("decode", "image")  # of scenarios whose calls all do the same
PRODUCTS, BYTES = "multiply-adds/s", "bytes/s"
ELSEWHERE = "peaks are measured on processors only"


def roofline(
    subjects: Sequence[Subject], questions: Questions, results: Sequence[Result], device: str, threads: int | None,
    measure: Callable[[int | None], Peaks] = peaks,
) -> Roofline | None:  # fmt: skip
    """Count what was measured, and measure the peaks beside it; None where nothing was counted."""
    by_name = {subject.name: subject for subject in subjects}
    needs = [need for result in results if (need := _need(by_name[result.subject], questions, result)) is not None]
    if not needs:
        return None
    products, copies, used = _peaks(device, threads, measure)
    return Roofline(used, products, copies, tuple(needs))


def _peaks(
    device: str, threads: int | None, measure: Callable[[int | None], Peaks]
) -> tuple[Reading, Reading, int | None]:
    if device != "cpu":
        return unread(ELSEWHERE, PRODUCTS).to_json(), unread(ELSEWHERE, BYTES).to_json(), None
    try:
        found = measure(threads)
    except SamxError as error:  # what was measured is worth more than its context
        return unread(str(error), PRODUCTS).to_json(), unread(str(error), BYTES).to_json(), None
    rates = Found(found.multiply_adds_per_s, PRODUCTS), Found(found.bytes_per_s, BYTES)
    return rates[0].to_json(), rates[1].to_json(), found.threads


def _need(subject: Subject, questions: Questions, result: Result) -> Need | None:
    """Count a result; None for what the counts do not cover: other forms, padded points, calls that differ."""
    manifest, scenario = subject.artifact.manifest, BY_NAME[result.scenario]
    options = manifest.options
    counted = options.get("form") in FORMS and isinstance(options.get("cached"), bool) and not options.get("slots")
    if not counted or scenario.kind not in KINDS or result.phase != "steady":
        return None
    form = {"cached": options["cached"], "independent": options.get("independent") is not False}
    work = [count(manifest.spec, options["form"], points, **form) for points in result.points]
    afresh = scenario.kind == "image" or not options.get("split")
    adds = fmean(each.prompt * result.prompts + (each.image if afresh else 0) for each in work)
    image = sum(prod(map(int, tensor.shape)) for tensor in manifest.spec.image_inputs) * FLOAT_BYTES
    masks = result.prompts * manifest.spec.masks_out * manifest.spec.mask_size**2 * FLOAT_BYTES
    moved = _weights(manifest, afresh) + (image if afresh else work[0].kept_bytes) + masks
    return Need(subject.name, scenario.name, round(adds), moved)


def _weights(manifest: Manifest, afresh: bool) -> int:
    """Count the files that a call reads: of a split artifact the prompt's, with the image's where that is new."""
    roles = ("decoder", "package", "image", "prompt") if afresh else ("decoder", "package", "prompt")
    return sum(file.bytes for file in manifest.files.values() if file.role.removesuffix("_weights") in roles)
