"""What clients are asked, in every language alike, and what the predictor answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import samx
from samx.clients.code import CODE_FOLDER, check_encoder, languages, write_code
from samx.commands.export import ExportRequest, export
from samx.registry import backend

PHOTO = Path(samx.__file__).parent / "validators" / "photos" / "coffee.jpg"
FRAME_PX = 256
SIZES = ((300, 200), (90, 130), (640, 640))  # larger and smaller than the frame, landscape, portrait and square
PROMPTS: tuple[tuple[tuple[tuple[float, float, int], ...], tuple[float, ...] | None], ...] = (
    (((0.5, 0.45, 1),), None),
    (((0.5, 0.5, 1), (0.1, 0.1, 0)), None),
    ((), (0.2, 0.2, 0.8, 0.9)),
    (((0.4, 0.5, 1),), (0.25, 0.15, 0.85, 0.8)),
)  # in shares of the picture
LEAST_IOU = 0.999  # runtimes add up in another order, which may move a pixel of an edge
TOOLS = Path(__file__).parents[2] / ".toolchains"  # what 'make toolchains' brings


@dataclass(frozen=True)
class Case:
    """One prompt on one picture, in its pixels, and the predictor's mask."""

    picture: Path
    points: list[list[float]]
    labels: list[int]
    box: list[float] | None
    expected: NDArray[np.bool_]

    def options(self) -> list[str]:
        """Return the prompt as clients' command lines take it."""
        points = [(["--not", "--point"][label], point) for label, point in zip(self.labels, self.points, strict=True)]
        given = [*points, *([("--box", self.box)] if self.box else [])]
        return [word for flag, values in given for word in (flag, ",".join(map(str, values)))]

    def check(self, mask: NDArray[np.bool_]) -> None:
        """Compare a client's mask with the predictor's."""
        assert mask.shape == self.expected.shape
        assert 0 < self.expected.sum() < self.expected.size
        assert iou(mask, self.expected) >= LEAST_IOU


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Divide what two masks share by what either has."""
    return float((one & other).sum() / (one | other).sum())


def pictures(folder: Path) -> Iterator[Path]:
    """Write a photo in several sizes, as PNG and as PPM."""
    with Image.open(PHOTO) as photo:
        for width, height in SIZES:
            small = photo.convert("RGB").resize((width, height))
            path = folder / f"photo-{width}x{height}.png"
            small.save(path)
            small.save(path.with_suffix(".ppm"))
            yield path


def cases(artifact: Path, folder: Path) -> list[Case]:
    """Ask the predictor."""
    folder.mkdir(exist_ok=True)
    return [case for path in pictures(folder) for case in _of_picture(artifact, path)]


def _of_picture(artifact: Path, path: Path) -> Iterator[Case]:
    with samx.open(artifact) as predictor, Image.open(path) as picture:
        predictor.set_image(path)
        for shares, box in PROMPTS:
            points = [[x * picture.width, y * picture.height] for x, y, _ in shares]
            labels = [label for *_, label in shares]
            corners = None if box is None else [share * side for share, side in zip(box, picture.size * 2, strict=True)]
            asked = samx.Prompt(points, labels, corners)  # type: ignore[arg-type]
            [found] = predictor.segment([asked])
            yield Case(path, points, labels, corners, found.mask)


def exported(out: Path, family: str, target: str = "onnx", **options: Any) -> Path:
    """Export a demo model for small frames, with clients in every language of its target."""
    asked = tuple(languages(backend(target)))
    export(ExportRequest(out, family=family, target=target, image_size=FRAME_PX, client=asked, options=options))
    return out


def rewritten(artifact: Path, language: str, folder: Path, target: str) -> Path:
    """Write the client that an artifact of another target would have; return its path."""
    manifest = samx.Artifact.open(artifact).manifest
    written = {name: entry.role for name, entry in manifest.files.items()}
    encoder = check_encoder(manifest.encoder, "it")
    [path] = write_code([language], backend(target), manifest.spec, encoder, manifest.precision, written, folder)
    return folder / path


def code_of(artifact: Path, name: str) -> Path:
    """Return the path of a client."""
    return artifact / CODE_FOLDER / name


def tool(path: str) -> Path:
    """Return what 'make toolchains' brought; without it, the test is skipped, and says so."""
    if not (TOOLS / path).exists():
        pytest.skip(f"{TOOLS.name}/{path} is not there: make toolchains")
    return TOOLS / path


def read_pgm(path: Path) -> NDArray[np.bool_]:
    """Read a mask that a program wrote without Pillow."""
    with Image.open(path) as picture:
        assert picture.format == "PPM"
        return np.asarray(picture) > 0
