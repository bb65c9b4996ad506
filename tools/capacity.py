"""Measures what pictures and clicks cost, by threads, processes, prompts a call, grid: `python -m tools.capacity`.

Three workers hold an artifact each, two with one thread and one with two. Ways of using them take turns, round by
round, so that what disturbs the machine disturbs all: one worker, the one with two threads, or two at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import samx
from samx.artifacts.store import Artifact
from samx.benchmarks.processes import peak_bytes
from samx.commands.bench import benchmark_environment
from samx.demo.scenes import generate_scene
from samx.processing.prompts import Prompt

SEED, SIZE_PX = 900_100, (640, 480)
ANYTHING: Mapping[str, Any] = {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.8}  # what the demo model reaches
WAYS: Mapping[str, tuple[int, ...]] = {  # the workers that run at once, by their number
    "1 process, 1 thread": (0,), "1 process, 2 threads": (2,), "2 processes, 1 thread each": (0, 1),
}  # fmt: skip
THREADS = (1, 1, 2)  # of each worker
BATCHES = (1, 8, 64)
GRIDS = (4, 8, 16, 32)
Work = Callable[[], object]


def works(predictor: samx.Predictor, grids: Sequence[int]) -> dict[str, tuple[Work, int]]:
    """Return what is measured, by name: a call, and how many prompts or pictures it answers."""
    picture = np.ascontiguousarray(generate_scene(SEED, SIZE_PX).image)
    rng = np.random.default_rng(0)
    clicks = [Prompt(points=[tuple(rng.random(2) * SIZE_PX)], labels=[1]) for _ in range(max(BATCHES))]

    def whole() -> None:
        predictor.set_image(picture)
        predictor.segment(clicks[:1])

    def asked(count: int) -> Work:
        return lambda: predictor.segment(clicks[:count])

    def looked(side: int) -> Work:
        return lambda: list(predictor.everything(points_per_side=side, **ANYTHING))

    return {
        "picture": (whole, 1), **{f"clicks{count}": (asked(count), count) for count in BATCHES},
        **{f"grid{side}": (looked(side), 1) for side in grids},
    }  # fmt: skip


def work(artifact: Path, threads: int, grids: Sequence[int]) -> None:
    """Do what the lines of standard input ask for, and answer each with a line."""
    with samx.open(artifact, threads=threads) as predictor:
        known = works(predictor, grids)
        known["picture"][0]()
        for line in sys.stdin:
            name, seconds = line.split()
            call, answered = known[name]
            begin, used = time.perf_counter(), time.process_time()
            times: list[float] = []
            while not times or time.perf_counter() - begin < float(seconds):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            spent = {"s": time.perf_counter() - begin, "cpu_s": time.process_time() - used}
            tell({"calls": len(times), "answered": answered * len(times), **spent,
                  "median_ms": 1000 * median(times), "peak_bytes": peak_bytes().value})  # fmt: skip


def tell(document: Any) -> None:
    """Print a line at once."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


class Worker:
    """Hold an artifact open in a process of its own."""

    def __init__(self, artifact: Path, threads: int, grids: Sequence[int]) -> None:
        command = [sys.executable, "-m", "tools.capacity", "work", str(artifact), str(threads), *map(str, grids)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, name: str, seconds: float) -> None:
        """Begin a measurement."""
        assert self.process.stdin is not None, "opened as a pipe"
        self.process.stdin.write(f"{name} {seconds}\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for its figures."""
        assert self.process.stdout is not None, "opened as a pipe"
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self.process.communicate()


def measure(artifact: Path, rounds: int, seconds: float, grids: Sequence[int]) -> dict[str, Any]:
    """Measure one artifact in every way, in turns."""
    workers = [Worker(artifact, threads, grids) for threads in THREADS]
    names = ["picture", *(f"clicks{count}" for count in BATCHES), *(f"grid{side}" for side in grids)]
    found: dict[str, dict[str, list[Any]]] = {name: {way: [] for way in WAYS} for name in names}
    for name in names:
        for turn in range(rounds):
            for way, numbers in WAYS.items():
                for number in numbers:
                    workers[number].ask(name, seconds)
                answers = [workers[number].answer() for number in numbers]
                found[name][way].append(answers)
                per_s = sum(one["answered"] / one["s"] for one in answers)
                sys.stderr.write(f"{artifact.name} {name}, {way}, round {turn + 1}: {per_s:.3f} a second\n")
    for worker in workers:
        worker.close()
    manifest = Artifact.open(artifact).manifest
    encoder = manifest.encoder.architecture if manifest.encoder is not None else None
    about = {
        "target": manifest.target,
        "precision": manifest.precision,
        "encoder": encoder,
        "options": manifest.options,
    }
    return {"artifact": artifact.name, **about, "rounds": found}


def rates(rounds: Sequence[Sequence[Mapping[str, float]]]) -> list[float]:
    """Return how much was answered a second in each round, by all workers together."""
    return [sum(one["answered"] / one["s"] for one in answers) for answers in rounds]


def table(document: Mapping[str, Any]) -> str:
    """Write the rates as Markdown: the median round of each way, and how much the second thread and process brought."""
    lines = ["| artifact | work | 1 thread, ms | 2 threads, ms | times | 2 processes, ms | times |", "|---" * 7 + "|"]
    for entry in document["artifacts"]:
        for name, by_way in entry["rounds"].items():
            one, two, both = (rates(by_way[way]) for way in WAYS)
            gains = (median(b / a for a, b in zip(one, other, strict=True)) for other in (two, both))
            more, apart = gains
            costs = (1000 / median(each) for each in (one, two, both))
            first, second, third = (f"{cost:.1f}" for cost in costs)
            lines.append(f"| {entry['artifact']} | {name} | {first} | {second} | {more:.2f} | {third} | {apart:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the measurement from the command line."""
    if sys.argv[1:2] == ["work"]:
        work(Path(sys.argv[2]), int(sys.argv[3]), [int(side) for side in sys.argv[4:]])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", type=Path, help="exported with --split")
    parser.add_argument("--output", type=Path, help="JSON file; what is there already stays, other artifacts are added")
    parser.add_argument("--grids", type=int, nargs="*", default=[], help="sides of the automatic mode's grid")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="least time of a way in a round")
    options = parser.parse_args()
    document = json.loads(options.output.read_text()) if options.output and options.output.exists() else None
    document = document or {"environment": benchmark_environment(), "picture_px": SIZE_PX, "artifacts": []}
    for artifact in options.artifacts:
        document["artifacts"].append(measure(artifact, options.rounds, options.seconds, options.grids))
        if options.output:
            options.output.write_text(json.dumps(document, indent=1) + "\n")
    sys.stdout.write(table(document) + "\n")


if __name__ == "__main__":
    main()
