"""Measures a click in onnxruntime-web beside Meta's decoder as ONNX, one thread, in turns: `make wasm`.

Node.js runs the WebAssembly that browsers run. Both decoders have the demo model's weights and give four masks; ours
keeps the picture's part between clicks, as the page of 'samx web' does. The image encoder is in neither figure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort

from samx.benchmarks.contenders.meta import export_meta
from samx.commands.bench import benchmark_environment
from samx.commands.export import ExportRequest, export
from samx.demo import demo_checkpoint
from samx.demo.model import demo_images
from samx.models.checkpoint import load_checkpoint
from samx.models.session import Feed
from samx.models.spec import DecoderSpec

ROUNDS, LEAST_IOU = 25, 0.9999
RUNTIME = Path(".toolchains/node_modules/onnxruntime-web/dist")


def click(spec: DecoderSpec) -> Feed:
    """Click on the middle, padded as the predictor does."""
    middle = spec.image_size / 2
    return {
        "point_coords": np.array([[[middle, middle], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
    }


def graphs(folder: Path) -> list[dict[str, Any]]:
    """Export both decoders, and write what each is given."""
    checkpoint = demo_checkpoint("sam1")
    loaded = load_checkpoint(checkpoint)
    export(ExportRequest(folder / "ours", masks="all", encoder=False, options={"split": True}))
    image, prompts = demo_images(checkpoint, loaded.spec)[0], click(loaded.spec)
    session = ort.InferenceSession(str(folder / "ours" / "image.onnx"), providers=["CPUExecutionProvider"])
    state = dict(zip([one.name for one in session.get_outputs()], session.run(None, dict(image)), strict=True))
    size = loaded.spec.mask_size
    nothing = {"mask_input": np.zeros((1, 1, size, size), np.float32), "has_mask_input": np.zeros(1, np.float32)}
    _, meta = export_meta(loaded, folder)
    return [
        _graph(folder, "ours", folder / "ours" / "prompt.onnx", {**state, **prompts}),
        _graph(folder, "meta", meta, {**image, **prompts, **nothing}),
    ]


def _graph(folder: Path, name: str, file: Path, feed: Feed) -> dict[str, Any]:
    inputs = {}
    for tensor, value in feed.items():
        path = folder / f"{name}.{tensor}.bin"
        path.write_bytes(np.ascontiguousarray(value, np.float32).tobytes())
        inputs[tensor] = {"file": str(path), "shape": value.shape}
    return {"name": name, "file": str(file), "inputs": inputs}


def mask_iou(folder: Path) -> float:
    """Return the least IoU of the masks that both gave."""
    files = [(folder / f"{name}.masks").read_bytes() for name in ("ours", "meta")]
    ours, meta = (np.frombuffer(data, np.float32).reshape(4, -1) > 0 for data in files)
    either = np.maximum((ours | meta).sum(axis=1), 1)
    return float(((ours & meta).sum(axis=1) / either).min())


def tell(words: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; 1 where the masks differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="samx-wasm-") as name:
        folder = Path(name)
        (folder / "graphs.json").write_text(json.dumps(graphs(folder)))
        script = Path(__file__).with_suffix(".mjs")
        subprocess.run(["node", str(script), str(RUNTIME.resolve()), name, str(given.rounds)], check=True)
        found, iou = json.loads((folder / "found.json").read_text()), mask_iou(folder)
    ours, meta = found["ms"]["ours"], found["ms"]["meta"]
    ratios = sorted(theirs / mine for mine, theirs in zip(ours, meta, strict=True))
    report = {
        "what": __doc__, "created": datetime.now(timezone.utc).isoformat(), "onnxruntime_web": found["version"],
        "median_ms": {"ours": median(ours), "meta": median(meta)}, "ratio_median": median(ratios),
        "ratio_least": ratios[0], "mask_iou_least": iou, "ms": found["ms"], "environment": benchmark_environment(),
    }  # fmt: skip
    given.output.write_text(json.dumps(report, indent=1) + "\n")
    tell(f"onnxruntime-web {found['version']}, one thread: a click takes {median(ours):.0f} ms, Meta's decoder")
    tell(
        f"{median(meta):.0f} ms: {median(ratios):.2f} times as long (least {ratios[0]:.2f}). Least mask IoU {iou:.5f}."
    )
    return 0 if iou >= LEAST_IOU else 1


if __name__ == "__main__":
    sys.exit(main())
