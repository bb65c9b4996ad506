"""What happens once: import, load, first call and peak memory, in a process that has done nothing before."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from samx import children
from samx.artifacts.store import Artifact, read_manifest
from samx.benchmarks.interleave import Clock, now_ns
from samx.benchmarks.processes import peak_bytes, print_report, report_of
from samx.errors import SamxError
from samx.models.session import Feed, Session
from samx.registry import backend, load

CHILD = children.command("samx.benchmarks.cold_start")


FIELDS = ("import_ns", "load_ns", "first_call_ns", "calls_ns", "peak")  # of one process
Starter = Callable[[Path, str, int | None, Feed, int], dict[str, Any]]


def start(artifact: Path, device: str, threads: int | None, feed: Feed, calls: int) -> dict[str, Any]:
    """Open an artifact in a new process, set the feed's image, and decode its prompts 1 + `calls` times; return FIELDS.

    Raises: SamxError naming how it ended when it did not report.
    """
    with tempfile.TemporaryDirectory(prefix="samx-bench-") as folder:
        file = Path(folder, "feed.npz")
        np.savez(file, **feed)  # type: ignore[arg-type]  # its stub takes a flag among the names
        asked = {"artifact": str(artifact), "feed": str(file), "device": device, "threads": threads, "calls": calls}
        found: dict[str, Any] = report_of([*CHILD, json.dumps(asked)], FIELDS)
    return found


def main(asked: str, clock: Clock = now_ns) -> int:
    """Measure this process as start() asks, and print the report."""
    try:
        found = _observe(json.loads(asked), clock)
    except SamxError as error:
        print(error, file=sys.stderr)  # noqa: T201 - this is a program
        return error.exit_code
    print_report(found)
    return 0


def _observe(asked: Mapping[str, Any], clock: Clock) -> dict[str, Any]:
    """Time each step, the first time that it is done."""
    with np.load(asked["feed"], allow_pickle=False) as stored:
        feed = dict(stored)
    path = Path(asked["artifact"])
    runner = backend(read_manifest(path).target).runner(asked["device"])
    times = [clock()]
    runner.require_runtime()
    open_artifact = load(runner.runtime)
    times.append(clock())
    artifact = Artifact.open(path)
    session: Session = open_artifact(artifact, device=asked["device"], threads=asked["threads"])
    times.append(clock())
    image, prompts = ({tensor.name: feed[tensor.name] for tensor in tensors}
                      for tensors in (session.spec.image_inputs, session.spec.prompt_inputs))  # fmt: skip
    session.set_image(image)
    for _ in range(1 + asked["calls"]):
        session.decode(prompts)
        times.append(clock())
    imported, loaded, first, *calls = [later - earlier for earlier, later in pairwise(times)]
    return dict(zip(FIELDS, (imported, loaded, first, calls, peak_bytes().to_json()), strict=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
