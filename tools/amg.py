"""Compares the automatic mode with Meta's generators on demo scenes, masks and time: `make amg`.

The demo model decodes on both sides, in PyTorch there and from an artifact here, in turns on the same threads. Time is
that of decoder and masks: the image encoder's is taken off. Every scene is kept as it is done: ask again, and the rest
is done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import conftest  # noqa: F401 - torchvision's operators before torchvision
import numpy as np
import pytest
import torch
from automatic_toys import compared, metas_generator, surround_meta
from upstream_predictors import metas_demo_predictor

import samx
from samx.artifacts.commit import write_file
from samx.commands.bench import benchmark_environment
from samx.demo.scenes import generate_scene

FIRST_SEED = 900_100  # scenes that the demo model was not trained on
SIZES_PX = ((640, 480), (640, 480), (640, 480), (640, 480), (2048, 1536))  # of scene after scene, and again
LARGE_PX, SMALLER = (4000, 3000), 8  # drawn so much smaller: drawing takes more memory than looking
# The demo model is small: its masks are less stable than Meta's thresholds of 0.88 and 0.95 ask for.
THRESHOLDS: dict[str, Any] = {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.8}


def compare_family(family: str, artifact: Path, kept: Kept, scenes: Sequence[int]) -> None:
    """Let both look at the scenes that are not done yet, in turns."""
    done = {row["scene"] for row in kept.rows(family)}
    with samx.open(artifact, threads=kept.settings["threads"]) as ours:
        meta = metas_demo_predictor(family, ours.spec.image_size)
        generator = metas_generator(meta, family, points_per_side=kept.settings["grid"], **THRESHOLDS)
        for scene in sorted(set(scenes) - done):
            size_px = SIZES_PX[scene % len(SIZES_PX)]
            picture = np.ascontiguousarray(generate_scene(FIRST_SEED + scene, size_px).image)
            ours.set_image(picture)
            mine_s, mine = timed(partial(look, ours, kept.settings["grid"]))
            with encoder_time(meta) as spent:
                theirs_s, theirs = timed(partial(generator.generate, picture))
            theirs_s -= spent[0]
            one = compared(mine, theirs, *THRESHOLDS.values())
            kept.add(
                {"family": family, "scene": scene, "size_px": size_px, "s": mine_s, "metas_s": theirs_s, **vars(one)}
            )
            tell(f"{family} scene {scene}, {size_px[0]} x {size_px[1]} px: {one.ours} and {one.metas} masks, "
                 f"{one.same} the same, {mine_s:.1f} s and {theirs_s:.1f} s")  # fmt: skip


class Kept:
    """The file of results: settings, and a row a scene."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Read what is there.

        Raises:
            SystemExit: it was made with other settings.
        """
        self._path, self.settings = path, settings
        self.document: dict[str, Any] = {**settings, "scenes": [], "peak_mib": {}}
        if path.exists():
            self.document = json.loads(path.read_text(encoding="utf-8"))
            others = {name: self.document.get(name) for name in settings if self.document.get(name) != settings[name]}
            if others:
                sys.exit(f"{path} was made with other settings: found {others}. Name another file with --output")

    def rows(self, family: str) -> list[dict[str, Any]]:
        """Return the scenes of a family."""
        return [row for row in self.document["scenes"] if row["family"] == family]

    def add(self, row: Mapping[str, Any]) -> None:
        """Put a scene to the others, and write all."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.document["scenes"].append({"created": now, **row})
        self.write()

    def write(self) -> None:
        """Write the file anew, whole or not at all."""
        write_file(self._path, (json.dumps(self.document, indent=1) + "\n").encode())


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in a line what scenes of one family and size show."""
    ratios = [row["metas_s"] / row["s"] for row in rows]
    total = {name: sum(row[name] for row in rows) for name in ("ours", "metas", "same", "swapped", "flipped_px")}
    near, unexplained = (sum(len(row[name]) for row in rows) for name in ("near", "unexplained"))
    return (
        f"{rows[0]['family']}, {len(rows)} scenes of {rows[0]['size_px'][0]} x {rows[0]['size_px'][1]} px: "
        f"{total['ours']} masks and Meta's {total['metas']}, {total['same']} the same ({total['flipped_px']} px "
        f"differ, least IoU {min(row['least_iou'] for row in rows):.6f}), {near} near a threshold, "
        f"{unexplained} not explained, {total['swapped']} at another place; "
        f"{median(ratios):.1f} times as fast, least {min(ratios):.1f}"
    )


def look(predictor: Any, grid: int) -> list[Any]:
    """Look over the picture that is set."""
    return list(predictor.everything(points_per_side=grid, **THRESHOLDS))


def tell(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def timed(run: Any) -> tuple[float, Any]:
    """Return how many seconds a call takes, and what it returns."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


@contextmanager
def encoder_time(predictor: Any) -> Iterator[list[float]]:
    """Sum up the seconds that Meta's predictor sets images for."""
    spent, set_image = [0.0], predictor.set_image

    def timed_set_image(*given: Any) -> None:
        spent[0] += timed(lambda: set_image(*given))[0]

    predictor.set_image = timed_set_image
    yield spent
    predictor.set_image = set_image


def peak_mib(artifact: Path, threads: int, grid: int) -> dict[str, float]:
    """Return the most memory that a fresh process holds for a picture of 12 megapixels, and for its encoder alone."""
    lines = [str(artifact), str(threads), str(grid)]
    done = subprocess.run(
        [sys.executable, "-m", "tools.amg", "--child", *lines], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def child(artifact: str, threads: str, grid: str) -> None:
    """Look over a large picture, and print what it took."""
    small = generate_scene(FIRST_SEED, (LARGE_PX[0] // SMALLER, LARGE_PX[1] // SMALLER)).image
    picture = small.repeat(SMALLER, 0).repeat(SMALLER, 1)
    drawn = _peak_mib()
    with samx.open(artifact, threads=int(threads)) as predictor:
        predictor.set_image(picture)
        encoded, masks = _peak_mib(), 0
        for _ in predictor.everything(points_per_side=int(grid), **THRESHOLDS):
            masks += 1
    tell(json.dumps({"picture": drawn, "encoder": encoded, "everything": _peak_mib(), "masks": masks}))


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")  # rusage begins with the parent's peak
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, keep the result, and fail where a mask differs without being near a threshold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--grid", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--family", action="append", choices=("sam1", "sam2"))
    parser.add_argument("--artifacts", type=Path, help="Folder of the demo models' exports, sam1 and sam2, if there.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; its scenes are not done again")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = sys.argv[1:] if arguments is None else arguments
    if "--child" in given:
        child(*given[-3:])
        return 0
    asked = parser.parse_args(given)
    torch.set_num_threads(asked.threads)
    kept = Kept(asked.output, {
        "schema": "samx-automatic/2", "threads": asked.threads, "grid": asked.grid, "thresholds": THRESHOLDS,
        "large_px": list(LARGE_PX),
        "environment": benchmark_environment(("torch", "onnxruntime", "segment-anything", "sam2")),
    })  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        surround_meta(patch)
        for family in asked.family or ("sam1", "sam2"):
            artifact = (asked.artifacts or Path(folder)) / family
            if not artifact.exists():
                samx.export(None, artifact, family=family, split=True)
            compare_family(family, artifact, kept, range(asked.first, asked.first + asked.scenes))
            if family not in kept.document["peak_mib"]:
                kept.document["peak_mib"][family] = peak_mib(artifact, asked.threads, asked.grid)
                kept.write()
    return report(kept.document["scenes"])


def report(rows: Sequence[Mapping[str, Any]]) -> int:
    """Tell what all scenes show; return 1 where a mask differs without being near a threshold."""
    kinds = sorted({(row["family"], tuple(row["size_px"])) for row in rows})
    for kind in kinds:
        tell(summary([row for row in rows if (row["family"], tuple(row["size_px"])) == kind]))
    return 1 if any(row["unexplained"] or row["swapped"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
