"""Measures what pictures and clicks cost, by threads, processes, prompts a call, grid: `python -m tools.capacity`.

Three workers hold an artifact each, two with one thread and one with two. Ways of using them take turns, round by
round, so that what disturbs the machine disturbs all: one worker, the one with two threads, or two at once.
"""

from __future__ import annotations

import argparse
import json
import os
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
QUIET = 0.1  # processors that other programs may keep busy in a round that says what a second one brings
Work = Callable[[], object]
Round = Mapping[str, Any]  # the workers' figures, and how many processors others kept busy


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
                done = in_a_way([workers[number] for number in numbers], name, seconds)
                found[name][way].append(done)
                told = f"{rates([done])[0]:.3f} a second, others {done['others']:.2f} processors"
                sys.stderr.write(f"{artifact.name} {name}, {way}, round {turn + 1}: {told}\n")
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


def in_a_way(workers: Sequence[Worker], name: str, seconds: float) -> Round:
    """Let workers do the same at once; say how many processors other programs kept busy meanwhile."""
    begin, busy = time.perf_counter(), busy_s()
    for worker in workers:
        worker.ask(name, seconds)
    answers = [worker.answer() for worker in workers]
    others = busy_s() - busy - sum(answer["cpu_s"] for answer in answers)
    return {"workers": answers, "others": max(others, 0.0) / (time.perf_counter() - begin)}


def busy_s() -> float:
    """Return for how many seconds the processors of this machine have been busy, all together; Linux alone."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split(maxsplit=4)[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def rates(rounds: Sequence[Round]) -> list[float]:
    """Return how much was answered a second in each round, by all workers together."""
    return [sum(one["answered"] / one["s"] for one in each["workers"]) for each in rounds]


def gain(rounds: Sequence[Round], others: Sequence[Round]) -> str:
    """Return how many times as much was answered, in rounds that nothing else disturbed."""
    pairs = zip(rounds, others, rates(rounds), rates(others), strict=True)
    quiet = [after / before for a, b, before, after in pairs if max(a["others"], b["others"]) < QUIET]
    return f"{median(quiet):.2f}" if quiet else "disturbed"


def cost(rounds: Sequence[Round]) -> str:
    """Return milliseconds an answer, and those of all processors together."""
    answers = [one for each in rounds for one in each["workers"]]
    cpu_ms = 1000 * sum(one["cpu_s"] for one in answers) / sum(one["answered"] for one in answers)
    return f"{1000 / median(rates(rounds)):.1f} ({cpu_ms:.1f})"


def table(document: Mapping[str, Any]) -> str:
    """Write what one answer costs as Markdown: its share of the time, in the median round of each way, the time of all
    processors together, and how much the second thread and the second process brought in the same rounds.
    """
    lines = ["| artifact | work | 1 thread, ms (CPU) | 2 threads | times | 2 processes | times |", "|---" * 7 + "|"]
    for entry in document["artifacts"]:
        for name, by_way in entry["rounds"].items():
            one, *others = (by_way[way] for way in WAYS)
            cells = (cell for other in others for cell in (cost(other), gain(one, other)))
            lines.append(f"| {' | '.join([entry['artifact'], name, cost(one), *cells])} |")
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
