"""Pictures are resized as Pillow and PyTorch do, here and, by tests/data/resize-vectors.json, in any other language.

`python tests/processing/test_resize.py` writes the vectors anew, with Pillow and PyTorch and without samx's resizer.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from samx.models.spec import sam1_spec, sam2_spec
from samx.processing.frames import Frame
from samx.processing.images import to_levels
from samx.processing.resize import resized

VECTORS = Path(__file__).parents[1] / "data" / "resize-vectors.json"
SIZES = (
    ((7, 5), (3, 2)), ((5, 7), (8, 8)), ((64, 48), (32, 24)), ((50, 33), (24, 16)), ((90, 3), (32, 1)),
    ((31, 40), (31, 23)), ((16, 16), (16, 16)),
)  # fmt: skip
FORMULA = "(37 x + 59 y + 83 c + 7 x y) mod 256, c = 0 red, 1 green, 2 blue"
Bytes = NDArray[np.uint8]


def drawn(width: int, height: int) -> Bytes:
    """Draw the picture of a size that every language can draw. Shapes: -> (H, W, 3)."""
    y, x, c = np.mgrid[:height, :width, :3]
    return ((37 * x + 59 * y + 83 * c + 7 * x * y) % 256).astype(np.uint8)


def by_pillow(image: Bytes, width: int, height: int) -> Bytes:
    """Resize the width first, whatever a release of Pillow begins with."""
    wide = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(wide.resize((width, height), Image.Resampling.BILINEAR))


def by_torch(image: Bytes, width: int, height: int) -> NDArray[np.float64]:
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    found = F.interpolate(tensor, (height, width), mode="bilinear", align_corners=False, antialias=True)
    return found[0].permute(1, 2, 0).numpy()


def vectors() -> dict[str, Any]:
    return {"picture": FORMULA, "order": "rows, columns, RGB; bytes in base64", "cases": list(cases())}


def cases() -> Iterator[dict[str, Any]]:
    for (width, height), (to_width, to_height) in SIZES:
        image = drawn(width, height)
        numbers = np.floor(by_torch(image, to_width, to_height) + 0.5).astype(np.uint8)
        yield {
            "from": [width, height], "to": [to_width, to_height],
            "rounded": _text(by_pillow(image, to_width, to_height)), "numbers": _text(numbers),
        }  # fmt: skip


def _text(values: Bytes) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


STORED: list[dict[str, Any]] = json.loads(VECTORS.read_text())["cases"] if VECTORS.is_file() else []


def test_the_vectors_are_pillows_and_torchs() -> None:
    assert json.loads(VECTORS.read_text()) == vectors()


@pytest.mark.parametrize("case", STORED, ids=lambda case: f"{case['from']}-{case['to']}")
@pytest.mark.parametrize("rule", ["rounded", "numbers"])
def test_the_vectors_come_out(case: dict[str, Any], rule: str) -> None:
    width, height = case["to"]
    expected = np.frombuffer(base64.b64decode(case[rule]), np.uint8).reshape(height, width, 3)
    found = resized(drawn(*case["from"]), width, height, rule == "numbers")
    if rule == "rounded":
        np.testing.assert_array_equal(found, expected)
    else:  # values that lie at a half may go either way
        half = np.abs(found % 1 - 0.5) < 1e-4
        np.testing.assert_array_equal(np.floor(found + 0.5)[~half], expected[~half])
        assert half.mean() < 0.05


@pytest.mark.parametrize("seed", range(12))
def test_any_size_is_resized_as_pillow_and_torch_do(seed: int) -> None:
    random = np.random.default_rng(seed)
    (width, height), (to_width, to_height) = random.integers(1, 400, (2, 2)).tolist()
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resized(image, to_width, to_height, False), by_pillow(image, to_width, to_height))
    numbers = resized(image, to_width, to_height, True)
    np.testing.assert_allclose(numbers, by_torch(image, to_width, to_height), atol=255 * 2e-6)


@pytest.mark.parametrize("spec", [sam1_spec(image_size=256), sam2_spec(image_size=256)], ids=["rounded", "numbers"])
def test_a_photograph_is_resized_as_its_family_does(spec: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    frame = Frame.of(spec, 900, 600)
    width, height = frame.valid_width_px, frame.valid_height_px
    found = to_levels(image, frame)[:height, :width]
    assert found.dtype == spec.picture_type
    if frame.resizes_floats:
        np.testing.assert_allclose(found, by_torch(image, width, height), atol=255 * 2e-6)
    else:
        np.testing.assert_array_equal(found, by_pillow(image, width, height))


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")


LONELY = """
import time
import numpy as np
from samx.processing.resize import resized
picture = np.zeros((960, 1280, 3), np.uint8)
resized(picture, 1024, 768, floats=True)
time.sleep(0.5)  # NumPy's threads spin for a moment when they are new
whole, own = time.process_time(), time.thread_time()
for floats in (True, False) * 5:
    resized(picture, 1024, 768, floats)
own, whole = time.thread_time() - own, time.process_time() - whole
print(own, whole - own)
"""


def test_only_the_thread_that_asks_works() -> None:
    """Two processes on two cores took four times as long when NumPy's threads worked along."""
    asked = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", LONELY], env=asked, capture_output=True, text=True, check=True)
    own, others = map(float, done.stdout.split())
    assert others < 0.3 * own
