"""The pool of training scenes: drawn once, kept in memory-mapped files, cut out and varied for every step."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from samx.demo.scenes import generate_scene

Array = NDArray[Any]
Rng = np.random.Generator

POOL_SIZE_PX = 256
TRAIN_SEED = 1_000_000  # evaluation takes its seeds from 0 up
PAD_CHANCE = 0.15  # pictures that are not square: SAM 1 pads them at the right or at the bottom


def _draw(seed: int) -> tuple[Array, Array]:
    scene = generate_scene(seed, POOL_SIZE_PX)
    return scene.image, scene.ids


class ScenePool:
    """Hold many scenes at POOL_SIZE_PX and cut varied samples from them."""

    def __init__(self, folder: Path, count: int, say: Callable[[str], None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        done = folder / f"drawn_{count}"
        shapes = {"images": (count, POOL_SIZE_PX, POOL_SIZE_PX, 3), "ids": (count, 3, POOL_SIZE_PX, POOL_SIZE_PX)}
        mode: Any = "r" if done.exists() else "w+"
        self.arrays = {
            name: np.memmap(folder / f"{name}_{count}.bin", np.uint8, mode, shape=shape)
            for name, shape in shapes.items()
        }
        if not done.exists():
            self._fill(count, say)
            done.touch()

    def _fill(self, count: int, say: Callable[[str], None]) -> None:
        with multiprocessing.get_context("spawn").Pool(2) as workers:
            seeds = range(TRAIN_SEED, TRAIN_SEED + count)
            for index, (image, ids) in enumerate(workers.imap(_draw, seeds, chunksize=32)):
                self.arrays["images"][index], self.arrays["ids"][index] = image, ids
                if (index + 1) % 1000 == 0:
                    say(f"drew {index + 1} of {count} scenes")

    def sample(self, rng: Rng, size_px: int, crop: tuple[float, float]) -> tuple[Array, Array]:
        """Cut a random piece of a random scene. Shapes: -> (S, S, 3) float32 in 0..1, (3, S, S) uint8."""
        index = int(rng.integers(len(self.arrays["images"])))
        image, ids = self.arrays["images"][index], self.arrays["ids"][index]
        share = rng.uniform(*crop)
        squash = np.exp(rng.uniform(-0.25, 0.25))
        width, height = (min(1.0, share * s) * POOL_SIZE_PX for s in (squash, 1 / squash))
        left, top = rng.uniform(0, POOL_SIZE_PX - width), rng.uniform(0, POOL_SIZE_PX - height)
        inner = _padded_size(rng, size_px)
        picture = _resize_image(image, (left, top, left + width, top + height), inner)
        labels = _resize_ids(ids, (left, top, width, height), inner)
        return _place(*_turn(rng, picture, labels), size_px)


def _padded_size(rng: Rng, size_px: int) -> tuple[int, int]:
    if rng.uniform() >= PAD_CHANCE:
        return size_px, size_px
    short = int(size_px * rng.uniform(0.5, 0.95))
    return (size_px, short) if rng.uniform() < 0.5 else (short, size_px)


def _resize_image(image: Array, box: tuple[float, float, float, float], size: tuple[int, int]) -> Array:
    small = Image.fromarray(np.asarray(image)).resize(size, Image.Resampling.BILINEAR, box=box)
    return np.asarray(small, dtype=np.float32) / 255.0


def _resize_ids(ids: Array, box: tuple[float, float, float, float], size: tuple[int, int]) -> Array:
    left, top, width, height = box
    columns = (left + (np.arange(size[0]) + 0.5) * width / size[0]).astype(int)
    rows = (top + (np.arange(size[1]) + 0.5) * height / size[1]).astype(int)
    return np.asarray(ids[:, rows][:, :, columns])


def _turn(rng: Rng, picture: Array, ids: Array) -> tuple[Array, Array]:
    """Turn, mirror and recolour at random."""
    quarter = int(rng.integers(4))
    picture, ids = np.rot90(picture, quarter), np.rot90(ids, quarter, axes=(1, 2))
    if rng.uniform() < 0.5:
        picture, ids = picture[:, ::-1], ids[:, :, ::-1]
    picture = picture[..., rng.permutation(3)] * rng.uniform(0.8, 1.15) + rng.uniform(-0.05, 0.05)
    return np.clip(picture, 0.0, 1.0), ids


def _place(picture: Array, ids: Array, size_px: int) -> tuple[Array, Array]:
    """Fill up to a square with zeros at the right and at the bottom."""
    height, width = picture.shape[:2]
    square = np.zeros((size_px, size_px, 3), dtype=np.float32)
    labels = np.zeros((3, size_px, size_px), dtype=np.uint8)
    square[:height, :width], labels[:, :height, :width] = picture, ids
    return square, labels
