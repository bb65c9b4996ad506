"""'make wasm': what decoders are given, and how their masks are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from samx.models.spec import sam1_spec
from tools import wasm


def test_a_click_is_padded_as_a_predictor_pads_it() -> None:
    feed = wasm.click(sam1_spec(image_size=512))
    assert feed["point_coords"].tolist() == [[[256, 256], [0, 0]]]
    assert feed["point_labels"].tolist() == [[1, -1]]


@pytest.mark.parametrize(("changed", "expected"), [(0, 1.0), (2, 0.5)])
def test_the_worst_of_four_masks_counts(tmp_path: Path, changed: int, expected: float) -> None:
    masks = np.full((4, 3, 3), -1, np.float32)
    masks[:, 0, :] = masks[:, 1, 0] = 2
    other = masks.copy()
    other[3].ravel()[:changed] = -1
    (tmp_path / "ours.masks").write_bytes(masks.tobytes())
    (tmp_path / "meta.masks").write_bytes(other.tobytes())
    assert wasm.mask_iou(tmp_path) == expected


def test_what_is_given_is_written_as_it_is(tmp_path: Path) -> None:
    value = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    graph = wasm._graph(tmp_path, "ours", tmp_path / "a.onnx", {"x": value})
    assert graph["inputs"]["x"]["shape"] == (1, 2, 3)
    found = np.frombuffer(Path(graph["inputs"]["x"]["file"]).read_bytes(), np.float32)
    np.testing.assert_array_equal(found, value.ravel())
