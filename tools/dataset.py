"""Measures what a second worker brings `samx dataset`, in processes and on Ray: `make ray`.

The same pictures, in turns, by one worker of one thread and by two. A rate is that between the first file and the last
one, so that the start of workers is not in it. Processes of other programs disturb it: look at the load.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from samx.commands.bench import benchmark_environment
from samx.demo.picture import write_picture

PER_FILE = 10
SIZE_PX = (320, 240)
FIRST_SEED = 910_000  # scenes that the demo model was not trained on
LOOK = ("--points-per-side", "8", "--pred-iou-thresh", "0.7", "--stability-score-thresh", "0.7")
ENGINES = ("processes", "ray")


def run(pictures: Path, model: Path, engine: str, workers: int) -> dict[str, Any]:
    """Run the command once."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        about = {"model": model, "engine": engine, "workers": workers, "threads": 1, "per-file": PER_FILE}
        asked = [f"--{name}={value}" for name, value in about.items()]
        start = time.perf_counter()
        command = [sys.executable, "-m", "samx", "dataset", str(pictures), "-o", str(out), *asked, *LOOK]
        subprocess.run(command, check=True, capture_output=True)
        whole_s = time.perf_counter() - start
        written = sorted(file.stat().st_mtime for file in out.glob("part-*"))
    a_second = PER_FILE * (len(written) - 1) / (written[-1] - written[0])
    return {"engine": engine, "workers": workers, "pictures_a_second": a_second, "whole_s": whole_s, "load": load}


def gains(runs: Sequence[Mapping[str, Any]], engine: str) -> list[float]:
    """Return how many times as much two workers did as one, round by round."""
    one, two = ([run["pictures_a_second"] for run in runs if (run["engine"], run["workers"]) == (engine, workers)]
                for workers in (1, 2))  # fmt: skip
    return [after / before for before, after in zip(one, two, strict=True)]


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an exported directory")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.pictures):
            write_picture(Path(folder) / f"{number:04}.png", FIRST_SEED + number, SIZE_PX)
        for _ in range(asked.rounds):
            for engine in ENGINES:
                for workers in (1, 2):
                    runs.append(run(Path(folder), asked.model, engine, workers))
                    sys.stdout.write(f"{json.dumps(runs[-1])}\n")
                    sys.stdout.flush()
    found = {engine: gains(runs, engine) for engine in ENGINES}
    environment = benchmark_environment(("onnxruntime", "ray", "pyarrow"))
    document = {"pictures": asked.pictures, "size_px": SIZE_PX, "look": LOOK, "gains": found, "runs": runs}
    asked.output.write_text(json.dumps({**document, "environment": environment}, indent=1) + "\n", encoding="utf-8")
    for engine, times in found.items():
        sys.stdout.write(f"{engine}: two workers did {median(times):.2f} times what one did\n")


if __name__ == "__main__":
    main()
