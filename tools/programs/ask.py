"""Answer prompts with a program's own class, with one decoder and another in turn: JSON in, JSON out.

Runs in the program's environment: NumPy, Pillow and the program alone.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

Points = Sequence[Sequence[float]]
Ask = Callable[..., Any]  # a prompt (points, labels, in some programs a mask handed back) -> masks (M, H, W)
BOX_CORNER = 2  # the label of a box's first corner
# Of a click: all that the program does, what its runtime does of that, what is the program's own.
PARTS: Mapping[str, Callable[[float, float], float]] = {
    "median_ms": lambda click, run: click, "run_ms": lambda click, run: run, "own_ms": lambda click, run: click - run,
}  # fmt: skip
LABELING = "anylabeling.services.auto_labeling"  # the package of AnyLabeling and of X-AnyLabeling


def marks(points: Points, labels: Sequence[int]) -> list[dict[str, Any]]:
    """Return a prompt as samexporter and the labelling programs write it."""
    if labels[0] == BOX_CORNER:
        return [{"type": "rectangle", "data": [*points[0], *points[1]]}]
    return [{"type": "point", "data": list(point), "label": label} for point, label in zip(points, labels, strict=True)]


def of_marks(model: Any, picture: Any) -> Ask:
    """Encode a picture, and ask with marks."""
    embedding = model.encode(np.ascontiguousarray(picture))
    return lambda points, labels: np.asarray(model.predict_masks(embedding, marks(points, labels)))[0] > 0


def of_samexporter(family: str, encoder: str, decoder: str, rgb: Any) -> Ask:
    """Open samexporter's class for a family; it takes a picture as OpenCV reads it."""
    module, name = {
        "sam1": ("sam_onnx", "SegmentAnythingONNX"), "sam2": ("sam2_onnx", "SegmentAnything2ONNX"),
    }[family]  # fmt: skip
    model = getattr(importlib.import_module(f"samexporter.{module}"), name)(encoder, decoder)
    return of_marks(model, rgb[..., ::-1])


def of_anylabeling(family: str, encoder: str, decoder: str, rgb: Any) -> Ask:
    """Open AnyLabeling's class for a family, without the package's windows."""
    bare("anylabeling", "anylabeling.services", LABELING)
    module, name = {
        "sam1": ("sam_onnx", "SegmentAnythingONNX"), "sam2": ("sam2_onnx", "SegmentAnything2ONNX"),
    }[family]  # fmt: skip
    return of_marks(getattr(importlib.import_module(f"{LABELING}.{module}"), name)(encoder, decoder), rgb)


def of_x_anylabeling(family: str, encoder: str, decoder: str, rgb: Any) -> Ask:
    """Open X-AnyLabeling's class for a family, without the package's windows."""
    bare("anylabeling", "anylabeling.services", LABELING, f"{LABELING}.__base__")
    if family == "sam1":
        module = importlib.import_module(f"{LABELING}.sam_onnx")
        return of_marks(module.SegmentAnythingONNX(encoder, decoder), rgb)
    module = importlib.import_module(f"{LABELING}.__base__.sam2")
    return of_marks(module.SegmentAnything2ONNX(encoder, decoder, "CPU"), rgb)


def of_osam(family: str, encoder: str, decoder: str, rgb: Any) -> Ask:
    """Open osam's class for a family, with files in the place of those that it downloads."""
    bare("osam", "osam._models")
    sys.modules["gdown"] = ModuleType("gdown")  # what downloads
    types = importlib.import_module("osam.types")
    base = {"sam1": ("sam", "Sam"), "sam2": ("sam2", "Sam2")}[family]
    model_class = getattr(importlib.import_module(f"osam._models.{base[0]}._models"), base[1])
    blobs = {name: placed(path) for name, path in {"encoder": encoder, "decoder": decoder}.items()}
    model = type("Placed", (model_class,), {"name": "placed", "_blobs": blobs})()
    embedding = model.encode_image(rgb)

    def ask(points: Points, labels: Sequence[int]) -> Any:
        prompt = types.Prompt(points=np.array(points, float), point_labels=np.array(labels))
        request = types.GenerateRequest(model=model.name, image_embedding=embedding, prompt=prompt)
        (found,) = model.generate(request).annotations
        box, mask = found.bounding_box, np.zeros((1, *rgb.shape[:2]), bool)
        mask[0, box.ymin : box.ymax + 1, box.xmin : box.xmax + 1] = found.mask
        return mask

    return ask


class OfSam2Onnx:
    """Ask sam2-onnx's predictor, whose class alone of these takes a mask back."""

    def __init__(self, family: str, encoder: str, decoder: str, rgb: Any) -> None:
        untyped("sam2_onnx.types")
        package = importlib.import_module("sam2_onnx")
        beside = Path(encoder).with_name("metadata.json")
        session = package.Sam2OnnxSession(encoder_path=encoder, decoder_path=decoder, metadata_path=beside)
        self.model = package.OnnxImagePredictor(session)
        self.model.set_image(rgb)

    def __call__(self, points: Points, labels: Sequence[int], mask: Any = None) -> Any:
        return self.answer(points, labels, mask)[0] > 0

    def answer(self, points: Points, labels: Sequence[int], mask: Any = None) -> Any:
        """Return masks, scores and low-resolution logits."""
        if labels[0] == BOX_CORNER:
            return self.model.predict(box=np.array(points, np.float32).ravel(), mask_input=mask)
        return self.model.predict(np.array(points, np.float32), np.array(labels), mask_input=mask)

    def best(self, points: Points, labels: Sequence[int]) -> Any:
        """Return the logits to hand back. Shapes: -> (1, S, S)."""
        _, scores, logits = self.answer(points, labels)
        return logits[scores.argmax()][None]


PROGRAMS: Mapping[str, Callable[[str, str, str, Any], Ask]] = {
    "samexporter": of_samexporter, "AnyLabeling": of_anylabeling, "X-AnyLabeling": of_x_anylabeling, "osam": of_osam,
    "sam2-onnx": OfSam2Onnx,
}  # fmt: skip


def placed(path: str) -> SimpleNamespace:
    """Stand for a file that is there already."""
    return SimpleNamespace(path=path, hash="", size=None, pull=lambda **_: None)


def untyped(name: str) -> None:
    """Stand for a module of nothing but types, whose syntax Python 3.11 does not read."""
    sys.modules[name] = module = ModuleType(name)
    vars(module)["__getattr__"] = lambda _: Any


def bare(*packages: str) -> None:
    """Let modules of packages be imported without what the packages themselves import."""
    if packages[-1] in sys.modules:
        return
    found = find_spec(packages[0])
    assert found is not None
    (root,) = found.submodule_search_locations or [""]
    for name in packages:
        package = ModuleType(name)
        package.__path__ = [str(Path(root, *name.split(".")[1:]))]
        sys.modules[name] = package


def iou(one: Any, other: Any) -> float:
    """Return the least IoU of masks. Shapes: (M, H, W) twice."""
    both, either = (one & other).sum((-1, -2)), (one | other).sum((-1, -2))
    return float(np.where(either > 0, both / np.maximum(either, 1), 1).min())


def watched(session: Any) -> list[float]:
    """Have every run of a runtime's sessions leave its time in the list. Unit: ms."""
    spent: list[float] = []
    run = session.run

    def timed_run(*given: Any, **more: Any) -> Any:
        start = time.perf_counter()
        found = run(*given, **more)
        spent.append((time.perf_counter() - start) * 1000)
        return found

    session.run = timed_run
    return spent


def timed(
    models: Mapping[str, Ask], prompts: Sequence[Any], rounds: int, spent: list[float]
) -> dict[str, dict[str, float]]:
    """Ask every prompt in every round, the models in turn and each the first in every other round.

    Returns medians of each part. Unit: ms.
    """
    clicks: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for i in range(rounds):
        for prompt in prompts:
            for name in sorted(models, reverse=i % 2 == 1):
                spent.clear()
                start = time.perf_counter()
                models[name](*prompt)
                clicks[name].append(((time.perf_counter() - start) * 1000, sum(spent)))
    return {
        part: {name: round(statistics.median(of(*ms) for ms in values), 3) for name, values in clicks.items()}
        for part, of in PARTS.items()
    }


def answered(given: Mapping[str, Any]) -> dict[str, Any]:
    """Ask a program's class with every decoder; with `again`, each prompt's first point has been asked before."""
    rgb, prompts = np.asarray(Image.open(given["picture"]).convert("RGB")), given["prompts"]
    spent = watched(importlib.import_module("onnxruntime").InferenceSession)
    opened, encoder = PROGRAMS[given["program"]], given["encoder"]
    models: dict[str, Any] = {
        name: opened(given["family"], encoder, file, rgb) for name, file in given["decoders"].items()
    }
    if given["again"]:  # the same mask, theirs, to both
        prompts = [(points, labels, models["theirs"].best(points[:1], labels[:1])) for points, labels in prompts]
    answers = {name: [ask(*prompt) for prompt in prompts] for name, ask in models.items()}
    times = timed(models, prompts, given["rounds"], spent)
    found = {
        "version": version(given["package"]), "runtime": f"ONNX Runtime {version('onnxruntime')}",
        "mask_iou": [iou(one, other) for one, other in zip(answers["ours"], answers["theirs"], strict=True)],
        "mask_pixels": [masks.sum((-1, -2)).tolist() for masks in answers["ours"]],
        **times,
    }  # fmt: skip
    if not given["again"]:
        return found
    without = [models["ours"](*prompt[:2]) for prompt in prompts]
    return {**found, "unasked_iou": [iou(one, other) for one, other in zip(answers["ours"], without, strict=True)]}


def main() -> None:
    """Read what to do, and print what was found."""
    given = json.load(sys.stdin)
    with contextlib.redirect_stdout(io.StringIO()):  # some print the time of every run
        found = answered(given)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
