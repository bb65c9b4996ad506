"""What this processor reaches at best: a large product and a large copy, in a process of its own.

Run by peaks(); by hand: python -m samx.benchmarks.peaks --threads 1
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from samx.benchmarks.clock import Clock, now_ns
from samx.benchmarks.processes import print_report, report_of
from samx.models.session import FloatArray

CHILD = (sys.executable, "-m", "samx.benchmarks.peaks")
# Whatever library NumPy multiplies with takes its threads from one of these, when it is loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
PRODUCT_SIDE = 1536  # three matrices of 9 MiB
COPIED_BYTES = 128 << 20  # more than a processor's caches hold
SECONDS = 1.0  # for each of the two


@dataclass(frozen=True)
class Peaks:
    """Hold the best of many tries: float32 multiply-adds, and bytes that were read and written."""

    threads: int
    multiply_adds_per_s: float
    bytes_per_s: float


def peaks(threads: int | None = None) -> Peaks:
    """Measure in a new process, with as many threads as the artifacts had.

    Raises: SamxError when it gives no measurement.
    """
    count = str(threads or os.cpu_count() or 1)
    found = report_of(
        [*CHILD, "--threads", count], list(Peaks.__dataclass_fields__), dict.fromkeys(THREAD_VARIABLES, count)
    )
    return Peaks(**found)


def product_rate(clock: Clock = now_ns, seconds: float = SECONDS, side: int = PRODUCT_SIDE) -> float:
    """Multiply two matrices again and again. Units: multiply-adds a second."""
    a, b = (np.full((side, side), value, np.float32) for value in (0.5, 0.25))
    out = np.empty_like(a)
    return side**3 / _best_s(lambda: np.matmul(a, b, out=out), clock, seconds)


def copy_rate(threads: int, clock: Clock = now_ns, seconds: float = SECONDS, size: int = COPIED_BYTES) -> float:
    """Copy a large array again and again, each thread a part of it. Units: bytes a second, read and written."""
    source, target = (np.full(size // 4, value, np.float32) for value in (1.0, 0.0))
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))

    def copy(part: tuple[FloatArray, FloatArray]) -> None:
        np.copyto(part[1], part[0])

    with ThreadPoolExecutor(threads) as pool:
        return 2 * source.nbytes / _best_s(lambda: list(pool.map(copy, parts)), clock, seconds)


def _best_s(work: Callable[[], object], clock: Clock, seconds: float) -> float:
    work()
    began, best = clock(), float("inf")
    while True:
        start = clock()
        work()
        end = clock()
        best = min(best, (end - start) / 1e9)
        if (end - began) / 1e9 >= seconds:
            return best


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure this process and print the report."""
    parser = argparse.ArgumentParser(prog="python -m samx.benchmarks.peaks", description=main.__doc__)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args(arguments).threads
    print_report(asdict(Peaks(threads, product_rate(), copy_rate(threads))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
