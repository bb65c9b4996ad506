"""Ways to damage an .npz of arrays and a JSON header so that it still opens."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]


def damaged(data: bytes, change: Callable[[Arrays], object]) -> bytes:
    with np.load(io.BytesIO(data)) as stored:
        arrays = dict(stored)
    change(arrays)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Arrays], None]:
    def edit(arrays: Arrays) -> None:
        found = json.loads(arrays["header"].tobytes())
        change(found)
        arrays["header"] = np.frombuffer(json.dumps(found).encode(), np.uint8)

    return edit


def put(name: str, change: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: change(arrays[name])})
