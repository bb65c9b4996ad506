"""What happens once: import, load, first call and peak memory, in a process that has done nothing before.

Run by start(); by hand: python -m samx.benchmarks.cold_start DIR --feed FILE.npz
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

from samx import children
from samx.artifacts.store import Artifact, read_manifest
from samx.benchmarks.environment import peak_bytes
from samx.benchmarks.interleave import Clock, now_ns
from samx.benchmarks.processes import print_report, report_of
from samx.errors import SamxError
from samx.models.session import Feed, Session
from samx.registry import backend, load

CHILD = children.command("samx.benchmarks.cold_start")


@dataclass(frozen=True)
class ColdStart:
    """What one process measured of itself."""

    import_ns: int
    load_ns: int
    first_call_ns: int
    calls_ns: tuple[int, ...]
    peak: dict[str, Any]  # a reading, in bytes


Starter = Callable[[Path, str, int | None, Feed, int], ColdStart]


def start(artifact: Path, device: str, threads: int | None, feed: Feed, calls: int) -> ColdStart:
    """Open an artifact in a new process, set the feed's image, and decode its prompts 1 + `calls` times.

    Raises: SamxError naming how it ended when it did not report.
    """
    with tempfile.TemporaryDirectory(prefix="samx-bench-") as folder:
        file = Path(folder, "feed.npz")
        np.savez(file, **feed)  # type: ignore[arg-type]  # its stub takes a flag among the names
        arguments = [str(artifact), "--feed", str(file), "--device", device, "--calls", str(calls)]
        arguments += [] if threads is None else ["--threads", str(threads)]
        found = report_of([*CHILD, *arguments], list(ColdStart.__dataclass_fields__))
    return ColdStart(**{**found, "calls_ns": tuple(found["calls_ns"])})


def main(arguments: Sequence[str] | None = None, clock: Clock = now_ns) -> int:
    """Measure this process and print the report."""
    parser = argparse.ArgumentParser(prog="python -m samx.benchmarks.cold_start", description=main.__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--feed", type=Path, required=True, help="one image and prompts, as .npz")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--calls", type=int, default=0, help="after the first")
    try:
        found = _observe(parser.parse_args(arguments), clock)
    except SamxError as error:
        print(error, file=sys.stderr)  # noqa: T201 - this is a program
        return error.exit_code
    print_report(asdict(found))
    return 0


def _observe(options: argparse.Namespace, clock: Clock) -> ColdStart:
    """Time each step, the first time that it is done."""
    with np.load(options.feed, allow_pickle=False) as stored:
        feed = dict(stored)
    runner = backend(read_manifest(options.artifact).target).runner(options.device)
    times = [clock()]
    runner.require_runtime()
    open_artifact = load(runner.runtime)
    times.append(clock())
    artifact = Artifact.open(options.artifact)
    session: Session = open_artifact(artifact, device=options.device, threads=options.threads)
    times.append(clock())
    image, prompts = ({tensor.name: feed[tensor.name] for tensor in tensors}
                      for tensors in (session.spec.image_inputs, session.spec.prompt_inputs))  # fmt: skip
    session.set_image(image)
    for _ in range(1 + options.calls):
        session.decode(prompts)
        times.append(clock())
    imported, loaded, first, *calls = [later - earlier for earlier, later in pairwise(times)]
    return ColdStart(imported, loaded, first, tuple(calls), peak_bytes().to_json())


if __name__ == "__main__":
    sys.exit(main())
