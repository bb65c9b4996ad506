"""Image encoders in ONNX compute what they do in PyTorch, for any number of pictures, in a form that devices take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import upstream_encoders as upstream
from torch import Tensor

from samx.exporters.onnx import to_onnx
from samx.models.encoders import attention, hiera, vit
from samx.models.encoders.base import Encoder
from samx.models.spec import sam1_spec, sam2_spec

SIZE_PX = 256
TOLERANCE = 1e-5
MOST_AXES = 5  # that Core ML takes
HIERA = (16, (1, 1, 2, 1))
LAYOUT = hiera.Layout(heads=1, windows=(8, 4, 14, 7), everywhere=(3,))


def small_vit() -> Encoder:
    return vit.build(
        upstream.meta_vit(SIZE_PX, blocks=2).state_dict(), sam1_spec(image_size=SIZE_PX, width=upstream.WIDTH)
    )


def small_hiera() -> Encoder:
    state = upstream.meta_hiera(HIERA, LAYOUT).state_dict().items()
    names = {name.removeprefix("image_encoder.").removeprefix("sam_mask_decoder."): tensor for name, tensor in state}
    return hiera.build(names, sam2_spec(image_size=SIZE_PX))


def exported(encoder: Encoder, pictures: int | None) -> onnx.ModelProto:
    """Return the graph for a number of pictures, or for any (None)."""
    pixels = upstream.pictures(SIZE_PX, pictures or 2)
    names = [f"output_{i}" for i in range(len(encoder(pixels)))]
    dynamic = None if pictures else (({0: torch.export.Dim("pictures")},))
    return to_onnx(encoder, (pixels,), opset=18, inputs=["pixels"], outputs=names, dynamic_shapes=dynamic)


@pytest.fixture
def _few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attend in chunks, as large maps do."""
    monkeypatch.setattr(hiera, "LAYOUTS", {**hiera.LAYOUTS, HIERA: LAYOUT})
    monkeypatch.setattr(attention.attended, "__defaults__", (128, None))
    monkeypatch.setattr(vit, "QUERIES", 128)


@pytest.mark.usefixtures("_few_queries")
@pytest.mark.parametrize(
    ("build", "pictures"),
    [(small_vit, None), (small_hiera, 2), pytest.param(small_hiera, None, marks=pytest.mark.slow)],
    ids=["ViT, any number of pictures", "Hiera, two", "Hiera, any number of pictures"],
)
def test_a_graph_computes_what_the_module_does(build: Callable[[], Encoder], pictures: int | None) -> None:
    encoder = build()
    model = exported(encoder, pictures)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in [pictures] if pictures else [1, 3]:
        pixels = upstream.pictures(SIZE_PX, count)
        found = [torch.from_numpy(output) for output in session.run(None, {"pixels": pixels.numpy()})]
        errors = [upstream.relative_error(ours, own) for ours, own in zip(found, encoder(pixels), strict=True)]
        assert max(errors) <= TOLERANCE
    assert 4 <= most_axes(model) <= MOST_AXES


def most_axes(model: onnx.ModelProto) -> int:
    inferred = onnx.shape_inference.infer_shapes(model)
    return max(len(value.type.tensor_type.shape.dim) for value in inferred.graph.value_info)


@pytest.mark.usefixtures("_few_queries")
def test_chunks_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 100, 8, generator=generator) for _ in range(3))
    whole = torch.softmax(q @ k.transpose(-2, -1), -1) @ v
    assert upstream.relative_error(attention.attended(q, k, v, 7), whole) <= 1e-6
    assert upstream.relative_error(attention.attended(q, k, v, 100), whole) <= 1e-6


@pytest.mark.parametrize(("side", "window"), [(16, 14), (16, 4), (5, 7), (14, 14), (29, 14)])
def test_windows_are_cut_and_joined_again(side: int, window: int) -> None:
    maps = torch.arange(1, 1 + 2 * side * side * 3, dtype=torch.float32).reshape(2, side, side, 3)
    windows = attention.cut(maps, window)
    across = -(-side // window)
    assert windows.shape == (2 * across**2, window, window, 3)
    assert torch.equal(windows[0, : min(side, window), : min(side, window)], maps[0, :window, :window])
    assert int((windows == 0).sum()) == windows.numel() - maps.numel()
    assert torch.equal(attention.uncut(windows, side), maps)


def test_pooling_takes_the_largest_of_four() -> None:
    maps = upstream.pictures(8).permute(0, 2, 3, 1)
    expected: Tensor = torch.nn.functional.max_pool2d(maps.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert np.array_equal(hiera.pooled(maps).numpy(), expected.numpy())
