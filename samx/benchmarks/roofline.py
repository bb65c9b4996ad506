"""What each steady call needs, beside what this machine reaches at best: a large product and a large copy.

The peaks are measured in a process of their own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from statistics import fmean
from typing import Any

import numpy as np

from samx import children
from samx.artifacts.manifest import Manifest
from samx.benchmarks.interleave import Clock, now_ns
from samx.benchmarks.operations import FLOAT_BYTES, FORMS, count
from samx.benchmarks.processes import print_report, report_of
from samx.benchmarks.results import Need, Result, Roofline
from samx.benchmarks.scenarios import BY_NAME, Workload
from samx.benchmarks.subjects import Subject
from samx.devices.adapter import Reading, unread
from samx.errors import SamxError
from samx.models.session import FloatArray

SCENARIO_KINDS = ("decode", "image")  # whose calls all do the same
ELSEWHERE = "peaks are measured on processors only"
UNITS = {"multiply_adds_per_s": "multiply-adds/s", "bytes_per_s": "bytes/s"}  # of float32; read and written
CHILD = children.command("samx.benchmarks.roofline")
# Whatever library NumPy multiplies with takes its threads from one of these, when it is loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
PRODUCT_SIDE = 1536  # three matrices of 9 MiB
COPIED_BYTES = 128 << 20  # more than a processor's caches hold
SECONDS = 1.0  # for each of the two

Peaks = Mapping[str, Any]  # threads, and the best of many tries by the names of UNITS


def rooflines(
    subjects: Sequence[Subject], workload: Workload, results: Sequence[Result], device: str, threads: int | None,
    measure: Callable[[int | None], Peaks] | None = None, precision: str = "fp32",
) -> tuple[Roofline, ...]:  # fmt: skip
    """Count what was measured, and measure the peaks beside it; none where nothing was counted."""
    by_name = {subject.name: subject for subject in subjects}
    needs = [need for result in results if (need := _need(by_name[result.subject], workload, result)) is not None]
    if not needs:
        return ()
    try:
        elsewhere = measure is None and device != "cpu"
        found, reason = ({}, ELSEWHERE) if elsewhere else ((measure or peaks)(threads), "")
    except SamxError as error:  # what was measured is worth more than its context
        found, reason = {}, str(error)
    rates = {name: Reading(found[name], unit) if found else unread(reason, unit) for name, unit in UNITS.items()}
    read = {name: rate.to_json() for name, rate in rates.items()}
    return (Roofline(found.get("threads"), **read, needs=tuple(needs), precision=precision),)


def _need(subject: Subject, workload: Workload, result: Result) -> Need | None:
    """Count a result; None for what the counts do not cover: other forms, padded points, calls that differ."""
    described, spec, scenario = subject.described, subject.session.spec, BY_NAME[result.scenario]
    options, form_name = described.options, described.form or ""
    counted = form_name in FORMS and isinstance(options.get("cached"), bool) and not options.get("slots")
    if not counted or scenario.kind not in SCENARIO_KINDS or result.phase != "steady":
        return None
    form = {"cached": options["cached"], "independent": options.get("independent") is not False}
    work = [count(spec, form_name, points, **form) for points in result.points]
    afresh = scenario.kind == "image" or not options.get("split")
    adds = fmean(prompt * result.prompts + (image if afresh else 0) for image, prompt, _ in work)
    given = sum(prod(map(int, tensor.shape)) for tensor in spec.image_inputs) * FLOAT_BYTES
    masks = result.prompts * spec.masks_out * spec.mask_size**2 * FLOAT_BYTES
    weights = described.bytes if subject.artifact is None else _weights(subject.artifact.manifest, afresh)
    moved = weights + (given if afresh else work[0][2]) + masks
    return Need(subject.name, scenario.name, round(adds), moved)


def _weights(manifest: Manifest, afresh: bool) -> int:
    """Count the files that a call reads: of a split artifact the prompt's, with the image's where that is new."""
    roles = ("decoder", "package", "image", "prompt") if afresh else ("decoder", "package", "prompt")
    return sum(file.bytes for file in manifest.files.values() if file.role.removesuffix("_weights") in roles)


def peaks(threads: int | None = None) -> Peaks:
    """Measure in a new process, with as many threads as the artifacts had.

    Raises: SamxError when it gives no measurement.
    """
    wanted = str(threads or os.cpu_count() or 1)
    found: Peaks = report_of([*CHILD, wanted], ["threads", *UNITS], dict.fromkeys(THREAD_VARIABLES, wanted))
    return found


def product_rate(clock: Clock = now_ns, seconds: float = SECONDS, side: int = PRODUCT_SIDE) -> float:
    """Multiply two matrices again and again. Units: multiply-adds a second."""
    a, b = (np.full((side, side), value, np.float32) for value in (0.5, 0.25))
    out = np.empty_like(a)
    return side**3 / best_s(lambda: np.matmul(a, b, out=out), clock, seconds)


def copy_rate(threads: int, clock: Clock = now_ns, seconds: float = SECONDS, size: int = COPIED_BYTES) -> float:
    """Copy a large array again and again, each thread a part of it. Units: bytes a second, read and written."""
    source, target = (np.full(size // 4, value, np.float32) for value in (1.0, 0.0))
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))

    def copy(part: tuple[FloatArray, FloatArray]) -> None:
        np.copyto(part[1], part[0])

    with ThreadPoolExecutor(threads) as pool:
        return 2 * source.nbytes / best_s(lambda: list(pool.map(copy, parts)), clock, seconds)


def best_s(work: Callable[[], object], clock: Clock, seconds: float) -> float:
    """Return the shortest time of many tries."""
    work()
    began, best = clock(), float("inf")
    while True:
        start = clock()
        work()
        end = clock()
        best = min(best, (end - start) / 1e9)
        if (end - began) / 1e9 >= seconds:
            return best


def main(threads: int) -> None:
    """Measure this process and print the report."""
    print_report({"threads": threads, **dict(zip(UNITS, (product_rate(), copy_rate(threads)), strict=True))})


if __name__ == "__main__":
    main(int(sys.argv[1]))
