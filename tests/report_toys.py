"""Benchmark reports of devices that do not exist, with times out of a random generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from samx.benchmarks.results import BenchReport, DeviceRecord, NotMeasured, ParityRecord, Reading, Result, SubjectRecord
from samx.commands.bench import comparisons

CPU = "Toy processor"
# Scenario: phase, prompts, points, calls, times the click's time.
WORK: Sequence[tuple[str, str, int, tuple[int, ...], int, float]] = (
    ("click", "steady", 1, (2,), 300, 1.0),
    ("click", "post_processing", 1, (2,), 100, 0.2),
    ("box", "steady", 1, (3,), 300, 1.04),
    ("image", "steady", 1, (2,), 300, 1.3),
    ("points", "steady", 1, tuple(range(2, 10)), 304, 1.2),
    ("batch8", "steady", 8, (2,), 120, 6.4),
    ("batch64", "steady", 64, (2,), 40, 47.0),
    ("cold", "import", 0, (), 10, 60.0),
    ("cold", "load", 0, (), 10, 25.0),
    ("cold", "first_call", 1, (2,), 10, 5.0),
)


def reading(value: Any, unit: str | None = None) -> Reading:
    return {"value": value, "unit": unit, "reason": None}


def unread(reason: str, unit: str | None = None) -> Reading:
    return {"value": None, "unit": unit, "reason": reason}


def subject(precision: str = "fp32", target: str = "onnx", name: str | None = None, **changes: Any) -> SubjectRecord:
    agrees = {"fp32": 1.0, "fp16": 0.99912, "int8": 0.9874}[precision]
    metrics = {"mask_iou_mean": agrees, "mask_iou_min": 1 - 1.4 * (1 - agrees), "flipped_share": (1 - agrees) / 10}
    parity = ParityRecord("passed", "graph", "cpu", "onnxruntime", "2026-01-02T03:00:00+00:00", "stored", 13, metrics)
    placement = {"runtime": "onnxruntime", "requested": "cpu", "operations": {"cpu": 344}, "details": {}}
    megabytes = {"fp32": 22, "fp16": 11, "int8": 7}[precision]
    record = SubjectRecord(
        name or f"sam1-{target}-{precision}", target, precision, "sam1", "multimask", False, "sam1", "5" * 64, "1" * 64,
        megabytes * 1_000_000, "absorbed", {}, parity, placement,
    )  # fmt: skip
    return replace(record, **changes)


def times_ns(median_ms: float, count: int, noise: float, cycle: int, seed: Sequence[int]) -> tuple[int, ...]:
    random = np.random.default_rng(seed)
    level = np.linspace(0.9, 1.1, cycle)[np.arange(count) % cycle]
    slow = np.where(random.random(count) < 0.02, random.exponential(0.4, count), 0)
    found = median_ms * 1e6 * level * np.exp(random.normal(0, noise, count) + slow)
    return tuple(int(value) for value in found)


def results(record: SubjectRecord, click_ms: float, noise: float, seed: int, energy: Reading | None) -> list[Result]:
    nothing = energy or unread("cpu: this machine shows no power")
    found, at = [], 1_000_000_000
    for i, (scenario, phase, prompts, points, calls, factor) in enumerate(WORK):
        samples = times_ns(click_ms * factor, calls, noise, max(len(points), 1), [seed, i])
        spent = sum(samples)
        drawn = nothing if phase == "steady" else unread("measured in a process of its own")
        found.append(Result(record.name, scenario, phase, prompts, points, 3, 200_000_000, at, at + spent, samples,
                            drawn, None))  # fmt: skip
        at += spent
    peak = reading(int(click_ms * 6e7), "bytes")
    last = Result(
        record.name,
        "memory",
        "steady",
        256,
        (2,),
        1,
        10,
        at,
        at + 10,
        times_ns(click_ms * 190, 3, noise, 1, [seed]),
        nothing,
        peak,
    )
    return [*found, last]


def device(
    name: str = CPU, kind: str = "cpu", requested: str = "cpu", flags: Sequence[str] = (), moving: float = 0.0
) -> DeviceRecord:
    random = np.random.default_rng(len(name))
    heat = 48 + moving * (1 - np.exp(-np.arange(60) / 18)) + random.normal(0, 0.3, 60)
    clock = 2100 - 8 * moving * (np.arange(60) > 40) + random.normal(0, 4, 60)
    samples = [
        {
            "time_ns": 1_000_000_000 + 200_000_000 * i,
            "readings": {
                kind: {"temperature": float(heat[i]), "clock_mean": float(clock[i]), "load_1min": 0.1 + i / 60}
            },
        }
        for i in range(60)
    ]
    ends = [{"temperature": reading(float(heat[i]), "C"), "clock_mean": reading(float(clock[i]), "MHz"),
             "load_1min": reading(0.1 + i / 60, "processes"), "power": unread("this machine shows no power", "W")}
            for i in (0, 59)]  # fmt: skip
    facts = {"memory": reading(16384, "MiB"), "governor": unread("this system does not show who chooses the clocks")}
    environment = {"platform": "Toy OS 1", "python": "3.11.7", "onnxruntime": "1.31.1", "cpus_usable": "8"}
    return DeviceRecord(
        requested, environment, {kind: {"name": name, "facts": facts, "before": ends[0], "after": ends[1]}},
        tuple(samples), {"interval_s": 0.2, "cost": reading(85.0, "us")}, tuple(flags),
    )  # fmt: skip


def bench_report(
    click_ms: Mapping[str, float] | None = None, *, noise: float = 0.03, seed: int = 0, energy: float | None = None,
    target: str = "onnx", where: DeviceRecord | None = None, compared: bool = False, **changes: Any,
) -> BenchReport:  # fmt: skip
    """Build a report of one artifact for each precision, with the click's time of each in ms."""
    chosen = click_ms or {"fp32": 11.0, "int8": 7.7}
    records = [subject(precision, target) for precision in chosen]
    drawn = [None if energy is None else reading(energy * ms, "mJ") for ms in chosen.values()]
    found = [result for i, (record, ms) in enumerate(zip(records, chosen.values(), strict=True))
             for result in results(record, ms, noise, seed * 10 + i, drawn[i])]  # fmt: skip
    ratios, too_few = comparisons(found, [record.name for record in records]) if compared else ([], [])  # slow
    gaps = [
        NotMeasured(record.name, "refine", None, "takes no mask prompt; export with --mask-input") for record in records
    ]
    report = BenchReport(
        created="2026-01-02T03:04:05+00:00", samx="0.1.0", quick=False, partial=None,
        command=("samx", "bench", *(record.name for record in records), "--device", "cpu", "--threads", "2"), threads=2,
        seed=0, seconds=3.0, images="parity suite of sam1-onnx: demo scenes", clock="perf_counter_ns", clock_step_ns=40,
        device=where or device(), subjects=tuple(records), results=tuple(found), ratios=tuple(ratios),
        not_measured=tuple(gaps), flags=tuple(too_few),
    )  # fmt: skip
    return replace(report, **changes)


def slower(report: BenchReport, factor: float, scenario: str = "click") -> BenchReport:
    """Plant a slowdown in one scenario's calls."""
    found = [
        replace(result, samples_ns=tuple(int(ns * factor) for ns in result.samples_ns))
        if (result.scenario, result.phase) == (scenario, "steady")
        else result
        for result in report.results
    ]
    return replace(report, results=tuple(found), ratios=())


def saved(report: BenchReport, path: Path) -> Path:
    report.save(path)
    return path


def many_devices() -> list[BenchReport]:
    """Build reports of four devices, one of them throttled and one interrupted."""
    throttled = ["the GPU's clocks were held down in 12 of 60 samples: heat, by software",
                 "information: the processor's clocks are governed by schedutil, not performance"]  # fmt: skip
    return [
        bench_report({"fp32": 0.92, "fp16": 0.41}, target="tensorrt", compared=True, seed=1, energy=180.0, noise=0.02,
                     where=device("Toy data center GPU", "nvidia", "cuda", moving=22)),
        bench_report({"fp16": 4.3, "int8": 3.4}, target="tensorrt", compared=True, seed=2, energy=9.0, noise=0.05,
                     where=device("Toy board with a GPU, developer kit", "jetson", "cuda", throttled, moving=30)),
        bench_report({"fp16": 3.1}, target="coreml", seed=3, noise=0.04,
                     where=device("Toy phone", "apple", "cpu+ane", moving=6),
                     partial="stopped by the user (Ctrl-C), in batch64"),
        bench_report({"fp32": 11.0, "int8": 7.7}, compared=True, seed=4, noise=0.11),
    ]  # fmt: skip
