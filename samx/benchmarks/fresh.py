"""What happens once: import, load, first call and peak memory, in a process that has done nothing before.

Run by start(); by hand: python -m samx.benchmarks.fresh DIR --feed FILE.npz
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from samx.artifacts.store import Artifact, read_manifest
from samx.benchmarks.clock import Clock, now_ns
from samx.benchmarks.memory import peak_bytes
from samx.benchmarks.processes import print_report, report_of
from samx.errors import SamxError
from samx.models.session import Feed, Session
from samx.registry import backend, load

CHILD = (sys.executable, "-m", "samx.benchmarks.fresh")


@dataclass(frozen=True)
class Fresh:
    """Hold what one process measured of itself."""

    import_ns: int
    load_ns: int
    first_call_ns: int
    calls_ns: tuple[int, ...]
    peak: dict[str, Any]  # a reading, in bytes


@dataclass(frozen=True)
class Start:
    """Say what a fresh process does: open an artifact, set an image, decode the prompts 1 + `calls` times."""

    artifact: Path
    device: str
    threads: int | None
    image: Feed
    prompts: Feed
    calls: int = 0


Starter = Callable[[Start], Fresh]


def start(task: Start) -> Fresh:
    """Measure in a new process.

    Raises: SamxError naming how it ended when it did not report.
    """
    with tempfile.TemporaryDirectory(prefix="samx-bench-") as folder:
        feed = Path(folder, "feed.npz")
        np.savez(feed, **task.image, **task.prompts)  # type: ignore[arg-type]  # its stub takes a flag among the names
        arguments = [str(task.artifact), "--feed", str(feed), "--device", task.device, "--calls", str(task.calls)]
        arguments += [] if task.threads is None else ["--threads", str(task.threads)]
        found = report_of([*CHILD, *arguments], list(Fresh.__dataclass_fields__))
    return Fresh(**{**found, "calls_ns": tuple(found["calls_ns"])})


def main(arguments: Sequence[str] | None = None, clock: Clock = now_ns) -> int:
    """Measure this process and print the report."""
    options = _parser().parse_args(arguments)
    try:
        found = observe(options, clock)
    except SamxError as error:
        print(error, file=sys.stderr)  # noqa: T201 - this is a program
        return error.exit_code
    print_report(asdict(found))
    return 0


def observe(options: argparse.Namespace, clock: Clock) -> Fresh:
    """Take the time of each step, the first time that it is done."""
    with np.load(options.feed, allow_pickle=False) as stored:
        feed = {name: stored[name] for name in stored.files}
    runner = backend(read_manifest(options.artifact).target).runner(options.device)
    times = [clock()]
    runner.require_runtime()
    open_artifact = load(runner.runtime)
    times.append(clock())
    artifact = Artifact.open(options.artifact)
    session: Session = open_artifact(artifact, device=options.device, threads=options.threads)
    times.append(clock())
    image = {tensor.name: feed[tensor.name] for tensor in session.spec.image_inputs}
    prompts = {tensor.name: feed[tensor.name] for tensor in session.spec.prompt_inputs}
    session.set_image(image)
    for _ in range(1 + options.calls):
        session.decode(prompts)
        times.append(clock())
    imported, loaded, first, *calls = [later - earlier for earlier, later in pairwise(times)]
    return Fresh(imported, loaded, first, tuple(calls), peak_bytes().to_json())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m samx.benchmarks.fresh", description=main.__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--feed", type=Path, required=True, help="one image and prompts, as .npz")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--calls", type=int, default=0, help="after the first")
    return parser


if __name__ == "__main__":
    sys.exit(main())
