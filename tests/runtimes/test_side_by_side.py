"""Batches in ONNX Runtime where the image's part is kept: prompts side by side, each on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from samx.models.session import Feed
from samx.models.spec import sam1_spec
from samx.runtimes import onnxruntime
from samx.runtimes.onnxruntime import OnnxRuntimeRuntime, open_models

PATIENCE_S = 20
SPEC = sam1_spec(image_size=128)
SIZES = ((SPEC.masks_out, SPEC.mask_size, SPEC.mask_size), (SPEC.masks_out,))  # of the outputs


class Session:
    """Answer with the first coordinate; with a barrier, only once so many callers are inside at the same time."""

    def __init__(self, together: int = 1) -> None:
        self.barrier = threading.Barrier(together)
        self.calls: list[int] = []
        self.threads: set[int] = set()

    def run(self, names: Sequence[str] | None, feed: Feed) -> list[Any]:
        self.barrier.wait(PATIENCE_S)
        x = feed["point_coords"][:, 0, 0]
        self.calls.append(len(x))
        self.threads.add(threading.get_ident())
        if (x == 666).any():
            raise RuntimeError("no such prompt")
        return [np.broadcast_to(x.reshape(-1, *[1] * len(size)), (len(x), *size)) for size in SIZES]


def prompts(n: int) -> Feed:
    coords = np.zeros((n, 1, 2), np.float32)
    coords[:, 0, 0] = np.arange(n)
    return {"point_coords": coords, "point_labels": np.ones((n, 1), np.float32)}


def runtime(all_threads: Session, alone: Session, threads: int) -> OnnxRuntimeRuntime:
    image = type("Image", (), {"get_outputs": lambda _: [], "run": lambda *_: []})()
    made = OnnxRuntimeRuntime(
        SPEC, [image, all_threads], "cpu", chunk=2, side_by_side=threads, open_single=lambda: alone
    )
    made.set_image({"image_embeddings": np.zeros((1, SPEC.width, SPEC.grid, SPEC.grid), np.float32)})
    return made


@pytest.mark.parametrize(("n", "threads"), [(6, 3), (4, 4), (8, 2)])
def test_as_many_prompts_at_a_time_as_threads(n: int, threads: int) -> None:
    everyone, alone = Session(), Session(together=threads)
    outputs = runtime(everyone, alone, threads).decode(prompts(n))
    assert outputs["low_res_masks"][:, 0, 0, 0].tolist() == list(range(n)), "answers in the order of the prompts"
    assert (len(alone.threads), alone.calls, everyone.calls) == (threads, [1] * n, [])


def test_few_prompts_get_all_threads() -> None:
    everyone, alone = Session(), Session()
    outputs = runtime(everyone, alone, threads=8).decode(prompts(5))
    assert outputs["iou_predictions"][:, 0].tolist() == list(range(5))
    assert (sorted(everyone.calls), alone.calls) == ([1, 2, 2], [])


def test_a_single_thread_needs_no_second_session() -> None:
    everyone, alone = Session(), Session()
    made = runtime(everyone, alone, threads=1)
    assert made.decode(prompts(3))["low_res_masks"][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert (everyone.calls, alone.calls) == ([1, 1, 1], [])


def test_an_error_on_a_thread_is_not_lost() -> None:
    bad = prompts(4)
    bad["point_coords"][2, 0, 0] = 666
    with pytest.raises(RuntimeError, match="no such prompt"):
        runtime(Session(), Session(), threads=2).decode(bad)


@pytest.mark.parametrize(
    ("options", "decoded"), [({"split": True}, [1] * 6), ({}, [6])], ids=["kept image", "one graph"]
)
def test_only_a_kept_image_gets_a_thread_pool(
    options: dict[str, Any], decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, int | None]] = []
    session = Session()

    def open_one(name: str, model: bytes, device: str, threads: int | None) -> Session:
        opened.append((name, threads))
        return session

    monkeypatch.setattr(onnxruntime, "_session", open_one)
    made = open_models({"prompt.onnx": b""}, SPEC, options, threads=3)
    made.set_image({"image_embeddings": np.zeros((1, SPEC.width, SPEC.grid, SPEC.grid), np.float32)})
    made.decode(prompts(6))
    assert session.calls == decoded
    assert opened == [("prompt.onnx", 3), *([("prompt.onnx", 1)] if decoded[0] == 1 else [])]
